"""Labelled studies: what is known of each, and its vector by a bundle."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from hlip_core.bundle import Bundle
from hlip_core.calibration_findings import Truth
from hlip_core.errors import InputError, Refused
from hlip_core.volume import PreparedScan, open_series, prepare
from plugin.analysis import preferred
from plugin.folder import read_folder

__all__ = ["read_truth", "study_vectors"]

TRUTHS = {"0": False, "0.0": False, "False": False, "1": True, "1.0": True, "True": True, "": None}
"""What may stand for a finding: absent, present, or not known."""


def read_truth(path: Path) -> Truth:
    """A CSV with a column `study` and one of 0, 1 or nothing a finding, or JSON lines with `folder` and `labels`.

    Raises InputError for a file that is neither, or in which a study stands twice.
    """
    truth: dict[str, dict[str, bool]] = {}
    rows = _json_rows if path.suffix in (".jsonl", ".json") else _csv_rows
    try:
        for study, labels in rows(path):
            if study in truth:
                raise InputError(f"{path.name}: study {study} stands there twice")
            truth[study] = dict(_values(labels))
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path.name} is no CSV or JSON lines file in UTF-8") from error
    return truth


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        if "study" not in (table.fieldnames or ()):
            raise InputError(f"{path.name} needs a column `study`")
        for row in table:
            yield row.pop("study"), row


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            match json.loads(line):
                case {"folder": str(study), "labels": dict(labels)}:
                    yield study, labels
                case _:
                    raise InputError(f"{path.name}, line {number}: an object with `folder` and `labels` is needed")


def _values(labels: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    for label, value in labels.items():
        if str(value) not in TRUTHS:
            raise InputError(f"{label}: 0, 1 or nothing, not {value!r}")
        if (is_present := TRUTHS[str(value)]) is not None:
            yield label, is_present


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
            if (file.metadata() or {}).get("encoder_digest") != bundle.encoder_digest:
                raise InputError(
                    f"{embeddings.name} was not made by this bundle's encoder (weights, preprocessing, precision); "
                    "remove it, and give the studies"
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if studies is None:
        raise InputError("give the studies (DICOM), or a file of embeddings that exists")
    vectors = {}
    for name in progress(sorted(names)):
        if scans := _prepare_study(studies / name, bundle):
            vectors[name] = bundle.assess(scans, device=device).embedding
    if embeddings:
        save_file(vectors, embeddings, metadata={"encoder_digest": bundle.encoder_digest})
    return vectors


def _prepare_study(folder: Path, bundle: Bundle) -> list[PreparedScan]:
    """The series of one study that the bundle can use; of more than it takes those that it would take at work."""
    series: dict[str, list[Path]] = {}
    for arrivals in read_folder([folder], lambda *_: None).values():
        for arrival in arrivals:
            series.setdefault(arrival.series_instance_uid, []).append(arrival.path)
    scans = []
    for paths in series.values():
        try:
            scans.append(prepare(open_series(paths), bundle.preprocessing))
        except Refused:
            continue
    return preferred(scans, bundle)
