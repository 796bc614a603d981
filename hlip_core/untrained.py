"""A small bundle of random numbers, so that the whole road can be gone before there is a trained model.

Everything in it comes from names by a formula: it is the same wherever it is written. What it says means nothing.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hlip_core.architectures import EncoderConfig
from hlip_core.bundle import CALIBRATION, CARD, CONFIG, EMBEDDINGS, FINDINGS, FORMAT, WEIGHTS, write_bundle
from hlip_core.checkpoint import save_tower
from hlip_core.findings import DEFAULT, FindingsTable
from hlip_core.model import Hlip, HlipConfig
from hlip_core.preprocessing import PREPROCESSINGS
from hlip_core.zero_shot import ClassEmbeddings

__all__ = ["write_untrained_bundle"]

TINY = EncoderConfig(
    img_size=(48, 224, 224),
    patch_size=(8, 16, 16),
    embed_dim=96,
    depth=3,
    num_heads=2,
    scan_blocks=(0, 1),
    study_blocks=(2,),
)

MODEL_CARD = """# UNTRAINED: random numbers

This bundle was never trained. Its scores and locations mean nothing; it exists to try out the software.
Not for diagnosis.
"""


def write_untrained_bundle(out: Path, *, encoder: EncoderConfig = TINY) -> Path:
    """Write the bundle to the folder ``out``, which must not exist; returns it. About 2 MB; needs no network.

    Another ``encoder`` makes one that takes as long as such a model does.
    """
    config = HlipConfig(encoder=encoder, text=None)
    table = FindingsTable.from_toml()
    description = {
        "format": FORMAT,
        "name": "untrained",
        "version": "1",
        "status": "untrained",
        "model": config.to_dict(),
        "preprocessing": PREPROCESSINGS["head-ct/1"].to_dict(),
        "inference": {"precision": "fp32", "drop_air": False},
        "max_scans": 60,
        "provenance": {"data": "none", "licence": "Apache-2.0", "intended_use": "software tests; not for diagnosis"},
    }
    return write_bundle(
        out,
        {
            CONFIG: (json.dumps(description, indent=1) + "\n").encode(),
            WEIGHTS: save_tower(_random_model(config), text=False),
            FINDINGS: DEFAULT.read_bytes(),
            EMBEDDINGS: ClassEmbeddings({label: _unit(label, 512) for label in table.labels}, {}).to_bytes(),
            CALIBRATION: b"{}\n",
            CARD: MODEL_CARD.encode(),
        },
    )


def _random_model(config: HlipConfig) -> Hlip:
    model = Hlip(config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.ndim > 0 and "norm" not in name:
            fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 1
            values = torch.from_numpy(_normal(name, parameter.shape)).float() / fan_in**0.5
            parameter.data.copy_(values if name.endswith("weight") else 0.02 * values)
    return model


def _normal(name: str, shape: Sequence[int]) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(tuple(shape))


def _unit(name: str, length: int) -> np.ndarray:
    vector = _normal(f"class {name}", (length,))
    return (vector / np.linalg.norm(vector)).astype(np.float32)
