"""What `hlip` shows in a terminal."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from plugin.bootstrap import Plugin
from plugin.index.overview import overview
from plugin.web.words import clock

if TYPE_CHECKING:
    from plugin.folder import Outcome
    from plugin.folder import Progress as Report

STYLES = {
    "reported": "green", "delivered": "green", "prepared": "green",
    "failed": "red", "refused": "yellow", "held": "yellow",
    "analysing": "cyan", "preparing": "cyan", "sending": "cyan", "receiving": "blue", "ready": "blue",
    "waiting": "blue", "ignored": "dim", "obsolete": "dim",
    "withdrawn": "yellow", "deleted": "dim",
}  # fmt: skip


def print_welcome(console: Console, plugin: Plugin) -> None:
    """What was started, where, and with which model."""
    settings = plugin.settings
    listener = settings.listener
    where = [row.name for row in settings.destinations] or [f"{plugin.spool.results} (no destination set)"]
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("listener", f"{listener.ae_title} at {listener.host}:{listener.port}"),
        ("web", f"http://{settings.web.host}:{settings.web.port}{'/dicom-web (STOW-RS)' if settings.web.stow else ''}"),
        ("data folder", str(plugin.spool.folder)),
        ("model", f"{plugin.bundle.name} ({plugin.bundle.status.upper()})"),
        ("results to", ", ".join(where)),
    ):
        table.add_row(f"[bold]{name}[/bold]", escape(value))
    console.print(table)
    if settings.destinations and plugin.holds_results:
        console.print(
            "[yellow]Results are held back: this model is not trained on patients. To send them all the same, set "
            "delivery.send_results_of_untrained_or_phantom_models = true.[/yellow]"
        )
    console.print("[bold]Research software, not for diagnosis.[/bold] Ctrl-C stops it.")


@contextmanager
def progress(console: Console) -> Iterator["Report"]:
    """A bar for each kind of step; what it yields is called with (what, done, how many)."""
    columns = (
        TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks or bars.tasks[tasks[what]].finished:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield report


def read_status(plugin: Plugin, *, study_uids: Sequence[str], limit: int) -> dict[str, Any]:
    """The index's overview, with what lies in the spool."""
    seen = overview(plugin.database, study_uids=study_uids, limit=limit, findings=True)
    return {"waiting_to_be_indexed": len(plugin.spool.arrivals(100_000)), "disk": read_disk(plugin), **seen}


def read_disk(plugin: Plugin) -> dict[str, Any]:
    """Room in the data folder, and the marks at which C-STORE and workers stop."""
    usage = shutil.disk_usage(plugin.spool.folder)
    marks = {"c_store": plugin.spool.room, "workers": plugin.spool.room_for_work}
    return {
        "free_bytes": usage.free,
        "total_bytes": usage.total,
        **{
            name: {"stops_below": room.min_free_bytes, "resumes_at": room.resume_bytes, "state": room.state(usage.free)}
            for name, room in marks.items()
        },
    }


def _state(state: str, reason: str | None = None) -> Text:
    return Text(f"{state}: {reason}" if reason else state, style=STYLES.get(state, ""))


def _counts(name: str, counts: dict[str, int]) -> Text:
    text = Text(f"{name}: ", style="bold")
    for state, count in counts.items():
        text.append(f"{count} {state}  ", style=STYLES.get(state, ""))
    return text


def status_page(status: dict[str, Any]) -> Group:
    """The latest studies with their series and deliveries, and the counts; UIDs whole, to be copied."""
    studies = (line for study in status["studies"] for line in _study_lines(study))
    counts = [_counts(kind, status[f"{kind}_by_state"]) for kind in ("studies", "series", "deliveries", "signals")]
    waiting = Text(f"{status['instances']} instances; {status['waiting_to_be_indexed']} wait to be indexed")
    return Group(*studies, *counts, waiting, *_disk_lines(status["disk"]))


def _disk_lines(disk: dict[str, Any]) -> Iterator[Text]:
    yield Text(f"disk: {decimal(disk['free_bytes'])} free of {decimal(disk['total_bytes'])}")
    stops = {
        "c_store": "C-STORE is refused with 0xA700 (out of resources)",
        "workers": "prepare and analyse wait",
    }
    for name, what in stops.items():
        mark = disk[name]
        resumes = f"until {decimal(mark['resumes_at'])} are free"
        if mark["state"] == "stopped":
            below = f"less than {decimal(mark['stops_below'])} are free on the disk"
            yield Text(f"   {what}: {below}; {resumes}", style="red")
        elif mark["state"] == "recovering":
            yield Text(f"   {what}, if the disk was fuller before, {resumes}", style="yellow")


def _study_lines(study: dict[str, Any]) -> Iterator[Text]:
    yield Text.assemble((study["study_instance_uid"], "bold"), "  ", _state(study["state"], study["reason"]))
    revision = f", revision {study['revision']}" if study["revision"] else ""
    yield Text(f"   last image {clock(study['last_image_at'])}{revision}", style="dim")
    for gone in study["removals"]:
        yield Text(f"   {gone['kind']} removed {clock(gone['at'])}: {gone['files']} files", style="dim")
    for series in study["series"]:
        number = "-" if series["series_number"] is None else series["series_number"]
        what = f"   {series['modality'] or '?'} {number}, {series['instances']} instances: "
        yield Text.assemble(what, _state(series["state"], series["reason"]))
    revisions = study["revisions"]
    if revisions and revisions[-1]["withdrawn"]:
        yield Text.assemble("   results ", _state("withdrawn", revisions[-1]["withdrawn"]))
    notes = (note for revision in revisions for note in revision["rejection_notes"])
    for result in [*(revisions[-1]["results"] if revisions else ()), *notes]:
        for sent in result["deliveries"]:
            what = f"   {result['description']} to {sent['destination']}: "
            yield Text.assemble(what, _state(sent["state"], sent["detail"] or None))
    for signal in study["signals"]:
        what = f"   signal to {signal['receiver']}, revision {signal['revision']}, {signal['status']}: "
        yield Text.assemble(what, _state(signal["state"], signal["detail"] or None))
    yield Text("")


def print_outcome(console: Console, outcome: "Outcome") -> None:
    """What `hlip analyze` found in one study."""
    console.rule(f"study {outcome.study.study_instance_uid}")
    for series in outcome.study.series:
        line = Text(f"series {series.series_number}, {len(series.instances)} instances: ")
        line.append_text(_state(series.state, series.reason))
        if series.notes:
            line.append(f" ({'; '.join(series.notes)})", style="dim")
        console.print(line)
    if outcome.analysis is None:
        console.print(Text(f"not analysed: {outcome.reason}", style="yellow"))
        return
    console.print(findings_table(outcome.analysis.findings, outcome.analysis.report.bundle.status))
    for file in outcome.analysis.files:
        console.print(Text(f"{outcome.folder / file.name}"))


def findings_table(findings: Sequence[dict[str, Any]], status: str) -> Table:
    """Findings with what was found for each; an uncalibrated score is never a probability."""
    title = "AI findings, research software, NOT FOR DIAGNOSIS"
    if status != "trained":
        title = f"{status.upper()} MODEL: the scores mean nothing for patients. {title}"
    table = Table("finding", "score", "probability", "threshold", "", title=title)
    for row in findings:
        probability = "-" if row["probability"] is None else f"{row['probability']:.0%}"
        threshold = "none set" if row["threshold"] is None else f"{row['threshold']:.3g}"
        says = Text("POSITIVE", style="bold red") if row["positive"] else Text("")
        table.add_row(row["name"], f"{row['score']:.3f}", probability, threshold, says)
    return table
