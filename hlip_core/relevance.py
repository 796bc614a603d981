"""Where the model looked: relevance of each patch for the score of a finding.

The rule of gradient times attention (Chefer et al., "Generic attention-model explainability", ICCV 2021) on the last
block, which attends across the study, and there only on the row of the class token: a patch counts as much as its
attention, weighted by how much the score would rise with it, averaged over the heads. No tokens x tokens matrix is
ever made.

A high relevance says where the model looked, not where a lesion is.

Letters: N scans, D H W voxels, d h w the patch grid, R rows of the study (prefix and patch tokens), A attention heads,
C channels, E width of the shared space.
"""

# ruff: noqa: N806 (upper-case letters are sizes, see above)

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hlip_core.architectures import patch_grid
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
        self.grid = (len(images), *patch_grid(images.shape[2:], trunk.config.patch_size))
        with torch.no_grad():
            x, self._tree = trunk.embed([images], air=air)
            self._x = trunk.run_blocks(x, self._tree, stop=trunk.config.depth - 1)  # [r, c]
            features = trunk.finish(self._x, self._tree)
            self._features = features.float()  # [1, p, f]
            self.vector: Tensor = F.normalize(visual.project(features).float(), dim=-1)[0]
            """[E], of unit length."""

    def relevance(self, direction: np.ndarray) -> np.ndarray:
        """Relevance of each patch for a class direction [E]: [N, d, h, w] float32, never negative.

        A patch that was left out as air has 0.
        """
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
        return weights.view(self.grid).cpu().numpy()


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
