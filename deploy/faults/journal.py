"""What was found, a JSON line a round, so that a run that was stopped goes on; and the tables made of it."""

import json
import os
import platform
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

from rich.table import Table

from .kinds import BY_NAME, KINDS, Kind
from .rounds import Record

Row = dict[str, Any]
WIDTH = 120


class Journal:
    """The lines of a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "rounds.jsonl"

    def add(self, record: Record) -> None:
        with self.path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                file.write(b"" if file.read() == b"\n" else b"\n")  # after a line that was cut off
            file.write(json.dumps(record.row()).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def rows(self, seed: int | None = None) -> list[Row]:
        """All rounds, or those of a seed. A line that was cut off by a kill is no round."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if row["kind"] in BY_NAME and seed in (None, row["seed"]):
                found.append(row)
        return found


def plan(kinds: Sequence[Kind], rounds: int, done: Iterable[Row]) -> list[tuple[Kind, int]]:
    """Which rounds are still to be run, kind after kind in turn, so that a part of it is a part of everything.

    One that failed is run again.
    """
    over = {(row["kind"], row["number"]) for row in latest(done) if row["ok"]}
    turns = ((number, kind) for number in range(-(-rounds // len(kinds))) for kind in kinds)
    wanted = [(kind, number) for number, kind in turns][:rounds]
    return [(kind, number) for kind, number in wanted if (kind.name, number) not in over]


def _key(row: Row) -> tuple[str, int, int]:
    return row["kind"], row["number"], row["seed"]


def latest(rows: Iterable[Row]) -> list[Row]:
    """Of a round that was run again, the last time."""
    return list({_key(row): row for row in rows}.values())


def failed_before(rows: Sequence[Row]) -> list[Row]:
    """Rounds that failed once and balanced when they were run again."""
    good = {_key(row) for row in latest(rows) if row["ok"]}
    return [row for row in rows if not row["ok"] and _key(row) in good]


# ---- tables ------------------------------------------------------------------------------------------------------

COLUMNS = ("kind", "rounds", "lost", "duplicated", "unreported", "in progress", "debris", "recovery s, median", "max")


@dataclass(frozen=True)
class Summary:
    """The rounds of one kind, or of all."""

    name: str
    rows: Sequence[Row]

    def total(self, what: str) -> int:
        return sum(row["books"][what] for row in self.rows)

    @property
    def cells(self) -> tuple[str, ...]:
        recovery = [row["recovery_seconds"] for row in self.rows]
        counted = (self.total(what) for what in ("lost", "duplicated", "unreported", "in_progress", "debris"))
        median = f"{statistics.median(recovery):.1f}" if recovery else ""
        return (self.name, str(len(self.rows)), *map(str, counted), median, f"{max(recovery, default=0):.1f}")


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """A row a kind that has rounds, in the order of the table of kinds; all together last."""
    by_kind = [Summary(kind.name, [row for row in rows if row["kind"] == kind.name]) for kind in KINDS]
    short = [row for row in rows if not BY_NAME[row["kind"]].long]
    return [*(summary for summary in by_kind if summary.rows), Summary("all but the long ones", short)]


def table(rows: Sequence[Row]) -> Table:
    shown = Table(*COLUMNS, title="Faults", caption="recovery: from the end of the fault until all is delivered")
    for summary in summaries(rows):
        failed = any(not row["ok"] for row in summary.rows)
        shown.add_row(*summary.cells, style="bold red" if failed else None)
    return shown


def markdown(rows: Sequence[Row], skipped: dict[str, str], soak: Row | None) -> str:
    """RELIABILITY.md, from what was found."""
    last = latest(rows)
    lines = [INTRODUCTION.strip(), "", "## What was found", "", *_facts(last), ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(summary.cells) + " |" for summary in summaries(last)] + [""]
    lines += [f"- Failed: {_said(row)}" for row in last if not row["ok"]]
    lines += [f"- Failed at first, balanced when run again: {_said(row)}" for row in failed_before(rows)]
    lines += [f"- Not run: {name}, since {reason}." for name, reason in skipped.items()]
    lines += ["", "## The faults", "", "| kind | what is done |", "|---|---|"]
    lines += [f"| {kind.name} | {kind.says} |" for kind in KINDS]
    if soak is not None:
        lines += ["", *_soak(soak)]
    return "\n".join(lines) + "\n"


def _said(row: Row) -> str:
    return f"{row['kind']}, round {row['number']} of seed {row['seed']}: {'; '.join(row['books']['problems'])}"


def _facts(rows: Sequence[Row]) -> list[str]:
    dates = sorted({row["at"][:10] for row in rows})
    seeds = Counter(row["seed"] for row in rows)
    stacks = Counter(row["stack"] for row in rows)
    sent, acknowledged = (sum(row["books"][what] for row in rows) for what in ("sent", "acknowledged"))
    loads = [row["load"] for row in rows if "load" in row]
    facts = [
        f"{len(rows)} rounds ({', '.join(f'{count} of seed {seed}' for seed, count in sorted(seeds.items()))}),",
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, on {os.cpu_count()} cores ({platform.machine()}):",
        f"{', '.join(f'{count} on {stack}' for stack, count in sorted(stacks.items()))}.",
        f"{sent} instances sent, {acknowledged} acknowledged.",
        f"Rounds whose books did not balance: {sum(not row['ok'] for row in rows)}.",
    ]
    if loads:
        facts.append(
            f"Load average {min(loads):.0f} to {max(loads):.0f} in the {len(loads)} rounds that noted it: other work "
            "shared the machine, and recovery would be shorter on a quiet one."
        )
    return wrap(" ".join(facts), WIDTH)


def _soak(soak: Row) -> list[str]:
    lines = [
        "## Mixed load",
        "",
        f"    make soak MINUTES={soak['minutes']:g}",
        "",
        *wrap(
            f"{soak['studies']} studies and {soak['instances']} instances in {soak['minutes']:g} minutes, one every "
            f"{soak['minutes'] * 60 / max(1, soak['studies']):.0f} s, by several senders at once; {soak['at'][:10]}. "
            f"All processes of `hlip serve`, SQLite, embedded broker. Ratio: resident memory at the end against that "
            f"after the warm-up of {soak['warm_up_minutes']:g} minutes; each is the median of a tenth of the run.",
            WIDTH,
        ),
        "",
        "| process | MB after warm-up | MB at the end | ratio | open files | at the end | threads | at the end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in soak["processes"].items():
        pairs = [f"{row['warm'][key]:g} | {row['end'][key]:g}" for key in ("open_files", "threads")]
        lines.append(
            f"| {name} | {row['warm']['megabytes']:.0f} | {row['end']['megabytes']:.0f} | {row['ratio']:.2f} "
            f"| {' | '.join(pairs)} |"
        )
    percentiles = ", ".join(f"{name} {value:.1f} s" for name, value in soak["latency_seconds"].items())
    problems = "; ".join(soak["problems"]) or "none"
    return [
        *lines,
        "",
        f"From a study's last instance to its results in the PACS, settling included: {percentiles}.",
        "",
        f"What broke a limit, or did not balance: {problems}.",
        "",
        SOAK_NOTES.strip(),
    ]


SOAK_NOTES = """
The two files that analyse and deliver have more are a second connection to the index (the database and its log): the
first time that an item takes longer than a third of its lease, the lease is renewed beside the work, and the connection
stays in the pool for the next time.

The sandbox, in which series are prepared, had grown from 115 to 129 MB in an hour before that: glibc kept what the
series had freed. Now it gives that back (`GIVE_BACK` in `plugin/sandbox.py`). 66 series in a row, at the same speed:
110 MB, against 115 to 128 without.
"""

INTRODUCTION = """
# Reliability

The tables are written by `make faults WRITE=1`, from its own rounds.

    make faults ROUNDS=200          # goes on where it was stopped; ONLY=kill-web,pacs-down SEED=1 LONG=1 WRITE=1

A round starts the real roles as processes of their own on an empty data folder, sends one to three small synthetic
studies by dcmsend and STOW-RS from several senders (who send again what was not acknowledged, as modalities do), does
one thing to them at a random moment, lets them recover, and waits until all is quiet. Then the books must balance, by
digest of each data set:

- sent = acknowledged, by the senders' own account (dcmsend's log of statuses, the response of STOW-RS);
- acknowledged = on the disk = in the index, every file read again;
- each head study has exactly one current result set, made from all its images, and Orthanc holds these same objects,
  none that no result set has, and every result that counts as delivered; each other study is refused;
- nothing is in progress: no row waits, no lease is held, no arrival lies about, no association counts as open.

*Lost*: acknowledged (or never acknowledged) instances that fail this. *Debris*: half-written files that a kill left,
which nothing reads and `hlip clean --orphans` removes; the bench checks that it does. *Recovery*: from the end of the
fault (the restart of the process, the return of the server, the room on the disk) until everything was sent, reported
and delivered; the row *nothing* is what that takes without any fault. A round's processes are first born by a fork of
one that has loaded its libraries; what is started again after a fault is started from nothing.

Studies settle after a second here, a lease lasts two, failed deliveries are tried again within two: a site's own
settings add to the recovery. A kill is not a power cut: the kernel lives on, and with it what was written and not
synced. That the order is fsync, rename, fsync of the folder, response is held by a test that reads the system calls.

What rounds have found, and what was mended since:

- A worker whose Redis went away between a task and its acknowledgement never took work again: the broker's client went
  on counting the message as being worked on.
- A role that SIGTERM reached in the middle of a wait for that very event waited for itself, and had to be killed.
- On a busy machine (load average 15 to 30 on two cores) all roles killed at once may need more than 90 s to be up and
  done again; such rounds were given more patience and run again.
- On a busy machine the analyse worker took more than 20 s to end, looking through PyTorch for garbage.
"""
