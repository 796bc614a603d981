"""Benchmark of a pre-training step: studies a second against a plain loop. Random voxels, random weights.

    python deploy/bench/training.py [--rounds 3] [--studies 8] [--size small|base]

Plain: one study at a time, dense tensors, timm's blocks, fp32. Ours: the batch packed, in fp32; and as the recipe has
it, in bf16, with half of the patches and without air. In turn, in one process.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from encoder import PlainEncoder
from rich.console import Console
from rich.table import Table

from hlip_core.architectures import EncoderConfig
from hlip_core.assessment import air_level
from hlip_core.encoder import Encoder
from hlip_core.preprocessing import PREPROCESSINGS

SHAPE = {"img_size": (48, 224, 224), "patch_size": (8, 16, 16)}
SIZES = {
    "small": EncoderConfig(**SHAPE, embed_dim=192, depth=6, num_heads=6, scan_blocks=(0, 1, 3, 4), study_blocks=(2, 5)),
    "base": EncoderConfig(**SHAPE, scan_blocks=(0, 1, 3, 4, 6, 7, 9, 10), study_blocks=(2, 5, 8, 11)),
}
SCANS = (3, 3, 6, 6, 3, 6, 9, 3)


def head(num_scans: int, draw: torch.Generator) -> torch.Tensor:
    """[N, 1, 48, 224, 224]: noise in an ellipsoid that fills half of the volume, air around it."""
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in SHAPE["img_size"]), indexing="ij")
    inside = (z**2 + (y / 0.95) ** 2 + (x / 0.8) ** 2) < 0.95
    air = (0 - PREPROCESSINGS["head-ct/1"].mean) / PREPROCESSINGS["head-ct/1"].std
    noise = torch.randn(num_scans, *inside.shape, generator=draw)
    return torch.where(inside, noise, torch.tensor(air))[:, None]


def contrast(features: torch.Tensor) -> torch.Tensor:
    """A loss over the batch against fixed texts."""
    texts = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    logits = 14 * F.normalize(features, dim=1) @ F.normalize(texts, dim=1).T
    return F.cross_entropy(logits, torch.arange(len(features)))


def plain_step(model: PlainEncoder, studies: list[torch.Tensor]) -> None:
    """One study at a time: the graphs of all are kept until the contrast."""
    contrast(torch.stack([model(study) for study in studies]).float()).backward()


def own_step(model: Encoder, studies: list[torch.Tensor], *, fast: bool) -> None:
    """As `trainer.contrast` does it; `fast`: bf16, half of the patches, no air."""
    model.train()
    model.patch_dropout = 0.5 if fast else 0.0
    with torch.autocast("cpu", torch.bfloat16, enabled=fast):
        features = model(studies, air=air_level(PREPROCESSINGS["head-ct/1"]) if fast else None)
    contrast(features.float()).backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--studies", type=int, default=8)
    parser.add_argument("--size", choices=SIZES, default="small")
    args = parser.parse_args()
    draw = torch.Generator().manual_seed(0)
    studies = [head(SCANS[i % len(SCANS)], draw) for i in range(args.studies)]
    encoder = Encoder(SIZES[args.size])
    plain = PlainEncoder(encoder)
    systems: dict[str, Callable[[], None]] = {
        "plain loop, fp32": lambda: plain_step(plain, studies),
        "packed, fp32": lambda: own_step(encoder, studies, fast=False),
        "packed, bf16, patch dropout 0.5, no air": lambda: own_step(encoder, studies, fast=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for step in systems.values():  # once to warm up
        step()
    for _ in range(args.rounds):
        for name, step in systems.items():
            encoder.zero_grad(set_to_none=True)
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    table = Table("system", "studies/s", "ratio", title=f"A training step, {args.studies} studies, {args.size} encoder")
    reference = seconds["plain loop, fp32"]
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(reference, taken, strict=True))
        table.add_row(name, f"{args.studies / statistics.median(taken):.2f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
