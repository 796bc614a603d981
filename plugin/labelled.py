"""Labelled studies: what is known of each, its vector by a bundle, and the calibrations that follow."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from hlip_core.bundle import Bundle
from hlip_core.calibration import Calibration, Method
from hlip_core.calibration_fit import Target, fit_calibration, held_out_probabilities
from hlip_core.errors import InputError, Refused
from hlip_core.reliability import draw_reliability, reliability
from hlip_core.volume import PreparedScan, open_series, prepare
from plugin.folder import read_folder

__all__ = ["Fitted", "Truth", "fit_findings", "read_truth", "study_vectors"]

Truth = Mapping[str, Mapping[str, bool]]
"""What is known of each study, by finding; what is not known is left out."""


@dataclass(frozen=True)
class Fitted:
    """Calibrations and reliability diagrams (PNG) by label, and why other findings have none."""

    calibrations: dict[str, Calibration]
    diagrams: dict[str, bytes]
    refused: dict[str, str]


def read_truth(path: Path) -> Truth:
    """A CSV with a column `study` and one of 0, 1 or nothing a finding, or JSON lines with `folder` and `labels`.

    Raises InputError for a file that is neither.
    """
    with path.open(newline="", encoding="utf-8") as file:
        if path.suffix in (".jsonl", ".json"):
            rows = [json.loads(line) for line in file if line.strip()]
            return {row["folder"]: {label: bool(value) for label, value in row["labels"].items()} for row in rows}
        table = csv.DictReader(file)
        if "study" not in (table.fieldnames or ()):
            raise InputError(f"{path.name} needs a column `study`")
        return {row.pop("study"): dict(_values(row)) for row in table}


def _values(row: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    for label, value in row.items():
        if value not in ("0", "1", ""):
            raise InputError(f"column {label}: 0, 1 or nothing, not {value!r}")
        if value:
            yield label, value == "1"


def study_vectors(
    bundle: Bundle,
    names: Iterable[str],
    *,
    studies: Path | None,
    embeddings: Path | None,
    device: str,
    progress: Callable[[Sequence[str]], Iterable[str]],
) -> dict[str, np.ndarray]:
    """The vector of each study: from the file `embeddings` if it exists, else from the DICOM in its folder.

    A study without a usable series has none. Raises InputError when there is neither, or the file is of other weights.
    """
    if embeddings and embeddings.exists():
        with safe_open(embeddings, framework="numpy") as file:
            if (file.metadata() or {}).get("weights_digest") != bundle.weights_digest:
                raise InputError(f"{embeddings.name} was not made with the weights of this bundle")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if studies is None:
        raise InputError("give the studies (DICOM), or a file of embeddings that exists")
    vectors = {}
    for name in progress(sorted(names)):
        if scans := _prepare_study(studies / name, bundle):
            vectors[name] = bundle.assess(scans, device=device).embedding
    if embeddings:
        save_file(vectors, embeddings, metadata={"weights_digest": bundle.weights_digest})
    return vectors


def _prepare_study(folder: Path, bundle: Bundle) -> list[PreparedScan]:
    """The series of one study that the bundle can use."""
    by_study, _ = read_folder([folder], lambda *_: None)
    series: dict[str, list[Path]] = {}
    for arrivals in by_study.values():
        for arrival in arrivals:
            series.setdefault(arrival.series_instance_uid, []).append(arrival.path)
    scans = []
    for paths in series.values():
        try:
            scans.append(prepare(open_series(paths), bundle.preprocessing))
        except Refused:
            continue
    return scans[: bundle.max_scans // len(bundle.preprocessing.windows)]


def fit_findings(
    bundle: Bundle,
    truth: Truth,
    vectors: Mapping[str, np.ndarray],
    *,
    method: Method,
    target: Target | None,
) -> Fitted:
    """A calibration and a diagram for each finding of the bundle that the studies allow one for."""
    fitted = Fitted({}, {}, {})
    for label in bundle.findings.labels:
        known = [name for name in sorted(vectors) if label in truth.get(name, {})]
        scores = np.array([bundle.embeddings.score(vectors[name], label) for name in known])
        present = np.array([truth[name][label] for name in known], dtype=bool)
        digest = bundle.embeddings.digest(label)
        try:
            calibration = fit_calibration(scores, present, method=method, class_digest=digest, target=target)
        except InputError as error:
            fitted.refused[label] = str(error)
            continue
        fitted.calibrations[label] = calibration
        held_out = held_out_probabilities(scores, present, method=method)
        fitted.diagrams[label] = draw_reliability(reliability(held_out, present), label)
    return fitted
