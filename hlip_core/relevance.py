"""Where the model looked: relevance of each patch, or of places within it, for the score of a finding.

The rule of gradient times attention (Chefer et al., "Generic attention-model explainability", ICCV 2021) on the last
block, which attends across the study, and there only on the row of the class token: a patch counts as much as its
attention, weighted by how much the score would rise with it, averaged over the heads. No tokens x tokens matrix is
ever made.

A patch of a small encoder is as large as a lesion. Where a convolutional stem stands before its tokens, the map is
made finer than them: gradient times activation of the stem's stages, summed over channels (HiResCAM, arXiv
2011.08891), says which voxels of the surroundings the score rose by; the rule above says which surroundings.

A high relevance says where the model looked, not where a lesion is.

Letters: N scans, D H W voxels, d h w the patch grid, R rows of the study (prefix and patch tokens), A attention heads,
C channels, E width of the shared space.
"""

# ruff: noqa: N806 (upper-case letters are sizes, see above)

from functools import cached_property
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from hlip_core.architectures import patch_grid, stem_strides
from hlip_core.block import GroupBlock
from hlip_core.errors import InputError
from hlip_core.model import VisualTower

__all__ = ["Look"]


class Look:
    """One study on its way through the encoder: its vector, and on demand where a score comes from."""

    def __init__(self, visual: VisualTower, images: Tensor, *, air: float | None = None) -> None:
        """``images`` [N, 1, D, H, W] normalised, on the device of the tower; ``air`` as in the encoder."""
        if visual.trunk.config.levels[-1] != "study":
            raise InputError("relevance needs a model whose last block attends across the study")
        trunk = visual.trunk
        self.visual = visual
        self.device = str(images.device)
        self._images, self._air = images, air
        self._grid = (len(images), *patch_grid(images.shape[2:], trunk.config.patch_size))
        with torch.no_grad():
            x, self._tree = trunk.embed([images], air=air)
            self._x = trunk.run_blocks(x, self._tree, stop=trunk.config.depth - 1)  # [r, c]
            features = trunk.finish(self._x, self._tree)
            self._features = features.float()  # [1, p, f]
            self.vector: Tensor = F.normalize(visual.project(features).float(), dim=-1)[0]
            """[E], of unit length."""

    @property
    def cell(self) -> tuple[int, int, int]:
        """Depth, rows and columns in voxels of what the map has a value for: a patch, or less with a stem."""
        config = self.visual.trunk.config
        steps = stem_strides(config.patch_size, len(config.stem)) if len(config.stem) > 1 else None
        return steps[0] if steps else config.patch_size

    def relevance(self, direction: np.ndarray) -> np.ndarray:
        """Relevance of each cell for a class direction [E]: [N, D/cell, H/cell, W/cell] float32, never negative.

        A patch that was left out as air has 0.
        """
        patches = self._of_patches(direction)
        inside = tuple(p // c for p, c in zip(self.visual.trunk.config.patch_size, self.cell, strict=True))
        if inside == (1, 1, 1):
            return patches
        stages = self._of_stages(direction)
        there = np.kron(self._kept, np.ones(inside, np.float32))
        patches = np.kron(patches, np.ones(inside, np.float32))
        near = gaussian_filter(patches, [0, *(size / 2 for size in inside)], mode="constant")
        fine = gaussian_filter(stages, [0, *(size / 3 for size in inside)], mode="constant")
        return np.sqrt(near) * fine * there

    def _of_patches(self, direction: np.ndarray) -> np.ndarray:
        """The rule of gradient times attention: [N, d, h, w] float32."""
        trunk = self.visual.trunk
        x = trunk.enter_last(self._x, self._tree).float()
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            attention, cls = _class_row(cast(GroupBlock, trunk.blocks[-1]), x)
            features = self._features.index_fill(2, torch.arange(len(cls), device=x.device), 0.0)
            features = features[:, 0] + F.pad(trunk.norm(cls), (0, features.shape[2] - len(cls)))
            vector = F.normalize(self.visual.head(features), dim=-1)[0]
            score = vector @ torch.from_numpy(direction).to(vector)
            (gradient,) = torch.autograd.grad(score, attention)
        weights = (gradient * attention).clamp(min=0).mean(0)[trunk.config.num_prefix :].detach()  # [t]
        kept = self._tree.kept
        if kept is not None:
            weights = weights.new_zeros(kept.numel()).masked_scatter(kept, weights)
        return weights.view(self._grid).cpu().numpy()

    @property
    def _kept(self) -> np.ndarray:
        """[N, d, h, w] which patches were not left out as air."""
        kept = self._tree.kept
        return np.ones(self._grid, bool) if kept is None else kept.view(self._grid).cpu().numpy()

    @cached_property
    def _graph(self) -> tuple[Tensor, list[Tensor]]:
        """The vector [E] with its way back to what each stage of the stem gives, but for the last: [N, C, ...]."""
        seen: list[Tensor] = []
        stem = self.visual.trunk.patch_embed.stem
        assert stem is not None
        hooks = [stage.register_forward_hook(lambda _, __, given: seen.append(given)) for stage in list(stem)[:-1]]
        try:
            with torch.enable_grad(), torch.autocast(self._images.device.type, enabled=False):
                images = self._images.detach().requires_grad_()
                vector = F.normalize(self.visual([images], air=self._air), dim=-1)[0]
        finally:
            for hook in hooks:
                hook.remove()
        return vector, seen

    def _of_stages(self, direction: np.ndarray) -> np.ndarray:
        """HiResCAM of the stem's stages, on average 1 each, summed: [N, D/cell, H/cell, W/cell] float32."""
        vector, stages = self._graph
        score = vector @ torch.from_numpy(direction).to(vector)
        gradients = torch.autograd.grad(score, stages, retain_graph=True)
        total = torch.zeros_like(stages[0][:, :1], requires_grad=False)
        for stage, gradient in zip(stages, gradients, strict=True):
            rise = (gradient * stage.detach()).sum(1, keepdim=True).clamp(min=0)
            rise = rise / rise.mean().clamp(min=torch.finfo(rise.dtype).tiny)
            total += F.interpolate(rise, size=total.shape[2:], mode="trilinear")
        return total[:, 0].cpu().numpy()


def _class_row(block: GroupBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """The class token of one study through a block, with its attention [A, R] as the start of the gradient: [C]."""
    R, C = x.shape
    weight, bias, heads = block.attn.qkv.weight, block.attn.qkv.bias, block.attn.num_heads
    with torch.no_grad():
        y = block.norm1(x)
        q = F.linear(y[0], weight[:C], bias[:C]).view(heads, 1, -1)  # [a, 1, c/a]
        k = F.linear(y, weight[C : 2 * C], bias[C : 2 * C]).view(R, heads, -1).transpose(0, 1)  # [a, r, c/a]
        v = F.linear(y, weight[2 * C :], bias[2 * C :]).view(R, heads, -1).transpose(0, 1)
        attention = (q @ k.transpose(1, 2) * block.attn.scale).softmax(-1)[:, 0]  # [a, r]
    attention.requires_grad_()
    cls = x[0] + block.attn.proj((attention[:, None] @ v).flatten())
    return attention, cls + block.mlp(block.norm2(cls))
