"""What the commands `hlip archive search | rescore | compare` do and show."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, track
from rich.table import Table

from hlip_core.report_labels import ReportWords
from plugin.index import rescoring
from plugin.index import search as index_search
from plugin.index.filters import Filters, SearchError
from plugin.index.search import Space
from plugin.search import agreement, export
from plugin.search.agreement import Agreement
from plugin.search.pictures import Tile, contact_sheet
from plugin.search.rescore import Difference
from plugin.search.rescore import rescore as score_again
from plugin.search.scoring import Scoring
from plugin.search.searcher import Found, Hit, Searcher

if TYPE_CHECKING:
    from hlip_core.bundle import Bundle
    from plugin.bootstrap import Plugin

console = Console()
errors = Console(stderr=True)

REISSUED_AT = 80
"""The priority of studies that are analysed again: behind all that arrives."""
SHOWN = 20
STATUS = {
    "untrained": "The model was never trained: its scores mean nothing.",
    "phantom": "The model was trained on synthetic phantoms only: its scores say nothing reliable about patients.",
}
HIT_COLUMNS = (
    "rank", "score", "study_instance_uid", "series_instance_uid", "study_date", "study_description", "modality",
    "station_name", "patient_age", "positive", "values",
)  # fmt: skip


def _track(things: Sequence[Any], what: str) -> Iterable[Any]:
    return track(things, what, console=errors)


# ---- search ------------------------------------------------------------------------------------------------


def search(
    plugin: "Plugin",
    words: str,
    *,
    like: str,
    filters: Filters,
    limit: int,
    of_series: bool,
    out: Path | None,
    pictures: Path | None,
    as_json: bool,
) -> None:
    """Search, show a table, and write what was asked for."""
    if out is not None:
        export.check_kind(out)
    searcher = Searcher(plugin, background=False)
    level: Literal["study", "series"] = "series" if of_series else "study"
    searcher.build(_track, level=level)
    found = searcher.search(words, like=like, filters=filters, limit=limit, level=level)
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    else:
        _show_hits(found)
    if out is not None:
        export.write_rows(out, (_flat(hit) for hit in found.hits), HIT_COLUMNS)
    if pictures is not None:
        tiles = [_tile(hit, filters) for hit in found.hits]
        title = f"Archive search: {found.question}"
        contact_sheet(plugin, searcher.space(), tiles, pictures, title=title, caution=found.caution)


def _flat(hit: Hit) -> dict[str, Any]:
    """One row of plain values."""
    values = "; ".join(f"{label}={value:.4f}" for label, value in hit.values.items())
    return {**asdict(hit), "positive": "; ".join(hit.positive), "values": values}


def _tile(hit: Hit, filters: Filters) -> Tile:
    shown = [*(asked.label for asked in filters.findings), *hit.positive]
    values = ", ".join(f"{label} {value:.2f}" for label, value in hit.values.items())
    first = f"{hit.rank}.  {hit.score:.3f}  {_date(hit.study_date)}  {hit.study_description}"
    return Tile(hit.study_instance_uid, (first, values or hit.study_instance_uid), shown[0] if shown else "")


def _show_hits(found: Found) -> None:
    table = Table("", "score", "date", "description", "modality", "age", "station", "findings", "StudyInstanceUID")
    for hit in found.hits:
        age = "" if hit.patient_age is None else f"{hit.patient_age:.0f}"
        values = "\n".join(
            f"{'[bold]' if label in hit.positive else '[dim]'}{label} {value:.2f}[/]"
            for label, value in hit.values.items()
        )
        uid = hit.study_instance_uid + (f"\nseries {hit.series_instance_uid}" if hit.series_instance_uid else "")
        cells = (_date(hit.study_date), escape(hit.study_description), hit.modality, age, escape(hit.station_name))
        table.add_row(str(hit.rank), f"{hit.score:.3f}", *cells, values, uid)
    console.print(table)
    how = "every one compared" if found.exact else "by an index that finds nearly all of the nearest"
    console.print(f"{found.searched} vectors searched in {found.seconds:.2f} s ({found.engine}, {how}).")
    console.print(f"[yellow]{found.caution}[/yellow]")


def _date(study_date: str) -> str:
    return f"{study_date[:4]}-{study_date[4:6]}-{study_date[6:]}" if len(study_date) == 8 else study_date


# ---- rescore -----------------------------------------------------------------------------------------------


def _model(plugin: "Plugin", path: Path | None) -> tuple["Bundle", Space, Scoring]:
    """The bundle to score with, where its vectors are. Raises SearchError where the archive has none of its encoder."""
    from hlip_core.bundle import load_bundle

    bundle = plugin.bundle if path is None else load_bundle(path)
    space = Space(bundle.encoder_digest, bundle.digest)
    if not index_search.count(plugin.database, space):
        raise SearchError(
            f"the archive holds no vector of the encoder of {bundle.name}: other prompts and calibrations can be "
            "scored from what is kept, other weights or another preprocessing need the images again"
        )
    return bundle, space, Scoring(bundle, plugin.settings.thresholds)


class _Kept:
    """Every study's values, as they are scored."""

    def __init__(self, bundle: "Bundle") -> None:
        self.digests = {"prompts_digest": bundle.prompts_digest, "calibration_digest": bundle.calibration_digest}
        self.labels = bundle.findings.labels
        self._parts: list[tuple[list[str], list[str], Any]] = []

    @property
    def columns(self) -> list[str]:
        return ["study_instance_uid", "study_date", *self.labels, *self.digests]

    def take(self, part: rescoring.ReportedPart, values: Any) -> None:
        self._parts.append((part.study_instance_uids, part.study_dates, values.astype("f4")))

    def rows(self) -> Iterator[dict[str, Any]]:
        for uids, dates, values in self._parts:
            for uid, date, row in zip(uids, dates, values, strict=True):
                named = {label: round(float(value), 6) for label, value in zip(self.labels, row, strict=True)}
                yield {"study_instance_uid": uid, "study_date": date, **named, **self.digests}


def rescore(
    plugin: "Plugin",
    path: Path | None,
    *,
    filters: Filters,
    scores_path: Path | None,
    changes_path: Path | None,
    reissue: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Score all again, show what changed sides, and write and do what was asked for."""
    for asked in (scores_path, changes_path):
        if asked is not None:
            export.check_kind(asked)
    bundle, space, scoring = _model(plugin, path)
    if reissue and bundle.digest != plugin.bundle.digest:
        raise SearchError("--reissue needs workers that run this bundle: name it in the settings (model.bundle) first")
    kept = _Kept(bundle) if scores_path else None
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors) as bars:
        task = bars.add_task("scoring", total=index_search.count(plugin.database, space))

        def take(part: rescoring.ReportedPart, scores: Any) -> None:
            bars.advance(task, len(part.study_instance_uids))
            if kept is not None:
                kept.take(part, scores.values)

        difference = score_again(plugin.database, space, scoring, filters=filters, take=take)
    _show_difference(difference, bundle, as_json=as_json)
    if kept is not None and scores_path is not None:
        export.write_rows(scores_path, kept.rows(), kept.columns)
    if changes_path is not None:
        sides = ("study_instance_uid", "study_date", "label", "was", "now", "positive")
        export.write_rows(changes_path, (vars(side) for side in difference.sides), sides)
    if reissue:
        _reissue(plugin, difference.changed_studies, dry_run=dry_run)


def _reissue(plugin: "Plugin", uids: Sequence[str], *, dry_run: bool) -> None:
    if dry_run:
        errors.print(f"{len(uids)} studies changed sides; those whose prepared scans are kept would be analysed again.")
        return
    due = rescoring.make_due(plugin.database, uids, priority=REISSUED_AT)
    errors.print(
        f"{due} studies will be analysed and reported again; {len(uids) - due} are in progress or their prepared scans "
        "are gone, and stay as they are."
    )


def _show_difference(difference: Difference, bundle: "Bundle", *, as_json: bool) -> None:
    rows = [
        {
            "label": label,
            "reported": difference.reported[label],
            "now": difference.now[label],
            "became_positive": difference.changes(label)[0],
            "ceased_to_be_positive": difference.changes(label)[1],
            "not_reported_on": difference.new[label],
        }
        for label in difference.labels
    ]
    if as_json:
        digests = {"prompts_digest": bundle.prompts_digest, "calibration_digest": bundle.calibration_digest}
        changed = [vars(side) for side in difference.sides]
        print(json.dumps({"studies": difference.studies, **digests, "findings": rows, "changes": changed}, indent=2))
        return
    table = Table("finding", "reported positive", "positive now", "became", "ceased", "not reported on")
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)
    for side in difference.sides[:SHOWN]:
        was = "-" if side.was is None else f"{side.was:.3f}"
        now = f"{side.now:.3f} {'positive' if side.positive else 'negative'}"
        console.print(
            f"{side.study_instance_uid}  {_date(side.study_date)}  {side.label}: {was} -> {now}", soft_wrap=True
        )
    if len(difference.sides) > SHOWN:
        console.print(f"... and {len(difference.sides) - SHOWN} more: write them with --changes FILE")
    console.print(
        f"{difference.studies} studies scored with {bundle.name} (prompts {bundle.prompts_digest[:12]}); "
        f"{len(difference.sides)} findings of {len(difference.changed_studies)} studies changed sides. "
        "What was reported stands."
    )
    if bundle.status != "trained":
        console.print(f"[yellow]{STATUS[bundle.status]}[/yellow]")


# ---- compare -----------------------------------------------------------------------------------------------


def compare(
    plugin: "Plugin",
    reports: Path,
    path: Path | None,
    *,
    unmentioned: agreement.Unmentioned,
    out: Path | None,
    pictures: Path | None,
    as_json: bool,
) -> None:
    """Compare with reports, show the tables, and write what was asked for."""
    if out is not None:
        export.check_kind(out)
    texts = agreement.read_reports(reports)
    bundle, space, scoring = _model(plugin, path)
    found = agreement.compare(
        plugin.database, space, scoring, texts, words=ReportWords.from_toml(), unmentioned=unmentioned
    )
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        _show_agreement(found, bundle)
    if out is not None:
        columns = ("study_instance_uid", "study_date", "label", "model", "value", "report", "sentence")
        export.write_rows(out, (asdict(row) for row in found.disagreements), columns)
    if pictures is not None:
        tiles = [
            Tile(
                row.study_instance_uid,
                (f"{row.label}: model {row.model} ({row.value:.2f}), report {row.report}", row.sentence),
                row.label,
            )
            for row in found.disagreements
        ]
        title = f"Model against reports: the worst of {len(tiles)} disagreements"
        contact_sheet(plugin, space, tiles, pictures, title=title, caution=STATUS.get(bundle.status, ""))


def _show_agreement(found: Agreement, bundle: "Bundle") -> None:
    names = ("present", "absent", "uncertain", "TP", "FP", "FN", "TN", "sensitivity", "specificity", "AUC")
    table = Table("finding", *names)
    for row in found.findings:
        counts = (row.true_positive, row.false_positive, row.false_negative, row.true_negative)
        table.add_row(
            row.label,
            *map(str, (row.present, row.absent, row.uncertain)),
            *("" if count is None else str(count) for count in counts),
            *map(_measure, (row.sensitivity, row.specificity, row.auc)),
        )
    console.print(table)
    console.print(
        f"{found.reports} reports, {found.linked} studies linked, {len(found.disagreements)} disagreements "
        f"({found.ambiguous} accession numbers with several reports were not used). Brackets: 95 % intervals."
    )
    if any(row.true_positive is None for row in found.findings):
        console.print("A finding without a threshold is neither positive nor negative: set [thresholds] to count it.")
    caution = STATUS.get(bundle.status, "Research software, not for diagnosis.")
    console.print(f"[yellow]{caution} Reports were read by rules, which misread some.[/yellow]")


def _measure(values: tuple[float, float, float] | None) -> str:
    return "" if values is None else f"{values[0]:.2f} ({values[1]:.2f}-{values[2]:.2f})"
