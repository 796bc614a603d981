"""The fault bench.

    make faults [ROUNDS=200] [ONLY=kill-web,pacs-down] [SEED=1] [LONG=1] [WRITE=1]

Rounds go in turn through the kinds of fault, a quarter to half a minute each. What was found is a JSON line a round in
the folder --out, so a run that was stopped goes on where it was, and a larger ROUNDS adds to it. A round whose books do
not balance keeps its folder, with the logs of all processes, and is run again the next time. The exit code is 1 when
there is one.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .journal import Journal, latest, markdown, plan, table
from .kinds import BY_NAME, KINDS, Kind
from .rounds import run_round
from .world import World

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / ".cache" / "faults"
SOAK = ROOT / ".cache" / "soak" / "soak.json"
PAGE = ROOT / "deploy" / "RELIABILITY.md"
MOST_ERRORS = 3
console = Console(width=120)


def parse() -> argparse.Namespace:
    known = "\n".join(f"  {kind.name:22}{kind.says}{' (LONG=1)' if kind.long else ''}" for kind in KINDS)
    parser = argparse.ArgumentParser(
        prog="make faults",
        description=__doc__,
        epilog=f"kinds:\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=200, help="how many in all, those of earlier runs included")
    parser.add_argument("--only", default="", help="kinds, separated by commas; all without")
    parser.add_argument("--seed", type=int, default=1, help="decides what chance decides: another one, other rounds")
    parser.add_argument("--long", action="store_true", help="also outages of minutes, two rounds of each")
    parser.add_argument("--patience", type=float, default=1.0, help="a factor on all waits, for slow machines")
    parser.add_argument("--out", type=Path, default=OUT, help="where phantoms, rounds and the journal lie")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)} from the whole journal")
    options = parser.parse_args()
    options.only = [name for name in options.only.split(",") if name]
    if unknown := sorted(set(options.only) - BY_NAME.keys()):
        parser.error(f"no kind {', '.join(unknown)}; --help shows them")
    return options


def chosen(options: argparse.Namespace) -> tuple[list[Kind], dict[str, str]]:
    """The kinds that are asked for and possible here, and why the others are not."""
    wanted = [kind for kind in KINDS if kind.name in options.only or not options.only]
    if not options.only and not options.long:
        wanted = [kind for kind in wanted if not kind.long]
    reasons = {kind.name: kind.impossible() for kind in wanted}
    return [kind for kind in wanted if not reasons[kind.name]], {name: why for name, why in reasons.items() if why}


def rounds_to_run(options: argparse.Namespace, kinds: list[Kind], journal: Journal) -> list[tuple[Kind, int]]:
    done = journal.rows(options.seed)
    short, long = ([kind for kind in kinds if kind.long is is_long] for is_long in (False, True))
    todo = plan(short, options.rounds, done) if short else []
    return todo + (plan(long, min(options.rounds, 2 * len(long)), done) if long else [])


def run(options: argparse.Namespace, todo: list[tuple[Kind, int]], journal: Journal) -> int:
    """How many rounds could not be run to their end."""
    errors = 0
    columns = (TextColumn("faults"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
               TimeRemainingColumn(), TextColumn("{task.description}"))  # fmt: skip
    world = World(options.out, patience=options.patience)
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=len(todo))
            for kind, number in todo:
                progress.update(task, description=kind.name)
                try:
                    record = run_round(world, kind, number, seed=options.seed)
                except (OSError, TimeoutError, ValueError) as error:
                    errors += 1
                    progress.console.print(f"{kind.name} {number}: no round: {type(error).__name__}: {error}")
                    if errors >= MOST_ERRORS:
                        break
                    continue
                journal.add(record)
                said = "balanced" if record.ok else "; ".join(record.books.problems)
                progress.console.print(
                    f"{kind.name} {number} ({record.stack}): {'; '.join(record.fault) or 'no fault'}: {said}, "
                    f"recovered in {record.recovery_seconds:.1f} s",
                    style=None if record.ok else "bold red",
                    soft_wrap=True,
                )
                progress.advance(task)
    finally:
        world.close()
    return errors


def main() -> int:
    options = parse()
    os.umask(0o022)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    kinds, skipped = chosen(options)
    for name, reason in skipped.items():
        console.print(f"{name} is left out: {reason}")
    journal = Journal(options.out)
    todo = rounds_to_run(options, kinds, journal)
    errors = run(options, todo, journal) if todo else 0
    rows = journal.rows()
    if not rows:
        console.print("No round was run.")
        return 1
    console.print(table(latest(rows)))
    if options.write:
        soak = json.loads(SOAK.read_text()) if SOAK.exists() else None
        PAGE.write_text(markdown(rows, skipped, soak))
        console.print(f"written to {PAGE.relative_to(ROOT)}")
    bad = [row for row in latest(rows) if not row["ok"]]
    for row in bad:
        console.print(f"[red]{row['kind']} {row['number']}, seed {row['seed']}:[/red] {row['books']['problems']}")
    return 1 if bad or errors else 0


if __name__ == "__main__":
    sys.exit(main())
