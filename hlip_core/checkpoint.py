"""Weights in and out: bundles, released checkpoints, state dicts.

A checkpoint is numbers only: it is read without running anything that it asks for.
"""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hlip_core.errors import BundleError, CheckpointMismatch, HostileCheckpoint
from hlip_core.model import Hlip, HlipConfig

if TYPE_CHECKING:
    from hlip_core.bundle import Bundle

__all__ = ["load_model", "load_strict", "read_checkpoint", "save_tower"]

STRAY = ("text.transformer.embeddings.position_ids", "text.transformer.embeddings.token_type_ids")
"""Buffers that older files carry and that are made anew."""

DAMAGED = (OSError, EOFError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, zipfile.BadZipFile)
"""What torch raises for a damaged checkpoint."""


def load_model(bundle: "Bundle", *, text: bool = False) -> Hlip:
    """The model of a bundle, on the CPU. Raises :class:`BundleError` for weights that do not fit."""
    from hlip_core.bundle import TEXT, TOKENIZER, WEIGHTS

    config = HlipConfig.from_dict(bundle.config["model"] | ({} if text else {"text": None}))
    state = read_safetensors(bundle.path / WEIGHTS)
    if text:
        if TEXT not in bundle.digests or config.text is None:
            raise BundleError(f"bundle {bundle.name!r} has no text tower")
        state |= read_safetensors(bundle.path / TEXT)
    with nullcontext() if text else torch.device("meta"):  # BERT makes buffers that no file holds
        model = Hlip(config)
    load_strict(model, state, assign=True)
    if text:
        model.text_tower.use_tokenizer(bundle.path / TOKENIZER)
    return model


def load_strict(model: nn.Module, state: Mapping[str, Tensor], *, assign: bool = False) -> None:
    """Load a state dict that must fit. Raises :class:`CheckpointMismatch`, which lists what does not."""
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    misshapen = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    if missing or unexpected or misshapen:
        raise CheckpointMismatch(missing=missing, unexpected=unexpected, misshapen=misshapen)
    model.load_state_dict(state, assign=assign)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file. Raises :class:`BundleError` for a truncated or foreign one."""
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path.name} is not a whole safetensors file: {error}") from error


def save_tower(model: Hlip, *, text: bool) -> bytes:
    """One tower of a model as a safetensors file: the text tower, or everything else."""
    state = {k: v.contiguous() for k, v in model.state_dict().items() if k.startswith("text.") == text}
    return safetensors.torch.save({name: state[name] for name in sorted(state)})


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a released or saved checkpoint (.pt, .pth, .safetensors), named as in :class:`Hlip`.

    The prefix ``module.`` of distributed training and stray position buffers are removed; epoch, optimizer and
    scaler beside the ``state_dict`` are ignored. Raises :class:`HostileCheckpoint` for a file that holds anything but
    plain values, :class:`BundleError` for one that cannot be read.
    """
    path = Path(path)
    content = read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise BundleError(f"{path.name} holds no state dict")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    return {name: value for name, value in state.items() if name not in STRAY}


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise HostileCheckpoint(f"{path.name} asks for more than numbers; it was not run") from error
    except DAMAGED as error:
        raise BundleError(f"{path.name} cannot be read as a checkpoint") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path.name} holds no state dict")
    return content
