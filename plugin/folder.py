"""`hlip analyze`: a folder of DICOM in, result objects and findings.json out; no server, the same steps."""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from hlip_core.errors import Refused
from hlip_core.headers import MALFORMED
from hlip_core.reasons import Reason
from hlip_core.volume import PreparedScan
from plugin.analysis import (
    Analysis,
    NothingToSay,
    analyse_study,
    check_patient,
    check_scope,
    fates,
    is_result_name,
    read_source,
    write_files,
)
from plugin.arrival import Arrival, read_arrival
from plugin.bootstrap import Plugin
from plugin.lifecycle import SeriesState
from plugin.preparation import Job
from plugin.sandbox import Died
from plugin.study import InstanceView, SeriesView, StudyView

FINDINGS = "findings.json"

Progress = Callable[[str, int, int], None]
"""Called with (what is done, how many are done, how many there are)."""


@dataclass(frozen=True)
class Outcome:
    """What became of one study: an analysis, or the reason why there is none."""

    study: StudyView
    analysis: Analysis | None
    reason: str | None
    folder: Path


def dicom_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files named, and those in the folders named, each once, in a fixed order."""
    seen: set[Path] = set()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.name != "DICOMDIR" and file.resolve() not in seen:
                seen.add(file.resolve())
                yield file


def read_folder(paths: Iterable[Path], progress: Progress) -> dict[str, list[Arrival]]:
    """The instances by StudyInstanceUID; files that are none are left out."""
    files = list(dicom_files(paths))
    studies: dict[str, dict[tuple[str, str], Arrival]] = {}
    for done, file in enumerate(files, 1):
        with suppress(*MALFORMED):
            arrival = read_arrival(file)
            of_study = studies.setdefault(arrival.study_instance_uid, {})
            of_study.setdefault((arrival.series_instance_uid, arrival.sop_instance_uid), arrival)
        progress("reading headers", done, len(files))
    return {uid: list(instances.values()) for uid, instances in studies.items()}


def _view(study_uid: str, arrivals: list[Arrival]) -> StudyView:
    by_series: dict[str, list[Arrival]] = {}
    for arrival in arrivals:
        by_series.setdefault(arrival.series_instance_uid, []).append(arrival)
    series = (
        SeriesView(
            study_instance_uid=study_uid,
            series_instance_uid=uid,
            modality=of_series[0].text("Modality", 64),
            series_number=of_series[0].series_number,
            series_description=of_series[0].text("SeriesDescription"),
            state=SeriesState.READY if any(a.is_image for a in of_series) else SeriesState.IGNORED,
            instances=tuple(
                sorted(
                    (
                        InstanceView(a.sop_class_uid, a.sop_instance_uid, a.is_content, a.patient_digest)
                        for a in of_series
                    ),
                    key=lambda instance: instance.sop_instance_uid,
                )
            ),
        )
        for uid, of_series in by_series.items()
    )
    return StudyView(study_uid, tuple(sorted(series, key=lambda s: s.order)))


def analyse_folder(
    plugin: Plugin, paths: Iterable[Path], out: Path, *, device: str, progress: Progress
) -> Iterator[Outcome]:
    """Analyse every study found; its objects and findings.json go to ``out/<StudyInstanceUID>/``."""
    studies = read_folder(paths, progress)
    with closing(plugin.sandbox):
        for study_uid, arrivals in studies.items():
            with tempfile.TemporaryDirectory(prefix="hlip-analyze-") as scratch:
                yield _analyse(plugin, _view(study_uid, arrivals), arrivals, Path(scratch), out, device, progress)


def _analyse(
    plugin: Plugin,
    study: StudyView,
    arrivals: list[Arrival],
    scratch: Path,
    out: Path,
    device: str,
    progress: Progress,
) -> Outcome:
    folder = out / study.study_instance_uid
    scans: dict[str, PreparedScan] = {}
    headers: dict[str, Path] = {}
    prepared: list[SeriesView] = []
    for done, series in enumerate(study.series, 1):
        view, scan = _prepare(plugin, series, arrivals, scratch, headers)
        prepared.append(view)
        if scan is not None:
            scans[series.series_instance_uid] = scan
        progress("preparing series", done, len(study.series))
    study = replace(study, series=tuple(prepared))
    fate_rows = fates(study, scans, plugin.bundle)
    try:
        check_patient(study)
        check_scope(fate_rows)
        source = read_source(study, headers)
    except NothingToSay as nothing:
        remove_results(folder)
        return Outcome(study, None, str(nothing.reason), folder)
    except FileNotFoundError:  # no header could be kept: of whom would the result speak?
        remove_results(folder)
        return Outcome(study, None, str(Reason.HEADER), folder)
    progress("analysing", 0, 1)
    paths = {(a.series_instance_uid, a.sop_instance_uid): a.path for a in arrivals}
    created = plugin.now()
    analysis = analyse_study(
        study,
        scans,
        source,
        plugin.bundle,
        fate_rows=fate_rows,
        thresholds=plugin.settings.thresholds,
        device=device,
        installation_uid=plugin.installation_uid,
        created=created,
        run=created.isoformat(),
        results=plugin.settings.results,
        image_path=lambda series_uid, sop_uid: paths[series_uid, sop_uid],
    )
    progress("analysing", 1, 1)
    _write(plugin, analysis, folder)
    return Outcome(study, analysis, None, folder)


def _prepare(
    plugin: Plugin, series: SeriesView, arrivals: list[Arrival], scratch: Path, headers: dict[str, Path]
) -> tuple[SeriesView, PreparedScan | None]:
    if series.state == SeriesState.IGNORED:
        return series, None
    uid = series.series_instance_uid
    headers[uid] = scratch / f"{uid}.header.dcm"
    job = Job(
        paths=[a.path for a in arrivals if a.series_instance_uid == uid],
        spec=plugin.bundle.preprocessing,
        rules=plugin.settings.routing.rules,
        prepared_path=scratch / f"{uid}.b2nd",
        header_path=headers[uid],
    )
    try:
        notes = plugin.sandbox.prepare(job)
    except Died as death:
        return replace(series, state=SeriesState.REFUSED, reason=str(Reason.CRASHED), detail=str(death)), None
    except Refused as refusal:
        refused = replace(series, state=SeriesState.REFUSED, reason=str(refusal.reason), detail=refusal.detail)
        return refused, None
    return replace(series, state=SeriesState.PREPARED, notes=notes), PreparedScan.load(job.prepared_path)


def remove_results(folder: Path) -> None:
    """What an earlier run left there no longer holds; all else, such as images, stays."""
    for path in folder.glob("*"):
        if path.name == FINDINGS or is_result_name(path.name):
            path.unlink()


def _write(plugin: Plugin, analysis: Analysis, folder: Path) -> None:
    """Result objects and findings.json, in place of what an earlier run left."""
    remove_results(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_files(analysis.files, folder)
    bundle = plugin.bundle
    summary = {
        "notice": "Research software, not for diagnosis.",
        "study_instance_uid": str(analysis.report.source.StudyInstanceUID),
        "model": {"name": bundle.name, "version": bundle.version, "status": bundle.status,
                  "digest": bundle.digest},
        "preprocessing": bundle.preprocessing.name,
        "is_partial": analysis.report.is_partial,
        "findings": analysis.findings,
        "series": [
            {"series_instance_uid": f.series_instance_uid, "series_number": f.series_number,
             "series_description": f.series_description, "instances": f.num_instances, "state": f.state,
             "reason": f.reason and str(f.reason), "detail": f.detail, "notes": list(f.notes),
             "is_partial": f.is_partial}
            for f in analysis.report.series
        ],
        "results": [{"file": f.name, "description": f.description, "sop_instance_uid": f.sop_instance_uid}
                    for f in analysis.files],
    }  # fmt: skip
    (folder / FINDINGS).write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
