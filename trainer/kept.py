"""Patches that are projected once and kept, where the patch embedding is locked.

Reading, windowing and projecting a study costs more than a small model's blocks. While the embedding does not change,
each variant of a study (see `data.variants`) needs it once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hlip_core.encoder import Encoder, Patches

__all__ = ["KeptPatches"]


class KeptPatches:
    """Of the trunk as it is now; half precision, in memory on the CPU. Called as `trainer.dataset.Keep` says."""

    def __init__(self, trunk: Encoder, *, air: float | None) -> None:
        self._trunk, self._air = trunk, air
        self._scans: dict[tuple[int, int], list[Patches]] = {}

    def __call__(self, key: tuple[int, int], scans: Callable[[], Tensor], drawn: list[int]) -> Patches:
        """The patches of the scans numbered `drawn` of a study."""
        if key not in self._scans:
            self._scans[key] = [self._project(scan[None]) for scan in scans()]
        chosen = [self._scans[key][i] for i in drawn]
        tokens, kept = (torch.cat([getattr(scan, name) for scan in chosen]) for name in ("tokens", "kept"))
        return Patches(tokens, kept, chosen[0].grid)

    @torch.no_grad()
    def _project(self, scan: Tensor) -> Patches:
        device = self._trunk.cls_token.device
        found = self._trunk.project(scan.to(device), air=self._air)
        return Patches(found.tokens.half().cpu(), found.kept.cpu(), found.grid)
