"""The commands `hlip archive ...`: the past of a PACS, scanned and asked."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from plugin.bootstrap import Plugin
from plugin.console import Config, console, errors, plugin_with_index

if TYPE_CHECKING:
    from plugin.index.archive import ScanView
    from plugin.sections_archive import ArchiveSettings

ScanName = Annotated[str | None, typer.Argument(help="The scan's name. Without: the latest.")]
Csv = Annotated[Path | None, typer.Option("--csv", help="Write a row for each study into this file.")]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Run the model over the past of a PACS without hurting the clinic, and ask what it found.

`hlip archive scan --dry-run` counts what would be scanned; `hlip archive scan` does it, beside a running `hlip serve`,
behind everything that arrives. Where the PACS is, is in the settings, section [archive].""",
)


class Via(StrEnum):
    """How studies are found and fetched."""

    AUTO = "auto"
    DICOMWEB = "dicomweb"
    MOVE = "move"
    GET = "get"


@app.command()
def scan(
    first_date: Annotated[str, typer.Option("--from", help="Of this StudyDate and later, 2024-01-31.")] = "",
    last_date: Annotated[str, typer.Option("--to", help="Of this StudyDate and earlier.")] = "",
    modality: Annotated[str, typer.Option(help="Only series of this modality are fetched.")] = "CT",
    body_part: Annotated[str, typer.Option(help="Series whose BodyPartExamined fits this, such as head.")] = "",
    description: Annotated[str, typer.Option(help="Studies whose StudyDescription fits this.")] = "",
    series_description: Annotated[str, typer.Option(help="Series whose SeriesDescription fits this.")] = "",
    station: Annotated[str, typer.Option(help="Series whose StationName fits this.")] = "",
    patients: Annotated[
        Path | None, typer.Option(help="Only of these patients: a file with a PatientID a line.", dir_okay=False)
    ] = None,
    studies: Annotated[
        Path | None,
        typer.Option(
            help="Only these studies: a CSV file with a column StudyInstanceUID, or a UID a line.", dir_okay=False
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="What the scan is called. Without: scan-1, scan-2, ...")] = "",
    via: Annotated[
        Via, typer.Option(help="DICOMweb, or DIMSE with C-MOVE or C-GET. auto: what the settings name.")
    ] = Via.AUTO,
    store: Annotated[
        bool, typer.Option("--store", help="Also send the results to the destinations. Without: only into the index.")
    ] = False,
    keep_instances: Annotated[
        bool, typer.Option("--keep-instances", help="Keep the fetched images; the settings' [retention] still holds.")
    ] = False,
    keep_prepared: Annotated[
        bool, typer.Option("--keep-prepared", help="Keep the prepared scans (a few MB a study) for another model.")
    ] = False,
    not_during: Annotated[
        list[str] | None,
        typer.Option(help="Begin no study then: 07:00-19:00, or Mon-Fri 07:00-19:00. Again for several."),
    ] = None,
    studies_per_hour: Annotated[float | None, typer.Option(help="No more than so many; 0: no limit.", min=0)] = None,
    megabytes_per_second: Annotated[float | None, typer.Option(help="No more than this; 0: no limit.", min=0)] = None,
    parallel: Annotated[int | None, typer.Option(help="Studies that are fetched at once.", min=1)] = None,
    look_ahead: Annotated[
        int | None, typer.Option(help="Studies that may be here at once, fetched and not analysed yet.", min=1)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count, and estimate what it takes. Fetches and writes nothing.")
    ] = False,
    config: Config = None,
) -> None:
    """Analyse studies of the past: found in the PACS, fetched, analysed behind the clinic's work, removed again.

    The texts for --body-part, --description, --series-description and --station are regular expressions in any case;
    what the PACS does not tell excludes nothing. Killed or stopped (Ctrl-C), the same command goes on where it was.
    Studies that are in the index already are not analysed twice. Needs a running `hlip serve` (or its roles: schedule,
    work, as units or containers) on the same data folder.

        hlip archive scan --from 2023-01-01 --to 2023-12-31 --body-part head --dry-run

        hlip archive scan --from 2023-01-01 --to 2023-12-31 --body-part head --not-during "Mon-Fri 07:00-19:00"

        hlip archive scan --studies trauma.csv --store
    """
    from plugin.archive import scan as scans
    from plugin.archive.selection import Selection

    selection = Selection.from_options(
        first_date=first_date,
        last_date=last_date,
        modality=modality,
        body_part=body_part,
        description=description,
        series_description=series_description,
        station=station,
        patients=patients,
        studies=studies,
    )
    plugin = plugin_with_index(config)
    given = {
        "retrieve": None if via is Via.AUTO else via.value,
        "not_during": not_during or None,
        "studies_per_hour": studies_per_hour,
        "megabytes_per_second": megabytes_per_second,
        "parallel": parallel,
        "look_ahead": look_ahead,
    }
    options = {key: value for key, value in given.items() if value is not None}
    rules = _with(plugin, options)
    if dry_run:
        from plugin.archive import report as reports
        from plugin.roles import until_stopped

        console.print(reports.estimate(plugin, rules, selection, console=errors, stop=until_stopped()))
        return
    wishes = scans.Wishes(store=store, keep_instances=keep_instances, keep_prepared=keep_prepared, options=options)
    _run(plugin, rules, scans.open_scan(plugin.database, selection, wishes, name=name))


@app.command()
def resume(
    name: ScanName = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Also try again what failed, or was gone from the PACS.")
    ] = False,
    config: Config = None,
) -> None:
    """Go on with a scan that was paused, stopped or killed. Nothing is done twice."""
    from plugin.index import archive as index

    plugin = plugin_with_index(config)
    found = index.find_scan(plugin.database, name)
    if failed:
        console.print(f"{index.retry(plugin.database, found.id)} studies are tried again.")
    index.resume(plugin.database, found.id)
    _run(plugin, _with(plugin, found.options), index.find_scan(plugin.database, found.name))


@app.command()
def pause(name: ScanName = None, config: Config = None) -> None:
    """Let a running scan end after the studies that it is fetching. `hlip archive resume` goes on."""
    from plugin.index import archive as index

    plugin = plugin_with_index(config)
    found = index.find_scan(plugin.database, name)
    index.pause(plugin.database, found.id)
    console.print(f"{found.name} is paused: go on with `hlip archive resume {found.name}`.")


@app.command()
def report(
    name: ScanName = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with every study, for programs.")] = False,
    csv: Csv = None,
    config: Config = None,
) -> None:
    """Show how far a scan is: what was analysed, refused and why, skipped, failed. Names no patient."""
    from plugin.archive import report as reports

    plugin = plugin_with_index(config)
    found = reports.read(plugin, name)
    if csv is not None:
        reports.write_csv(found, csv)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        console.print(reports.page(found))


def _with(plugin: Plugin, options: dict[str, Any]) -> "ArchiveSettings":
    """The settings' section [archive] with what the options say, checked like the file."""
    rules = plugin.settings.archive
    return type(rules).model_validate({**dict(rules), **options})


def _run(plugin: Plugin, rules: "ArchiveSettings", found: "ScanView") -> None:
    """Run a scan to its end; what is left says its last line, and the exit code 3 that it is not finished."""
    from plugin.archive import report as reports
    from plugin.archive import scan as scans
    from plugin.roles import until_stopped

    end = scans.run(plugin, rules, found, console=errors, stop=until_stopped())
    console.print(reports.page(reports.read(plugin, found.name)))
    if end.why:
        errors.print(f"[yellow]{escape(end.why)}[/yellow]", highlight=False)
        raise typer.Exit(end.exit_code)
