"""The vectors of studies by a bundle: the costly part, hence kept, and taken up again after an interruption.

Letters: E width of the shared space, H heads of the image tower (sentence; report where the model has one).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hlip_core.bundle import Bundle
from hlip_core.errors import DamagedScan, Refused
from hlip_core.volume import PreparedScan
from trainer.evaluation.benchmarks import Case

__all__ = ["Vectors", "encoder_digest", "study_vectors"]

FILE = "embeddings.safetensors"
SAVE_EVERY_S = 30.0
MISSING, DAMAGED = "the prepared scan is missing", "the prepared scan is damaged"
"""Of a cohort; looked for again in the next run, since someone may mend it."""

Track = Callable[[Sequence[Case], str], Iterable[Case]]


def encoder_digest(bundle: Bundle) -> str:
    """SHA-256 (hex) of what decides a study's vector: weights, preprocessing, how the model runs."""
    parts = [bundle.weights_digest, bundle.preprocessing.digest, bundle.precision, bundle.drop_air, bundle.max_scans]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Vectors:
    """Unit vectors [H, E] by study, and why other studies have none; in a folder, if there is one."""

    def __init__(self, bundle: Bundle, folder: Path | None = None) -> None:
        self.digest = encoder_digest(bundle)
        self.path = folder / FILE if folder else None
        self.of: dict[str, np.ndarray] = {}
        self.refused: dict[str, str] = {}
        self._saved_at = time.monotonic()
        if self.path is not None and self.path.is_file():
            self._read(self.path)

    def _read(self, path: Path) -> None:
        """What an earlier run left; nothing if it was of another encoder, or cut off."""
        try:
            with safe_open(path, framework="numpy") as file:
                facts = file.metadata() or {}
                if facts.get("encoder") == self.digest:
                    self.of = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                    self.refused = json.loads(facts["refused"])
        except (SafetensorError, KeyError, ValueError):
            self.of, self.refused = {}, {}

    def __contains__(self, study: str) -> bool:
        return study in self.of or study in self.refused

    def save(self, *, now: bool = True) -> None:
        """Writes the file, whole or not at all; with `now` False only when the last time is a while ago."""
        if self.path is None or (not now and time.monotonic() - self._saved_at < SAVE_EVERY_S):
            return
        part = self.path.with_name(f".{self.path.name}.part")
        refused = {study: reason for study, reason in self.refused.items() if reason not in (MISSING, DAMAGED)}
        save_file(self.of, part, metadata={"encoder": self.digest, "refused": json.dumps(refused)})
        part.replace(self.path)
        self._saved_at = time.monotonic()


def study_vectors(
    bundle: Bundle, cases: Sequence[Case], vectors: Vectors, *, device: str, batch: int, track: Track
) -> None:
    """Adds the vectors of all cases that have none yet; `batch` studies go through the encoder at once."""
    missing = [case for case in cases if case.study not in vectors]
    waiting: list[tuple[str, Sequence[PreparedScan]]] = []
    try:
        for case, scans in _prefetched(track(missing, "studies"), bundle, ahead=batch):
            if isinstance(scans, str):
                vectors.refused[case.study] = scans
                continue
            waiting.append((case.study, scans))
            if len(waiting) == batch:
                _encode(bundle, waiting, vectors, device)
                vectors.save(now=False)
        _encode(bundle, waiting, vectors, device)
    finally:
        vectors.save()


def _prefetched(
    cases: Iterable[Case], bundle: Bundle, *, ahead: int
) -> Iterator[tuple[Case, Sequence[PreparedScan] | str]]:
    """Each case with its scans or the reason why it has none; the next ones are read meanwhile."""
    with ThreadPoolExecutor(1) as reader:
        waiting: deque[tuple[Case, Future[Sequence[PreparedScan] | str]]] = deque()
        for case in cases:
            waiting.append((case, reader.submit(_scans, case, bundle)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


def _scans(case: Case, bundle: Bundle) -> Sequence[PreparedScan] | str:
    """The scans that the bundle takes: as many series, in their order, as its limit allows."""
    try:
        scans = case.load(bundle.preprocessing)
    except Refused as refusal:
        return str(refusal.reason)
    except DamagedScan:
        return DAMAGED
    except FileNotFoundError:
        return MISSING
    return scans[: bundle.max_scans // len(bundle.preprocessing.windows)] or "no series"


def _encode(bundle: Bundle, studies: list[tuple[str, Sequence[PreparedScan]]], vectors: Vectors, device: str) -> None:
    """The vectors of a few studies at once; empties the list."""
    import torch
    import torch.nn.functional as F

    if not studies:
        return
    images = [torch.from_numpy(bundle.model_scans(scans)).to(device) for _, scans in studies]
    visual = bundle.model(device).visual
    with torch.inference_mode(), bundle.autocast(device):
        features = visual.trunk.forward_prefix(images, air=bundle.air)
        heads = [visual.project(features, "sentence")]
        if hasattr(visual, "report_head"):
            heads.append(visual.project(features, "report"))
        found = F.normalize(torch.stack(heads, dim=1).float(), dim=-1).cpu().numpy()  # [b, h, e]
    vectors.of.update({study: rows for (study, _), rows in zip(studies, found, strict=True)})
    studies.clear()


def refusals(vectors: Vectors, cases: Sequence[Case]) -> Mapping[str, int]:
    """How many of the cases have no vector, by reason."""
    reasons: dict[str, int] = {}
    for case in cases:
        if reason := vectors.refused.get(case.study):
            reasons[reason] = reasons.get(reason, 0) + 1
    return reasons
