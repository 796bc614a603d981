"""A start from ImageNet: the weights of a 2D masked autoencoder (MAE) ViT become those of a study encoder.

The user supplies the weights; they are licensed for non-commercial use and are never part of this project.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from hlip_core.encoder import Encoder
from hlip_core.errors import CheckpointMismatch
from hlip_core.positions import add_depth

__all__ = ["convert_mae"]

_NEEDED = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")


def convert_mae(state: Mapping[str, Tensor], encoder: Encoder) -> dict[str, Tensor]:
    """A state dict for ``encoder.load_state_dict`` from the one of a 2D ViT (timm's or MAE's names).

    - patch kernel [C, 3, p, p]: resized to the encoder's patch (bicubic), summed over the colours, divided by the
      depth of the patch and repeated along it;
    - position table [1, 1 + h*w, C]: the class token's entry is added to the class token; the rest, resized to the
      encoder's grid where that differs (bicubic), plus a sin-cos code of the depth at full width is the spatial table;
    - blocks and final norm as they are; the sequential table and register tokens stay the encoder's own.

    Decoder, mask token and classifier of the given state are ignored. Raises :class:`CheckpointMismatch` when
    something is missing or has another shape.
    """
    own = encoder.state_dict()
    if missing := [name for name in _NEEDED if name not in state]:
        raise CheckpointMismatch("not the state dict of an ImageNet ViT", missing=missing)
    pos = state["pos_embed"].float()
    converted = own | {name: state[name] for name in own if name in state}
    converted["cls_token"] = state["cls_token"].float() + pos[:, :1]
    converted["patch_embed.proj.weight"] = _inflate(state["patch_embed.proj.weight"].float(), encoder)
    converted["spatial_posemb"] = _spatial(pos[:, 1:], encoder)
    missing = [name for name in own if name.startswith(("blocks.", "norm.")) and name not in state]
    misshapen = [name for name, value in converted.items() if value.shape != own[name].shape]
    if missing or misshapen:
        raise CheckpointMismatch("the ViT does not fit the encoder", missing=missing, misshapen=misshapen)
    return converted


def _inflate(kernel: Tensor, encoder: Encoder) -> Tensor:
    """[C, 3, p, p] -> [C, 1, depth, rows, columns]."""
    depth, *plane = encoder.config.patch_size
    if list(kernel.shape[2:]) != plane:
        kernel = F.interpolate(kernel, size=tuple(plane), mode="bicubic", align_corners=False)
    kernel = kernel.sum(dim=1, keepdim=True) / depth  # [c, 1, rows, columns]
    return kernel[:, :, None].repeat(1, 1, depth, 1, 1)


def _spatial(table: Tensor, encoder: Encoder) -> Tensor:
    """[1, h*w, C] -> [1, d, h, w, C]."""
    depth, *plane = encoder.config.grid_size
    side = round(table.shape[1] ** 0.5)
    table = table.unflatten(1, (side, -1))  # [1, h, w, c]
    if list(table.shape[1:3]) != plane:
        table = F.interpolate(table.permute(0, 3, 1, 2), size=tuple(plane), mode="bicubic", align_corners=False)
        table = table.permute(0, 2, 3, 1)
    return add_depth(table[0], depth)
