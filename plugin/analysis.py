"""From prepared scans to result objects: the one way of workers and `hlip analyze`."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom import Dataset, dcmread

from hlip_core.headers import MALFORMED
from hlip_core.reasons import Reason
from hlip_core.volume import PreparedScan
from plugin.lifecycle import SeriesState
from plugin.pictures import ImagePath, with_pictures
from plugin.results import SeriesFate, StudyReport, build_results, creation_time, to_bytes
from plugin.settings import ResultsSettings
from plugin.spool import write_durably
from plugin.study import SeriesView, StudyView

if TYPE_CHECKING:
    from hlip_core.bundle import Assessment, Bundle, Location, SiteThreshold

# ---- one study ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ResultFile:
    name: str
    content: bytes
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    description: str


@dataclass(frozen=True)
class Analysis:
    """What there is to say about a study, and the objects that say it."""

    report: StudyReport
    files: tuple[ResultFile, ...]
    inputs_digest: str

    @property
    def assessment(self) -> "Assessment | None":
        return self.report.assessment

    @property
    def findings(self) -> list[dict]:
        """JSON-ready rows, the most certain first."""
        if self.assessment is None:
            return []
        rows = [
            {
                "label": score.finding.label,
                "name": score.finding.name,
                "critical": score.finding.critical,
                "score": round(float(score.score), 6),
                "probability": None if score.probability is None else round(float(score.probability), 6),
                "threshold": score.threshold,
                "positive": score.positive,
                "location": _place(score.location),
            }
            for score in self.assessment.findings
        ]
        return sorted(rows, key=lambda row: (not row["positive"], -row["score"], row["label"]))


def _place(location: "Location | None") -> dict | None:
    """Where the model looked: a voxel of the prepared scan of a series."""
    if location is None:
        return None
    return {"series_instance_uid": location.series_instance_uid, "z": location.z, "y": location.y, "x": location.x}


class NothingToSay(Exception):
    """No series of the study is for this model, and none should have been: no result object is made."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.sentence)
        self.reason = reason


def fates(study: StudyView, scans: Mapping[str, PreparedScan], bundle: "Bundle") -> tuple[SeriesFate, ...]:
    """What becomes of each series; of more prepared scans than the model takes, the least preferred are left out."""
    used = {scan.series_instance_uid for scan in preferred(scans.values(), bundle)}
    return tuple(
        _fate(series, scans.get(series.series_instance_uid), used)
        for series in study.series
        if series.state in (SeriesState.PREPARED, SeriesState.REFUSED)
    )


def preferred(scans: Iterable[PreparedScan], bundle: "Bundle") -> list[PreparedScan]:
    """As many as the model takes: axial series, then those with more slices, then the lower SeriesNumber."""
    best_first = sorted(
        scans,
        key=lambda scan: (
            scan.orientation != "axial",
            -scan.num_instances,
            scan.series_number is None,
            scan.series_number or 0,
            scan.series_instance_uid,
        ),
    )
    return best_first[: max(1, bundle.max_scans // len(bundle.preprocessing.windows))]


def _fate(series: SeriesView, scan: PreparedScan | None, used: set[str]) -> SeriesFate:
    described = SeriesFate(
        series_instance_uid=series.series_instance_uid,
        series_number=series.series_number,
        modality=series.modality,
        series_description=series.series_description,
        num_instances=len(series.instances),
        state="refused",
        reason=Reason(series.reason) if series.reason else Reason.OVER_LIMIT,
        detail=series.detail,
    )
    if scan is None or scan.series_instance_uid not in used:
        return described
    return replace(
        described,
        state="prepared",
        reason=None,
        instances=scan.instances,
        notes=scan.notes,
        is_partial=scan.is_partial,
    )


def inputs_digest(
    study: StudyView, fate_rows: Sequence[SeriesFate], bundle: "Bundle", thresholds: Mapping[str, "SiteThreshold"]
) -> str:
    """SHA-256 over everything that can change what is said: while it stands, so does the revision."""
    canonical = {
        "content": study.content_digest,
        "fates": [
            [f.series_instance_uid, f.state, str(f.reason or ""), *(["partial"] if f.is_partial else [])]
            for f in fate_rows
        ],
        "bundle": bundle.digest,
        "thresholds": dict(thresholds),
    }
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()


def check_patient(study: StudyView) -> None:
    """Raises NothingToSay for a study that names two patients: whose would the result be?"""
    if len(study.patients) > 1:
        raise NothingToSay(Reason.INCONSISTENT)


def check_scope(fate_rows: Sequence[SeriesFate]) -> None:
    """Raises NothingToSay where nothing was prepared and nothing should have been, or could have been any more.

    A study whose images were removed keeps what was said of it, unless there is something new to say.
    """
    reasons = [fate.reason for fate in fate_rows if fate.reason is not None]
    defects = {reason for reason in reasons if reason.kind == "defect"}
    if len(reasons) < len(fate_rows) or defects - {Reason.REMOVED}:
        return
    if defects:
        raise NothingToSay(Reason.REMOVED)
    raise NothingToSay(max(reasons, key=reasons.count) if reasons else Reason.NON_IMAGE)


def analyse_study(
    study: StudyView,
    scans: Mapping[str, PreparedScan],
    source: Dataset,
    bundle: "Bundle",
    *,
    fate_rows: Sequence[SeriesFate],
    thresholds: Mapping[str, "SiteThreshold"],
    device: str,
    installation_uid: str,
    results: ResultsSettings,
    image_path: ImagePath,
    created: datetime,
    run: str = "",
    kept: Path | None = None,
) -> Analysis:
    """Assess the scans and build the result objects of the study's next revision.

    `source` is the header that the patient and study are copied from; `image_path` says where a source image lies,
    for the pictures. `run` tells runs apart where no index counts revisions. `kept` is the folder of this revision's
    objects: what an earlier attempt left there under the same UIDs gives the time of creation, so that they are the
    same to the byte.
    """
    chosen = [scans[fate.series_instance_uid] for fate in fate_rows if fate.state == "prepared"]
    predecessors = study.last.results if study.last is not None else ()
    report = StudyReport(
        source=source,
        series=tuple(fate_rows),
        assessment=bundle.assess(chosen, thresholds=thresholds, device=device) if chosen else None,
        bundle=bundle,
        revision=study.revision + 1,
        content_digest=study.content_digest,
        created=created,
        installation_uid=installation_uid,
        run=run,
        predecessors=tuple((r.sop_class_uid, r.sop_instance_uid, r.series_instance_uid) for r in predecessors),
    )
    if kept is not None:
        report = replace(report, created=created_before(report, kept) or created)
    report = with_pictures(report, scans, bundle.preprocessing, image_path, results)
    built = build_results(report, without=[name for name, wanted in switches(results).items() if not wanted])
    files = tuple(result_file(result) for result in built)
    return Analysis(report, files, inputs_digest(study, fate_rows, bundle, thresholds))


def created_before(report: StudyReport, folder: Path) -> datetime | None:
    """When the objects of the same UIDs were made that lie in the folder, if there are some.

    An attempt may have ended between its objects and its row in the index, or the index is older than the objects.
    """
    for path in folder.glob("*.dcm"):
        try:
            created = creation_time(report, dcmread(path, stop_before_pixels=True))
        except MALFORMED:
            continue
        if created is not None:
            return created
    return None


def switches(results: ResultsSettings) -> dict[str, bool]:
    """Which kinds of result are wanted, by the name of the kind."""
    return {
        "findings": results.findings_report,
        "key_image": results.key_images,
        "parametric_map": results.parametric_map,
        "segmentation": results.segmentation,
    }


def result_file(result: Dataset) -> ResultFile:
    """A result object as a file; no two of one revision have the same name."""
    slug = re.sub(r"[^a-z0-9]+", "-", str(result.SeriesDescription).lower()).strip("-")
    return ResultFile(
        name=f"{result.SeriesNumber}-{result.InstanceNumber}-{slug}.dcm",
        content=to_bytes(result),
        sop_class_uid=str(result.SOPClassUID),
        sop_instance_uid=str(result.SOPInstanceUID),
        series_instance_uid=str(result.SeriesInstanceUID),
        description=str(result.SeriesDescription),
    )


def is_result_name(name: str) -> bool:
    """Whether `result_file` gives such a name to a file."""
    return re.fullmatch(r"\d+-\d+-hlip-[a-z0-9-]+\.dcm", name) is not None


def read_source(study: StudyView, header_paths: Mapping[str, Path]) -> Dataset:
    """The kept header of the first series, images of the model's kind first. Raises FileNotFoundError where none is."""
    for series in sorted(study.series, key=lambda series: (not series.has_content, series.order)):
        path = header_paths.get(series.series_instance_uid)
        if path is not None and path.is_file():
            try:
                return dcmread(path)
            except MALFORMED as error:  # one that is damaged is as good as none
                if isinstance(error, OSError) and error.errno is not None:
                    raise
    raise FileNotFoundError("no readable header is kept of this study")


def write_files(files: Sequence[ResultFile], folder: Path) -> list[Path]:
    """Write result objects into an existing folder."""
    for file in files:
        write_durably(folder / file.name, file.content)
    return [folder / file.name for file in files]
