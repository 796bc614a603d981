"""One transformer block, whose tokens attend to their own group.

Letters: R packed rows (patch and prefix tokens), G groups of L tokens, P prefix tokens of a group, C channels, A heads.
"""

# ruff: noqa: N806 (upper-case letters are sizes, see above)

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from hlip_core.hierarchy import Groups

__all__ = ["GroupBlock", "LayerNorm"]

ROWS = 2048
"""Tokens that go through the MLP at once at inference: its hidden layer is four times as wide as the tokens."""


class LayerNorm(nn.LayerNorm):
    """With the epsilon of the published models."""

    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__(dim, eps=1e-6, **options)


class GroupBlock(Block):
    """timm's block over packed tokens: every token attends to its own group."""

    attn: Attention
    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    mlp: nn.Module

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads, qkv_bias=True, norm_layer=LayerNorm)

    def forward(self, x: Tensor, groups: Groups) -> Tensor:  # type: ignore[override]
        """[R, C] -> [R, C]."""
        x = x + self._attend(self.norm1(x), groups)
        if torch.is_grad_enabled():
            return x + self.mlp(self.norm2(x))
        for rows in x.split(ROWS):  # in place, and in parts that stay in the cache
            rows += self.mlp(self.norm2(rows))
        return x

    def _attend(self, x: Tensor, groups: Groups) -> Tensor:
        R, C = x.shape
        qkv = self.attn.qkv(x).view(R, 3, self.attn.num_heads, -1)
        parts = []
        for run, rows in zip(groups.runs, qkv.split(groups.run_rows), strict=True):
            packed = rows.unflatten(0, (run.count, run.length))  # [g, l, 3, a, c]
            q, k, v = packed.permute(2, 0, 3, 1, 4)  # [g, a, l, c] each
            parts.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, C))
        return self.attn.proj(parts[0] if len(parts) == 1 else torch.cat(parts))

    def forward_prefix(self, x: Tensor, groups: Groups) -> Tensor:
        """What :meth:`forward` gives in the prefix rows, without computing the others: [R, C] -> [G * P, C]."""
        y = self.norm1(x)
        prefix = x.index_select(0, groups.prefix_rows) + self.attn.proj(self._attend_prefix(y, groups))
        return prefix + self.mlp(self.norm2(prefix))

    def _attend_prefix(self, y: Tensor, groups: Groups) -> Tensor:
        R, C = y.shape
        weight, bias = self.attn.qkv.weight, self.attn.qkv.bias
        q = F.linear(y.index_select(0, groups.prefix_rows), weight[:C], bias[:C])  # [g * p, C]
        q = q.view(len(groups), groups.num_prefix, self.attn.num_heads, -1)
        kv = F.linear(y, weight[C:], bias[C:]).view(R, 2, self.attn.num_heads, -1)
        parts, group = [], 0
        for run, rows in zip(groups.runs, kv.split(groups.run_rows), strict=True):
            packed = rows.unflatten(0, (run.count, run.length))  # [g, l, 2, a, c]
            k, v = packed.permute(2, 0, 3, 1, 4)  # [g, a, l, c] each
            asked = q[group : group + run.count].transpose(1, 2)  # [g, a, p, c]
            parts.append(F.scaled_dot_product_attention(asked, k, v).transpose(1, 2).reshape(-1, C))
            group += run.count
        return torch.cat(parts)
