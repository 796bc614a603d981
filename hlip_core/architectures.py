"""The published encoders as a table, and what a row means.

Nothing here needs torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from hlip_core.errors import InputError

__all__ = ["ENCODERS", "LEVELS", "EncoderConfig", "Level", "patch_grid"]

Level = Literal["slice", "scan", "study"]
LEVELS: tuple[Level, ...] = ("slice", "scan", "study")
"""From the smallest group to the largest."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Everything that fixes the shape of an encoder. Blocks are numbered from 0. Valid once built, or InputError."""

    img_size: tuple[int, int, int]
    """Voxels of a scan for which the position table is made: depth, rows, columns."""
    patch_size: tuple[int, int, int]
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    slice_blocks: tuple[int, ...] = ()
    scan_blocks: tuple[int, ...] = ()
    study_blocks: tuple[int, ...] = ()
    in_chans: int = 1
    max_num_scans: int = 40
    """Rows of the sequential table; 1: no such table, the order of the scans does not matter."""
    num_registers: int = 0
    pool: Literal["cls", "cls_mean", "cls_max"] = "cls"
    """The feature: the class token, or the class token beside the mean (or the maximum, which no published encoder has:
    a small lesion is one patch of hundreds) of the patch tokens."""
    stem: tuple[int, ...] = ()
    """Channels of the stages of a convolutional stem before the tokens (:mod:`hlip_core.stem`); published: none."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if isinstance(getattr(self, field.name), list):  # as JSON has it
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        if self.embed_dim % self.num_heads or (self.embed_dim % 6 and self.embed_dim % 4):
            raise InputError(f"embed_dim {self.embed_dim} must be a multiple of num_heads, and of 6 or 4")
        blocks = sorted(self.slice_blocks + self.scan_blocks + self.study_blocks)
        if blocks != list(range(self.depth)):
            raise InputError(f"each of the {self.depth} blocks needs one level, got {blocks}")
        if self.stem and (
            stem_strides(self.patch_size, len(self.stem)) is None or any(c % STEM_GROUPS for c in self.stem)
        ):
            raise InputError(
                f"a stem of {len(self.stem)} stages needs sides of the patch that are powers of 2 up to "
                f"{2 ** len(self.stem)}, and multiples of {STEM_GROUPS} channels"
            )

    @property
    def levels(self) -> tuple[Level, ...]:
        """The level of each block."""
        table: dict[int, Level] = dict.fromkeys(self.study_blocks, "study")
        table.update(dict.fromkeys(self.scan_blocks, "scan"))
        table.update(dict.fromkeys(self.slice_blocks, "slice"))
        return tuple(table[i] for i in range(self.depth))

    @property
    def grid_size(self) -> tuple[int, int, int]:
        """Patches of a scan of ``img_size``: depth, rows, columns."""
        return patch_grid(self.img_size, self.patch_size)

    @property
    def num_prefix(self) -> int:
        """Class token and registers."""
        return 1 + self.num_registers

    @property
    def num_features(self) -> int:
        """Width of the feature that :class:`Encoder` returns."""
        return self.embed_dim * (1 if self.pool == "cls" else 2)


STEM_GROUPS = 8
"""Of the normalisation in a stem."""


def stem_strides(patch_size: Sequence[int], num_stages: int) -> list[tuple[int, int, int]] | None:
    """Steps of 1 or 2 along depth, rows and columns whose product is the patch; the late stages halve first.

    None where there are none: a side that is no power of 2, or too large for so many stages.
    """
    halvings = [side.bit_length() - 1 for side in patch_size]
    if any(2**n != side or n > num_stages for n, side in zip(halvings, patch_size, strict=True)):
        return None
    steps = [[2 if stage >= num_stages - n else 1 for n in halvings] for stage in range(num_stages)]
    return [(d, h, w) for d, h, w in steps]


def patch_grid(size: Sequence[int], patch: Sequence[int]) -> tuple[int, int, int]:
    """Whole patches along depth, rows and columns; a remainder that fills no patch is dropped."""
    d, h, w = (s // p for s, p in zip(size, patch, strict=True))
    return d, h, w


def _joint(config: EncoderConfig) -> EncoderConfig:
    """The 2025-26 form of a model: thin patches, scans in any order, a register, pooling of class and patch tokens."""
    return replace(config, patch_size=(6, 16, 16), max_num_scans=1, num_registers=1, pool="cls_mean")


_H2 = EncoderConfig(
    img_size=(48, 224, 224),
    patch_size=(8, 16, 16),
    scan_blocks=(0, 1, 3, 4, 6, 7, 9, 10),
    study_blocks=(2, 5, 8, 11),
)
_H3 = replace(_H2, slice_blocks=(0, 3, 6, 9), scan_blocks=(1, 4, 7, 10))
_LARGE_H2 = replace(
    _H2,
    embed_dim=1024,
    depth=24,
    num_heads=16,
    scan_blocks=(0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 18, 19, 20, 21, 22),
    study_blocks=(5, 11, 17, 23),
)
_LARGE_H3 = replace(
    _LARGE_H2,
    slice_blocks=(0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15, 18, 19, 20, 21),
    scan_blocks=(4, 10, 16, 22),
)

ENCODERS: dict[str, EncoderConfig] = {
    # The models of the paper: held against numbers of the reference implementation.
    "vit_base_singlescan_h2_token2744": EncoderConfig(
        img_size=(112, 336, 336),
        patch_size=(8, 24, 24),
        slice_blocks=(0, 1, 3, 4, 6, 7, 9, 10),
        study_blocks=(2, 5, 8, 11),
        max_num_scans=1,
    ),
    "vit_base_multiscan_h2_token588": replace(_H2, patch_size=(16, 16, 16)),
    "vit_base_multiscan_h2_token1176": _H2,
    "vit_base_multiscan_h3_token1176": _H3,
    # The joint MRI and CT models of 2025-26, built from their description alone: UNVERIFIED.
    "vit_base_multiscan_h2_token1568": _joint(_H2),
    "vit_base_multiscan_h3_token1568": _joint(_H3),
    "vit_large_multiscan_h2_token1568": _joint(_LARGE_H2),
    "vit_large_multiscan_h3_token1568": _joint(_LARGE_H3),
}
"""Published encoders by name."""
