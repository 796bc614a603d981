"""The HLIP study encoder: all scans of a study in, one feature out (arXiv 2505.21862).

A pre-norm vision transformer over 3D patches. Each block attends inside a slice, a scan or the whole study
(:mod:`hlip_core.hierarchy`). Studies of different sizes go through one call packed, without padding.

Letters: B studies, N scans of a study, D H W voxels of a scan, d h w its patch grid, T patch tokens, R packed rows
(patch and prefix tokens), P prefix tokens of a group, C channels, A attention heads.
"""

# ruff: noqa: N806 (upper-case letters are sizes, see above)

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hlip_core.architectures import ENCODERS, EncoderConfig, patch_grid
from hlip_core.block import GroupBlock, LayerNorm
from hlip_core.errors import InputError
from hlip_core.hierarchy import Groups, Hierarchy
from hlip_core.positions import resize_sequential, resize_spatial, sincos_1d, sincos_3d
from hlip_core.stem import ConvStem


@dataclass(frozen=True)
class Patches:
    """A study that is cut and projected already, see :meth:`Encoder.project`.

    tokens [T, C]: without positions; kept [N, d*h*w] bool: which patches they are, T of them; grid: d, h, w.
    """

    tokens: Tensor
    kept: Tensor
    grid: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.kept)


Studies = Tensor | Sequence[Tensor | Patches]
"""Studies of one size [B, N, 1, D, H, W], or a list of studies [N, 1, D, H, W] that may differ in N and D, H, W; in a
list a study may stand as its :class:`Patches`."""

Head = Literal["sentence", "report"]
"""What a feature is compared with: one sentence of a report, or (models with a register) the whole report."""

TISSUE = 0.02
"""The share of voxels above air from which on a patch is kept when air is left out."""

__all__ = ["Encoder", "Head", "PatchEmbed", "Patches", "Studies", "create_encoder"]


class PatchEmbed(nn.Module):
    """Cuts scans into patches and projects them; ``proj`` is a Conv3d whose kernel is its stride.

    With a ``stem`` it projects what the stem makes of each patch and its surroundings.
    """

    def __init__(
        self, patch_size: tuple[int, int, int], in_chans: int, embed_dim: int, stem: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.stem = ConvStem(in_chans, stem, patch_size) if stem else None
        kernel = (1, 1, 1) if stem else patch_size
        self.proj = nn.Conv3d(stem[-1] if stem else in_chans, embed_dim, kernel_size=kernel, stride=kernel)

    def cut(self, scans: Tensor) -> Tensor:
        """Voxels of each patch, in the order depth, row, column: [N, 1, D, H, W] -> [N, d*h*w, voxels]."""
        d, h, w = patch_grid(scans.shape[2:], self.patch_size)
        pd, ph, pw = self.patch_size
        whole = scans[:, :, : d * pd, : h * ph, : w * pw]
        parts = whole.unflatten(4, (w, pw)).unflatten(3, (h, ph)).unflatten(2, (d, pd))  # [n, 1, d, pd, h, ph, w, pw]
        return parts.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)

    def parts(self, scans: Tensor, voxels: Tensor) -> Tensor:
        """What is projected of each patch [N, d*h*w, ...]: its ``voxels`` (as ``cut`` gives them), or the stem's."""
        if self.stem is None:
            return voxels
        sides = patch_grid(scans.shape[2:], self.patch_size)
        d, h, w = (count * side for count, side in zip(sides, self.patch_size, strict=True))
        found: Tensor = self.stem(scans[:, :, :d, :h, :w].to(self.proj.weight.dtype))
        return found.flatten(2).transpose(1, 2)

    def forward(self, parts: Tensor) -> Tensor:
        """Project patches: [..., voxels or stem channels] -> [..., C]."""
        weight = self.proj.weight
        return F.linear(parts.to(weight.dtype), weight.flatten(1), self.proj.bias)


class Encoder(nn.Module):
    """Studies in, one feature each out.

    In eval mode the same study gives the same feature whatever else is in the batch. In training mode the rows of
    the sequential table are drawn at random for each study, and ``patch_dropout`` is the share of patch tokens that
    is left out (the same number in each slice); with a seed for each study (``seeds``) both depend on nothing else.
    ``grad_checkpointing`` trades time for memory. ``compile()`` (of torch) is worth its while where batches keep
    their shape.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_dropout = 0.0
        self.grad_checkpointing = False
        C = config.embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, C))
        if config.num_registers:
            self.reg_token = nn.Parameter(torch.zeros(1, config.num_registers, C))
        self.spatial_posemb = nn.Parameter(sincos_3d(C, config.grid_size), requires_grad=False)
        if config.max_num_scans > 1:
            table = sincos_1d(C, config.max_num_scans)[None]
            self.sequential_posemb = nn.Parameter(table, requires_grad=False)
        self.patch_embed = PatchEmbed(config.patch_size, config.in_chans, C, config.stem)
        self.blocks = nn.ModuleList(GroupBlock(C, config.num_heads) for _ in range(config.depth))
        self.norm = LayerNorm(C)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random start: truncated normal of width 0.02 at 768 channels, biases zero; position tables stay.

        Fewer channels start wider, so that what a block adds keeps its size beside what it adds to.
        """
        std = 0.02 * math.sqrt(768 / self.config.embed_dim)
        for name, parameter in self.named_parameters():
            if ".stem." in name and parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            elif name.endswith("_token") or (name.endswith("weight") and parameter.ndim > 1):
                nn.init.trunc_normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, images: Studies, *, scan_index: Any = None, air: float | None = None) -> Tensor:
        """Features of studies, [B, N, 1, D, H, W] or a list of [N, 1, D, H, W] -> [B, num_features].

        ``images`` are normalised voxels of any depth and number of scans. ``scan_index`` names the rows of the
        sequential table: N numbers for all studies, or a sequence of them for each study; without it the first N
        rows are used (all of them resized to N rows when there are more scans than rows). With ``air``, patches
        of which less than 2 % of the voxels lie above this value are left out.

        Raises :class:`InputError` for a wrong shape, no scan, or voxels that are not finite.
        """
        return self.forward_prefix(images, scan_index=scan_index, air=air)[:, 0]

    def forward_prefix(
        self, images: Studies, *, scan_index: Any = None, air: float | None = None, seeds: Sequence[int] | None = None
    ) -> Tensor:
        """As :meth:`forward`, with a feature for each prefix token (class, registers): [B, P, num_features].

        ``seeds``, one for each study, make what training mode draws repeatable (None: torch's own generator).
        """
        x, tree = self.embed(images, scan_index=scan_index, air=air, seeds=seeds)
        return self.finish(self.run_blocks(x, tree, stop=self.config.depth - 1), tree)

    def forward_features(self, images: Studies, *, scan_index: Any = None, air: float | None = None) -> list[Tensor]:
        """All tokens of each study after the final norm: B tensors [P + T, C], prefix tokens first."""
        x, tree = self.embed(images, scan_index=scan_index, air=air)
        x = tree.regroup(self.run_blocks(x, tree), self.config.levels[-1], "study")
        return list(self.norm(x).split([size + tree.num_prefix for size in tree["study"].sizes]))

    def embed(
        self, images: Studies, *, scan_index: Any = None, air: float | None = None, seeds: Sequence[int] | None = None
    ) -> tuple[Tensor, Hierarchy]:
        """Packed tokens [R, C] at the level of the first block, and the tree they belong to."""
        studies = check_studies(images, self.config)
        draws = [None] * len(studies) if seeds is None else [torch.Generator().manual_seed(seed) for seed in seeds]
        patches, counts, slabs, masks = [], [], [], []
        for i, (study, draw) in enumerate(zip(studies, draws, strict=True)):
            tokens, mask, grid = self._tokens(study, air, draw)
            position = self._position(grid, self._sequential_rows(len(study), i, scan_index, draw))
            position = position.to(self.cls_token.dtype)  # [n or 1, d*h*w, c]
            if mask is not None:
                position = position.expand(*mask.shape, -1)[mask]  # [t, c]
                masks.append(mask.flatten())
            patches.append((tokens + position).flatten(0, -2))
            counts.append(_count(mask, len(study), grid))
            slabs += [grid[0]] * len(study)
        tree = Hierarchy(
            torch.cat(counts),
            slabs=slabs,
            scans=[len(study) for study in studies],
            num_prefix=self.config.num_prefix,
            device=self.cls_token.device,
            kept=torch.cat(masks) if masks else None,
        )
        return self._pack(torch.cat(patches), tree), tree

    def project(self, study: Tensor, *, air: float | None = None) -> Patches:
        """A study [N, 1, D, H, W] cut and projected, to be given to :meth:`forward` in its place.

        Saves the work for a study that is encoded again and again while the patch embedding does not change.
        """
        (study,) = check_studies([study], self.config)
        grid = patch_grid(study.shape[2:], self.config.patch_size)
        voxels = self.patch_embed.cut(study)  # [n, d*h*w, voxels]
        mask = _not_air(voxels, air)
        kept = torch.ones(voxels.shape[:2], dtype=torch.bool, device=voxels.device) if mask is None else mask
        return Patches(self.patch_embed(self.patch_embed.parts(study, voxels)[kept]), kept, grid)

    def _tokens(
        self, study: Tensor | Patches, air: float | None, draw: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None, tuple[int, int, int]]:
        """Tokens without positions, [T, C] of the patches that the mask keeps; [N, d*h*w, C] where it is None."""
        if isinstance(study, Patches):
            drawn = self._drawn(study.kept, study.grid, draw)
            if drawn is None:
                return study.tokens.to(self.cls_token.dtype), study.kept, study.grid
            return study.tokens[drawn[study.kept]].to(self.cls_token.dtype), study.kept & drawn, study.grid
        grid = patch_grid(study.shape[2:], self.config.patch_size)
        voxels = self.patch_embed.cut(study)  # [n, d*h*w, voxels]
        mask = _not_air(voxels, air)
        drawn = self._drawn(voxels, grid, draw)
        if drawn is not None:
            mask = drawn if mask is None else mask & drawn
        parts = self.patch_embed.parts(study, voxels)
        return self.patch_embed(parts if mask is None else parts[mask]), mask, grid

    def run_blocks(self, x: Tensor, tree: Hierarchy, *, stop: int | None = None) -> Tensor:
        """The blocks before ``stop`` (all of them) over tokens of the first block's level, [R, C] -> [R', C]."""
        level = self.config.levels[0]
        for block, new in list(zip(self.blocks, self.config.levels, strict=True))[:stop]:
            x, level = tree.regroup(x, level, new), new
            x = self._run_block(block, x, tree[level])
        return x

    def finish(self, x: Tensor, tree: Hierarchy) -> Tensor:
        """The last block, norm and pooling over tokens that all other blocks have seen: -> [B, P, num_features]."""
        level = self.config.levels[-1]
        x = self.enter_last(x, tree)
        if self.config.pool == "cls":  # what the last block does to the patches is not needed
            return self.norm(tree.pool(self._run_block(self.blocks[-1].forward_prefix, x, tree[level]), level))
        x = self.norm(tree.regroup(self._run_block(self.blocks[-1], x, tree[level]), level, "study"))
        groups = tree["study"]
        prefix = x.index_select(0, groups.prefix_rows).unflatten(0, (len(groups), -1))  # [b, p, c]
        patches = x.index_select(0, groups.patch_rows).split(groups.sizes)
        if self.config.pool == "cls_mean":
            whole = torch.stack([part.sum(0) / max(len(part), 1) for part in patches])
        else:
            whole = torch.stack([part.amax(0) if len(part) else part.sum(0) for part in patches])
        return torch.cat([prefix, whole[:, None].expand_as(prefix)], dim=2)

    def enter_last(self, x: Tensor, tree: Hierarchy) -> Tensor:
        """Bring what ``run_blocks(stop=depth - 1)`` gives to the level of the last block."""
        return tree.regroup(x, self.config.levels[max(self.config.depth - 2, 0)], self.config.levels[-1])

    def _run_block(self, function: Any, x: Tensor, groups: Groups) -> Tensor:
        if self.grad_checkpointing and self.training:
            return checkpoint(function, x, groups, use_reentrant=False)
        return function(x, groups)

    def _pack(self, patches: Tensor, tree: Hierarchy) -> Tensor:
        groups = tree[self.config.levels[0]]
        prefix = self.cls_token[0]
        if self.config.num_registers:
            prefix = torch.cat([prefix, self.reg_token[0]])
        x = patches.new_empty(groups.num_rows, patches.shape[1])
        x.index_copy_(0, groups.prefix_rows, prefix.repeat(len(groups), 1).to(x.dtype))
        return x.index_copy_(0, groups.patch_rows, patches)

    def _sequential_rows(
        self, num_scans: int, place: int, scan_index: Any, draw: torch.Generator | None
    ) -> Tensor | None:
        """[N, C] rows of the sequential table for one study of a batch, None where there is no table."""
        if self.config.max_num_scans == 1:
            return None
        rows = self.sequential_posemb[0].float()
        if scan_index is not None:
            return rows[check_scan_index(scan_index, place, num_scans, len(rows)).to(rows.device)]
        if self.training and num_scans <= len(rows):
            return rows[torch.randperm(len(rows), generator=draw)[:num_scans].to(rows.device)]
        return resize_sequential(rows, num_scans)

    def _position(self, grid: tuple[int, int, int], rows: Tensor | None) -> Tensor:
        """Spatial and sequential position summed in float32: [N or 1, d*h*w, C]."""
        spatial = resize_spatial(self.spatial_posemb.float(), grid).flatten(1, 3)
        return spatial if rows is None else spatial + rows[:, None]

    def _drawn(self, patches: Tensor, grid: tuple[int, int, int], draw: torch.Generator | None) -> Tensor | None:
        """[N, d*h*w] which of ``patches`` [N, d*h*w, ...] patch dropout leaves; None: all of them."""
        if not (self.training and self.patch_dropout):
            return None
        per_slab = grid[1] * grid[2]
        keep = max(1, round(per_slab * (1 - self.patch_dropout)))
        order = torch.rand(len(patches) * grid[0], per_slab, generator=draw).argsort(1)
        return (order < keep).view(patches.shape[:2]).to(patches.device)


def _not_air(voxels: Tensor, air: float | None) -> Tensor | None:
    """[N, d*h*w] patches [N, d*h*w, voxels] that are not air; None: nobody asked."""
    return None if air is None else (voxels > air).float().mean(2) >= TISSUE


def _count(mask: Tensor | None, num_scans: int, grid: tuple[int, int, int]) -> Tensor:
    """[N * d] patches of each slab."""
    if mask is None:
        return torch.full((num_scans * grid[0],), grid[1] * grid[2])
    return mask.view(num_scans * grid[0], -1).sum(1).cpu()


def check_studies(images: Studies, config: EncoderConfig) -> list[Any]:
    """The studies of a batch, each [N, 1, D, H, W] or its patches.

    Raises :class:`InputError` for what the encoder cannot take.
    """
    if isinstance(images, Tensor) and images.ndim != 6:
        raise InputError(f"images must be [B, N, {config.in_chans}, D, H, W], got {tuple(images.shape)}")
    studies = list(images)
    if not studies:
        raise InputError("no study in the batch")
    for study in studies:
        if isinstance(study, Patches):
            if study.tokens.ndim != 2 or study.tokens.shape[1] != config.embed_dim or not len(study):
                raise InputError(f"patches must be tokens [T, {config.embed_dim}] of at least one scan")
            continue
        shape = tuple(study.shape)
        if study.ndim != 5 or shape[1] != config.in_chans:
            raise InputError(f"a study must be [N, {config.in_chans}, D, H, W], got {shape}")
        if shape[0] == 0:
            raise InputError("a study without scans")
        if 0 in patch_grid(shape[2:], config.patch_size):
            raise InputError(f"a scan of {shape[2:]} voxels is smaller than a patch of {config.patch_size}")
        if not study.is_floating_point():
            raise InputError(f"voxels must be normalised floating point numbers, got {study.dtype}")
        if not torch.isfinite(study.sum(dtype=torch.float64)):
            raise InputError("voxels that are not finite (NaN or infinite)")
    return studies


def check_scan_index(scan_index: Any, study: int, num_scans: int, num_rows: int) -> Tensor:
    """[N] rows of the sequential table for one study, from [N] for all studies or one [N] for each."""
    shared = torch.as_tensor(scan_index[0]).ndim == 0
    index = torch.as_tensor(scan_index if shared else scan_index[study], dtype=torch.long)
    if index.shape != (num_scans,) or index.min() < 0 or index.max() >= num_rows:
        raise InputError(f"scan_index must name {num_scans} of {num_rows} rows, got {index.tolist()}")
    return index


def create_encoder(name: str, **overrides: Any) -> Encoder:
    """An encoder of a published architecture with random weights.

    ``name`` is a key of :data:`ENCODERS`; ``overrides`` replace fields of its :class:`EncoderConfig`.
    The encoder takes [B, N, 1, D, H, W] and gives [B, C]. Raises :class:`InputError` for an unknown name.
    """
    if name not in ENCODERS:
        raise InputError(f"unknown encoder {name!r}; known: {', '.join(ENCODERS)}")
    return Encoder(replace(ENCODERS[name], **overrides))
