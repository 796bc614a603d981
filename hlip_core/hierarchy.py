"""The tree of a batch: which patch token belongs to which slice, scan and study.

The tokens of a batch lie packed in one matrix ``[R, C]``, without padding: group after group, each group as its
prefix tokens (class token, registers) and then its patch tokens. What a group is depends on the level:

    slice   the patches of one slab of slices (one step of the patch grid along depth)
    scan    all slabs of one scan
    study   all scans of one study

Changing the level never mixes patch tokens. Going up, neighbouring groups become one (:func:`merge`: prefix tokens
averaged, patches joined); going down, a group is taken apart (:func:`split`: prefix tokens copied).

Letters: R rows (all tokens), T patch tokens, G groups, S slabs, C channels, P prefix tokens of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from hlip_core.architectures import LEVELS, Level

__all__ = ["Groups", "Hierarchy", "Run", "average", "merge", "split"]


@dataclass(frozen=True)
class Run:
    """Neighbouring groups of one length: they share one attention call."""

    start: int  # first row
    count: int  # groups
    length: int  # tokens of each group

    @property
    def stop(self) -> int:
        return self.start + self.count * self.length


class Groups:
    """The groups of one level and where their tokens lie.

    ``sizes`` [G] are the patch tokens of each group, ``of_slab`` [S] is the group of each slab.
    """

    def __init__(self, sizes: Tensor, of_slab: Tensor, *, num_prefix: int, device: torch.device) -> None:
        starts = (sizes + num_prefix).cumsum(0) - (sizes + num_prefix)
        of_patch = torch.arange(len(sizes)).repeat_interleave(sizes)
        prefix_rows = (starts[:, None] + torch.arange(num_prefix)).flatten()
        patch_rows = torch.arange(len(of_patch)) + (of_patch + 1) * num_prefix
        self.sizes: list[int] = sizes.tolist()
        self.num_prefix = num_prefix
        self.of_slab = of_slab
        self.prefix_rows = prefix_rows.to(device)  # [G * P]
        self.patch_rows = patch_rows.to(device)  # [T]

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def num_rows(self) -> int:
        return sum(self.sizes) + len(self) * self.num_prefix

    @cached_property
    def first_slab(self) -> Tensor:
        """[G] first slab of each group."""
        return torch.searchsorted(self.of_slab, torch.arange(len(self)))

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Attention calls of this level, in the order of the rows."""
        runs, start = [], 0
        for length, same in groupby(size + self.num_prefix for size in self.sizes):
            runs.append(Run(start=start, count=len(list(same)), length=length))
            start = runs[-1].stop
        return tuple(runs)

    @cached_property
    def run_rows(self) -> list[int]:
        """Rows of each run; the packed tokens are split by it, since the gradient of many slices costs their square."""
        return [run.count * run.length for run in self.runs]


class Hierarchy:
    """The groups of a batch at each level.

    ``counts`` are the patch tokens of each slab [S], ``slabs`` the slabs of each scan, ``scans`` the scans of each
    study. A slab without patches (all of them dropped) keeps its prefix tokens. ``kept`` says which patches of all
    scans the patch tokens are; None: all of them.
    """

    def __init__(
        self,
        counts: Tensor,
        *,
        slabs: Sequence[int],
        scans: Sequence[int],
        num_prefix: int,
        device: torch.device,
        kept: Tensor | None = None,
    ) -> None:
        scan_of_slab = torch.arange(len(slabs)).repeat_interleave(torch.tensor(slabs))
        study_of_scan = torch.arange(len(scans)).repeat_interleave(torch.tensor(scans))
        self.num_prefix = num_prefix
        self.device = device
        self.kept = kept
        self._counts = counts
        self._of_slab = {
            "slice": torch.arange(len(counts)),
            "scan": scan_of_slab,
            "study": study_of_scan[scan_of_slab],
        }
        self._groups: dict[Level, Groups] = {}
        self._sources: dict[tuple[Level, Level], Tensor] = {}

    def __getitem__(self, level: Level) -> Groups:
        if level not in self._groups:
            of_slab = self._of_slab[level]
            sizes = torch.zeros(int(of_slab[-1]) + 1, dtype=torch.long).index_add_(0, of_slab, self._counts)
            self._groups[level] = Groups(sizes, of_slab, num_prefix=self.num_prefix, device=self.device)
        return self._groups[level]

    def regroup(self, tokens: Tensor, old: Level, new: Level) -> Tensor:
        """Bring packed tokens [R, C] from one level to another [R', C]."""
        if old == new:
            return tokens
        rows = self._source_rows(old, new)
        if LEVELS.index(new) < LEVELS.index(old):
            return split(tokens, rows)
        return merge(tokens, rows, self[old], self[new])

    def pool(self, prefix: Tensor, level: Level) -> Tensor:
        """Prefix tokens [G * P, C] of a level, averaged over each study: [B, P, C]."""
        return average(prefix, self[level], self["study"])

    def _source_rows(self, old: Level, new: Level) -> Tensor:
        """[R'] for each row of the new level the row of the old level that it comes from."""
        if (old, new) not in self._sources:
            before, after = self[old], self[new]
            prefix = before.prefix_rows.view(len(before), -1)
            source = torch.empty(after.num_rows, dtype=torch.long, device=self.device)
            source[after.patch_rows] = before.patch_rows
            source[after.prefix_rows] = prefix[before.of_slab[after.first_slab].to(self.device)].flatten()
            self._sources[old, new] = source
        return self._sources[old, new]


def split(tokens: Tensor, rows: Tensor) -> Tensor:
    """Take groups apart, [R, C] -> [R', C]: each part gets a copy of its group's prefix tokens."""
    return tokens.index_select(0, rows)


def merge(tokens: Tensor, rows: Tensor, old: Groups, new: Groups) -> Tensor:
    """Make neighbouring groups one, [R, C] -> [R', C]: prefix tokens averaged, patch tokens joined."""
    prefix = average(tokens.index_select(0, old.prefix_rows), old, new)  # [G', P, C]
    return tokens.index_select(0, rows).index_copy_(0, new.prefix_rows, prefix.flatten(0, 1))


def average(prefix: Tensor, old: Groups, new: Groups) -> Tensor:
    """Prefix tokens [G * P, C] of the old groups, averaged over each new group: [G', P, C]."""
    prefix = prefix.unflatten(0, (len(old), old.num_prefix))  # [G, P, C]
    children = torch.bincount(new.of_slab[old.first_slab], minlength=len(new)).tolist()
    return torch.stack([part.mean(0) for part in prefix.split(children)])
