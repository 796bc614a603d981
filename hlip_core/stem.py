"""A convolutional stem: what may stand between the voxels and the patch tokens of a small encoder.

A vision transformer that sees its patches through one linear map learns slowly from a few thousand studies; a few
convolutions before it mend that (arXiv 2106.14881). The published encoders have none.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hlip_core.architectures import STEM_GROUPS, patch_grid, stem_strides

__all__ = ["ConvStem"]


class Stage(nn.Module):
    """A convolution that halves, and (but for the first, at full resolution) one that adds to what it sees.

    Normalised within a scan: no scan changes another's tokens.
    """

    def __init__(self, before: int, channels: int, stride: tuple[int, int, int], *, adds: bool) -> None:
        super().__init__()
        self.down = nn.Conv3d(before, channels, 3, stride, padding=1)
        self.norm = nn.GroupNorm(STEM_GROUPS, channels)
        self.same = nn.Conv3d(channels, channels, 3, padding=1) if adds else None
        self.same_norm = nn.GroupNorm(STEM_GROUPS, channels) if adds else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.down(x)))
        return x if self.same is None or self.same_norm is None else x + F.gelu(self.same_norm(self.same(x)))


class ConvStem(nn.Sequential):
    """[N, in_chans, D, H, W] -> [N, channels[-1], d, h, w], a place for each patch.

    With ``bf16`` it computes in bfloat16 whatever the rest does: on a CPU convolutions gain by it, small blocks lose.
    """

    bf16 = False
    _SMALLEST = 3
    """Places along an axis from which on bf16 is used, whoever asks for it. Where a kernel of 3 is longer than its
    axis, the gradient of oneDNN's bfloat16 convolution reads memory that nobody wrote (torch 2.14, avx512_bf16)."""

    def __init__(self, in_chans: int, channels: Sequence[int], patch_size: Sequence[int]) -> None:
        steps = stem_strides(patch_size, len(channels))
        assert steps is not None, "the configuration was not checked"
        before = [in_chans, *channels]
        super().__init__(
            *(
                Stage(old, new, step, adds=place > 0)
                for place, (old, new, step) in enumerate(zip(before, channels, steps, strict=False))
            )
        )
        self._patch_size = tuple(patch_size)

    def forward(self, scans: Tensor) -> Tensor:
        if min(patch_grid(scans.shape[2:], self._patch_size)) < self._SMALLEST:
            with torch.autocast(scans.device.type, enabled=False):
                return super().forward(scans)
        if not self.bf16:
            return super().forward(scans)
        with torch.autocast(scans.device.type, torch.bfloat16):
            return super().forward(scans).float()
