"""Position tables of the encoder: sin-cos codes, and how they are resized.

All in float32, as the published models were made.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_1d(dim: int, length: int) -> Tensor:
    """Codes of the positions 0, 1, ..., [length, dim]: sin(p w_k), then cos(p w_k), w_k = 10000^(-k / (dim / 2))."""
    k = np.arange(dim // 2, dtype=np.float32) / np.float32(dim / 2)
    omega = np.float32(1.0) / np.float32(10000.0) ** k
    angle = np.arange(length, dtype=np.float32)[:, None] * omega
    return torch.from_numpy(np.concatenate([np.sin(angle), np.cos(angle)], axis=1))


def sincos_3d(dim: int, grid: Sequence[int]) -> Tensor:
    """Codes of a patch grid, [1, d, h, w, dim]: a third each for column, row and depth.

    A width that has no thirds (1024) is built as from a 2D model: half column, half row, plus depth at full width.
    """
    d, h, w = grid
    if dim % 6:
        row, column = sincos_1d(dim // 2, h)[:, None], sincos_1d(dim // 2, w)[None]
        return add_depth(torch.cat([column.expand(h, w, -1), row.expand(h, w, -1)], dim=2), d)
    depth, row, column = (sincos_1d(dim // 3, length) for length in (d, h, w))
    parts = [column[None, None, :], row[None, :, None], depth[:, None, None]]
    return torch.cat([part.expand(d, h, w, -1) for part in parts], dim=3)[None]


def add_depth(plane: Tensor, depth: int) -> Tensor:
    """A table of one plane [h, w, C] and a sin-cos code of the depth at full width: [1, d, h, w, C]."""
    return (sincos_1d(plane.shape[-1], depth)[:, None, None] + plane)[None]


def resize_spatial(table: Tensor, grid: Sequence[int]) -> Tensor:
    """A table [1, d, h, w, C] for another patch grid, trilinear; the same grid gives the table as it is."""
    if tuple(table.shape[1:4]) == tuple(grid):
        return table
    resized = F.interpolate(table.permute(0, 4, 1, 2, 3), size=tuple(grid), mode="trilinear", align_corners=False)
    return resized.permute(0, 2, 3, 4, 1)


def resize_sequential(rows: Tensor, num_scans: int) -> Tensor:
    """The first N of the rows [M, C]; when N > M, all rows resized linearly to N: [N, C]."""
    if num_scans <= len(rows):
        return rows[:num_scans]
    return F.interpolate(rows.T[None], size=num_scans, mode="linear", align_corners=False)[0].T
