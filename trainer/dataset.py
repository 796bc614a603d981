"""Studies as a training step sees them: some scans, some sentences.

What is drawn for a study depends on the seed, the epoch and the study alone: not on the batch, the process, or what
came before. So a run continued in the middle of an epoch, or over more processes, sees the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hlip_core.assessment import order_scans
from hlip_core.encoder import Patches
from hlip_core.errors import InputError
from hlip_core.prepared import PreparedScan
from hlip_core.report_labels import ReportWords
from hlip_core.windows import model_scan, model_scans
from trainer.config import Config, Stage
from trainer.manifest import Cohort, StudyRow, read_cohort

__all__ = ["Sample", "Studies", "View", "batches", "label_names", "stated"]

MIRRORED = {"axial": 2, "coronal": 2, "sagittal": 0}
"""The axis of a prepared scan that runs from left to right, by its orientation."""
_SIDES = {"left": "right", "right": "left"}


Keep = Callable[[tuple[int, int], Callable[[], Tensor], list[int]], Patches]
"""From the key of a study's variant, a way to its scans, and which of them are wanted, to their patches."""


@dataclass(frozen=True)
class View:
    """How a study is shown: mirrored or not, and where rows and columns are cut."""

    mirror: bool
    top: int
    left: int


@dataclass(frozen=True)
class Sample:
    """One study in one epoch. texts: the drawn sentences; report: all of them, shuffled; seed: for the encoder;
    findings: of `label_names`, by place, those that the report states.

    images [N, 1, D, H, W] wait in half precision: a batch is large, and noise is larger than what that rounds off.
    Or they are cut and projected already.
    """

    images: Tensor | Patches
    texts: tuple[str, ...]
    report: str
    seed: int
    findings: tuple[int, ...] = ()


class Studies:
    """The training and validation studies of a run's cohorts.

    Raises:
        InputError: cohorts of different preprocessing, or no training study with a report.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        cohorts = [read_cohort(folder) for folder in config.data.cohorts]
        self.preprocessing = cohorts[0].preprocessing
        if any(cohort.preprocessing.digest != self.preprocessing.digest for cohort in cohorts):
            raise InputError("the cohorts were prepared by different specifications")
        self.train = tuple(
            (cohort, row) for cohort in cohorts for row in cohort.split("train") if row.scans and row.sentences
        )
        self.validation = tuple((cohort, row) for cohort in cohorts for row in cohort.split("validation") if row.scans)
        if len(self.train) < config.optimizer.batch_size:
            raise InputError(
                f"{len(self.train)} training studies with scans and a report: fewer than one batch of "
                f"{config.optimizer.batch_size}"
            )

    @property
    def sentences(self) -> Iterator[str]:
        """All sentences of the training reports, with the prefix, to learn a vocabulary from."""
        for _, row in self.train:
            for sentence in row.sentences:
                yield self._config.loss.prefix + sentence

    def sample(self, epoch: int, index: int, stage: Stage, keep: Keep | None = None) -> Sample:
        """Training study `index` as it is seen in `epoch`. With `keep`, its scans as the patches that it gives."""
        cohort, row = self.train[index]
        rng = np.random.default_rng([self._config.seed, epoch, index])
        variant = epoch % self._config.data.variants if self._config.data.variants else epoch
        view = self._view(variant, index)
        pairs = [(path, window) for path in row.scans for window in self.preprocessing.windows]
        drawn = sorted(rng.permutation(len(pairs))[: stage.scans_per_study].tolist())
        texts = [mirrored(text) for text in row.sentences] if view.mirror else list(row.sentences)
        order = [texts[i] for i in rng.permutation(len(texts))]
        count = self._config.loss.sentences_per_study or len(order)
        prefix = self._config.loss.prefix
        seed = int(rng.integers(2**62))
        images: Tensor | Patches
        if keep is None:
            images = self.scans(cohort, [pairs[i] for i in drawn], view).half()
        else:
            images = keep((index, variant), lambda: self.scans(cohort, pairs, view), drawn)
        texts = [prefix + text for text in order]
        return Sample(images, tuple(texts[:count]), prefix + " ".join(order), seed, stated(row.sentences))

    def _view(self, variant: int, index: int) -> View:
        """How a study is shown in one of its variants."""
        rng = np.random.default_rng([self._config.seed, variant, index, 1])
        slack = self.preprocessing.size - self.preprocessing.crop
        top, left = rng.integers(slack + 1, size=2) if self._config.data.jitter else (slack // 2, slack // 2)
        return View(self._config.data.mirror and bool(rng.integers(2)), int(top), int(left))

    def whole(self, cohort: Cohort, row: StudyRow) -> Tensor:
        """All scans of a study as serving sees them: [N, 1, D, H, W]."""
        scans = order_scans(PreparedScan.load(cohort.folder / path) for path in row.scans)
        return torch.from_numpy(np.concatenate([model_scans(scan, self.preprocessing) for scan in scans]))

    def scans(self, cohort: Cohort, pairs: Sequence[tuple[str, str]], view: View) -> Tensor:
        """[N, 1, D, crop, crop] of prepared scans, each through a window."""
        volumes = {path: self._cut(cohort.folder / path, view) for path in dict.fromkeys(path for path, _ in pairs)}
        spec = self.preprocessing
        return torch.from_numpy(np.stack([model_scan(volumes[path], window, spec) for path, window in pairs]))

    def _cut(self, path: Path, view: View) -> np.ndarray:
        """The model's rows and columns [D, crop, crop] of a prepared scan."""
        prepared, crop = PreparedScan.load(path), self.preprocessing.crop
        if prepared.preprocessing_digest != self.preprocessing.digest:
            raise InputError(f"{path.name} was prepared by {prepared.preprocessing}, not by this specification")
        voxels = prepared.voxels[:, view.top : view.top + crop, view.left : view.left + crop]
        return np.flip(voxels, MIRRORED[prepared.orientation]) if view.mirror else voxels


@cache
def _words() -> ReportWords:
    return ReportWords.from_toml()


def label_names() -> tuple[str, ...]:
    """What rules look for in a report, see `hlip_core.report_labels`."""
    return _words().labels


@lru_cache(maxsize=1 << 16)
def stated(sentences: tuple[str, ...]) -> tuple[int, ...]:
    """The findings that rules read from stand-alone sentences, surely or with doubt, as places in `label_names`."""
    found = [_words().read(sentence) for sentence in sentences]
    return tuple(
        i
        for i, label in enumerate(label_names())
        if any(said[label].state in ("present", "uncertain") for said in found)
    )


def mirrored(text: str) -> str:
    """A sentence about the mirror image: left and right exchanged, in their case."""

    def other(match: re.Match[str]) -> str:
        word = match[0]
        swapped = _SIDES[word.lower()]
        return swapped.capitalize() if word[0].isupper() else swapped

    return re.sub(r"\b(left|right)\b", other, text, flags=re.IGNORECASE)


def batches(seed: int, epoch: int, num_studies: int, batch_size: int) -> list[Sequence[int]]:
    """The batches of one epoch: each study at most once, in a random order; what fills no batch is left out."""
    order = np.random.default_rng([seed, epoch]).permutation(num_studies)
    whole = num_studies // batch_size
    return [order[i * batch_size : (i + 1) * batch_size].tolist() for i in range(whole)]
