"""The commands `hlip archive search | rescore | compare`, added to those that scan."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plugin.cli_archive import app
from plugin.console import Config, plugin_with_index

if TYPE_CHECKING:
    from plugin.index.filters import Filters

__all__ = ["app"]

Since = Annotated[str, typer.Option("--from", help="Of this StudyDate and later, 2026-01-31.")]
Until = Annotated[str, typer.Option("--to", help="Of this StudyDate and earlier.")]
Modality = Annotated[str, typer.Option(help="Only of this modality, such as CT.")]
Age = Annotated[str, typer.Option(help="infant, child, adolescent, adult or senior; or years: 60-80, both included.")]
Station = Annotated[str, typer.Option(help="Only where the StationName holds this.")]
Description = Annotated[str, typer.Option(help="Only where the StudyDescription holds this.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]
BundlePath = Annotated[
    Path | None,
    typer.Option(help="A bundle of the same weights. Without: the one in use.", exists=True, file_okay=False),
]


class Unmentioned(StrEnum):
    """What a finding is that a report does not mention."""

    ABSENT = "absent"
    UNKNOWN = "unknown"


def _filters(**asked: object) -> "Filters":
    from plugin.index.filters import Filters

    return Filters.parse(**asked)  # type: ignore[arg-type]


@app.command()
def search(
    words: Annotated[str, typer.Argument(help="What the studies should show, in words, in quotes.")] = "",
    like: Annotated[str, typer.Option(help="StudyInstanceUID: studies similar to this one.")] = "",
    limit: Annotated[int, typer.Option(help="How many.", min=1, max=1000)] = 20,
    finding: Annotated[
        list[str] | None,
        typer.Option(help="Only with this finding: subdural_hemorrhage (positive) or subdural_hemorrhage>=0.3. Again."),
    ] = None,
    since: Since = "",
    until: Until = "",
    modality: Modality = "",
    age: Age = "",
    station: Station = "",
    description: Description = "",
    series: Annotated[
        bool, typer.Option("--series", help="Search single series (needs search.series_embeddings).")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Also write them: .csv, .json or .parquet.", dir_okay=False)] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="A contact sheet (PNG) of the first 60: slices of each study still kept here.", dir_okay=False
        ),
    ] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Find studies of the archive by words, by a similar study, or by findings; the nearest first. Names no patient.

    Searched are all studies that the model in use has analysed. Words need a bundle with a text tower. What comes first
    is nearest in the model's own terms; that is no proof of a finding, and without any such study something comes
    first as well.

        hlip archive search "acute subdural hematoma with midline shift" --from 2023-01-01 --pictures sheet.png

        hlip archive search --like 1.2.840.1.2.3 --age 60-90

        hlip archive search --finding "midline_shift>=0.3" --finding subdural_hemorrhage --out cases.csv
    """
    from plugin.search import command

    filters = _filters(
        since=since, until=until, modality=modality, age=age, station=station, description=description,
        findings=finding or (),
    )  # fmt: skip
    command.search(
        plugin_with_index(config), words, like=like, filters=filters, limit=limit, of_series=series, out=out,
        pictures=pictures, as_json=as_json,
    )  # fmt: skip


@app.command()
def rescore(
    bundle: BundlePath = None,
    since: Since = "",
    until: Until = "",
    scores: Annotated[
        Path | None, typer.Option(help="Write every study's values: .csv, .json or .parquet.", dir_okay=False)
    ] = None,
    changes: Annotated[
        Path | None, typer.Option(help="Write what changed sides: .csv, .json or .parquet.", dir_okay=False)
    ] = None,
    reissue: Annotated[
        bool, typer.Option("--reissue", help="Have the studies that changed sides analysed and reported again.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --reissue: only say how many.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Score all studies again from their vectors, after prompts, calibration or thresholds changed. No image, no GPU.

    Shows which findings change sides against what was reported. Reports in the PACS stay as they are: a result belongs
    to the digests that made it. Searches use the new scores as soon as the settings name the bundle. With --reissue,
    studies that changed sides, and of which the prepared scans are still kept, get a new revision behind all other
    work; restart the workers with the new bundle first.

        hlip model prompts models/head-ct my-findings.toml --out models/new; hlip archive rescore --bundle models/new
    """
    from plugin.search import command

    command.rescore(
        plugin_with_index(config), bundle, filters=_filters(since=since, until=until), scores_path=scores,
        changes_path=changes, reissue=reissue, dry_run=dry_run, as_json=as_json,
    )  # fmt: skip


@app.command()
def compare(
    reports: Annotated[
        Path,
        typer.Argument(
            help="CSV, TSV or JSON lines: StudyInstanceUID or AccessionNumber, and `report` (or findings, impression).",
            exists=True,
            dir_okay=False,
        ),
    ],
    bundle: BundlePath = None,
    unmentioned: Annotated[
        Unmentioned, typer.Option(help="What a finding is that a report does not mention.")
    ] = Unmentioned.ABSENT,
    out: Annotated[
        Path | None, typer.Option(help="Write the disagreements: .csv, .json or .parquet.", dir_okay=False)
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="A contact sheet (PNG) of the 60 worst disagreements.", dir_okay=False)
    ] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Compare the model with what the reports say: confusion table, AUC with intervals, and the disagreements.

    Reports are read by rules (English words, with denial and doubt), and rules misread some: look at the sentence that
    is written beside each disagreement. The file of disagreements quotes reports, so keep it as you keep those.

        hlip archive compare reports.csv --out disagreements.csv --pictures disagreements.png
    """  # fmt: skip
    from plugin.search import command

    command.compare(
        plugin_with_index(config), reports, bundle, unmentioned=unmentioned.value, out=out, pictures=pictures,
        as_json=as_json,
    )  # fmt: skip
