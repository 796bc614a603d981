"""What `hlip-train cohort` shows: counts and reasons, nothing that names a patient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from trainer.manifest import SPLITS

from . import run
from .reasons import sentence

__all__ = ["found", "progress", "refused", "summary"]


@contextmanager
def progress(console: Console) -> Iterator[run.Progress]:
    """A bar for each thing that takes time."""
    columns = (
        TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bars:
        tasks = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


def _table(title: str, rows: Mapping[str, object]) -> Table:
    table = Table("what", "count", title=title)
    table.columns[1].justify = "right"
    for what, count in rows.items():
        table.add_row(what, str(count))
    return table


def found(found: run.Found, wishes: run.Wishes) -> Table:
    """Of a dry run: what would be read, and how many reports and labels are linked."""
    modalities = Counter(series.modality or "?" for job in found.jobs for series in job.study.series)
    rows: dict[str, object] = {f"studies in the {found.kind}": len(found.jobs)}
    rows |= {f"series of modality {modality}": count for modality, count in modalities.most_common()}
    rows["instances"] = sum(
        job.study.num_instances or sum(series.num_instances for series in job.study.series) for job in found.jobs
    )
    rows["phantoms"] = sum(job.study.phantom is not None for job in found.jobs)
    rows["studies with a given report"] = sum(bool(job.reports) for job in found.jobs)
    rows["studies with given labels"] = sum(bool(job.labels) for job in found.jobs)
    return _table("What would be read (nothing was written)", rows | _given(found.counts))


def _given(counts: Mapping[str, Any]) -> dict[str, object]:
    rows: dict[str, object] = {}
    for what, value in counts.items():
        plain = what.replace("_", " ")
        if isinstance(value, Mapping):
            rows |= {f"{plain}: {name.replace('_', ' ')}": count for name, count in value.items() if count}
        else:
            rows[plain] = value
    return rows


def summary(facts: Mapping[str, Any]) -> Table:
    """What is in the cohort."""
    studies, reports = facts["studies"], facts["reports"]
    rows: dict[str, object] = {
        "studies found": studies["found"],
        "studies in the cohort": studies["in_cohort"],
        **{f"  {name}": studies[name] for name in SPLITS},
        "patients": facts["patients"],
        "prepared scans": facts["scans"],
        "series refused": sum(facts["refused_series"].values()),
        "studies without a scan": studies["without_a_scan"],
        **{f"studies with a report {k.replace('_', ' ')}": n for k, n in reports.items() if k.startswith("from_")},
        "studies without a report": reports["studies_without"],
        "sentences": reports["sentences"],
        "identifying passages removed": reports["passages_removed"],
    }
    given = {
        name: facts[name] for name in ("reports_given", "labels_given", "files_that_are_no_dicom") if name in facts
    }
    return _table("The cohort", rows | _given(given))


def refused(facts: Mapping[str, Any]) -> Table:
    """Why series are not in the cohort."""
    table = Table("reason", "series", "what it means", title="Refused (each one in refused.jsonl)")
    for reason, count in facts["refused_series"].items():
        table.add_row(reason, str(count), sentence(reason))
    return table
