"""Checkpoints of a run: plain dicts, written whole or not at all, the newest few kept.

RUN/step-000200.pt    model, contrast, optimizer, step, and the run's whole configuration
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from hlip_core.checkpoint import DAMAGED
from hlip_core.errors import InputError

__all__ = ["latest", "load", "save"]


def save(folder: Path, content: dict[str, Any], *, keep: int) -> Path:
    """Writes `content` (with its `step`): a temporary name, fsync, rename, fsync of the folder; drops older ones."""
    path = folder / f"step-{content['step']:06d}.pt"
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    for old in sorted(folder.glob("step-*.pt"))[:-keep]:
        old.unlink()
    return path


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a run; None where there is none."""
    return max(folder.glob("step-*.pt"), default=None)


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU; numbers and plain values only.

    Raises:
        InputError: the file is no checkpoint of a run.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, *DAMAGED) as error:
        raise InputError(f"{path.name} cannot be read as a checkpoint: {type(error).__name__}") from error
    if not isinstance(content, dict) or not {"step", "model", "optimizer", "config"} <= content.keys():
        raise InputError(f"{path.name} is no checkpoint of `hlip-train pretrain`")
    return content
