"""Benchmark of the study encoder: one head CT of nine scans, and four studies of different sizes. Linux only (/proc).

    python deploy/bench/encoder.py [--repeats 7] [--bundle DIR] [--series DIR]

The systems run in turn in one process; each ratio is the median over the rounds of plain time / own time. Without
``--bundle`` the encoder has the published shape (ViT-B, h2, 1176 tokens a scan) and random weights.
"""

import argparse
import ctypes
import ctypes.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from hlip_core.assessment import air_level
from hlip_core.bundle import load_bundle
from hlip_core.encoder import Encoder, create_encoder
from hlip_core.preprocessing import PREPROCESSINGS
from hlip_core.volume import open_series, prepare
from hlip_core.windows import WINDOWS, model_scans

SPEC = PREPROCESSINGS["head-ct/1"]
GE_SERIES = Path(__file__).resolve().parents[3] / "shared/data/ct/ge_hispeed_human_tilt_vargap"
BATCH = (3, 6, 9, 15)


class PlainEncoder(nn.Module):
    """The forward as a reference would write it: timm's blocks, dense tensors, one study at a time."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        config = encoder.config
        self.levels = config.levels
        self.position = encoder.spatial_posemb.flatten(1, 3)  # [1, t, c]
        self.sequence = encoder.sequential_posemb
        self.cls_token, self.proj, self.norm = encoder.cls_token, encoder.patch_embed.proj, encoder.norm
        norm = type(encoder.norm)
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, qkv_bias=True, norm_layer=norm) for _ in range(config.depth)
        )
        self.blocks.load_state_dict(encoder.blocks.state_dict(), assign=True)

    def forward(self, study: Tensor) -> Tensor:
        """[N, 1, D, H, W] -> [C]."""
        n = len(study)
        patches = self.proj(study).flatten(2).transpose(1, 2)  # [n, t, c]
        patches = patches + self.position + self.sequence[0, :n, None]
        x = torch.cat([self.cls_token.expand(n, -1, -1), patches], dim=1)
        for block, level in zip(self.blocks, self.levels, strict=True):
            groups = 1 if level == "study" else n
            if len(x) != groups:
                cls, patches = x[:, :1], x[:, 1:]
                cls = cls.mean(dim=0, keepdim=True) if groups == 1 else cls.expand(groups, -1, -1)
                x = torch.cat([cls, patches.reshape(groups, -1, x.shape[2])], dim=1)
            x = block(x)
        return self.norm(x)[0, 0]


def head_scans(series: Path) -> Tensor:
    """A head CT in three windows [3, 1, D, H, W]: the series, or an ellipsoid where it is missing."""
    if series.is_dir():
        return torch.from_numpy(model_scans(prepare(open_series(sorted(series.iterdir())), SPEC), SPEC))
    z, y, x = np.ogrid[-1:1:48j, -1:1:224j, -1:1:224j]
    radius = np.sqrt(z**2 + (y / 0.85) ** 2 + (x / 0.7) ** 2)
    hu = np.where(radius < 0.85, 35.0, np.where(radius < 0.95, 900.0, -1000.0))
    hu += np.random.default_rng(0).normal(0, 5, hu.shape)
    scans = [(hu - w.low) / (w.high - w.low) for w in (WINDOWS[name] for name in SPEC.windows)]
    values = (np.clip(np.stack(scans), 0, 1) - SPEC.mean) / SPEC.std
    return torch.from_numpy(values[:, None].astype(np.float32))


@dataclass
class Measured:
    """What was seen of one system."""

    features: Tensor
    peak: float
    """Most resident memory of the process, MB."""
    working: float
    """How much of it was not there before, MB: without interpreter, weights and input."""
    seconds: list[float] = field(default_factory=list)


def resident(kind: str) -> float:
    """Resident memory of this process, MB: "VmRSS" now, "VmHWM" the most since it was reset (proc(5))."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[kind].split()[0]) / 1024


def watch(system: Callable[[], Tensor]) -> Measured:
    """A first round that warms up, and shows how much memory it takes."""
    ctypes.CDLL(ctypes.util.find_library("c")).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    features = system()
    peak = resident("VmHWM")
    return Measured(features, peak, peak - before)


def add_rows(table: Table, systems: dict[str, Callable[[], Tensor]], repeats: int) -> None:
    """Measure systems in turn; the first is what the others are compared with."""
    measured = {name: watch(system) for name, system in systems.items()}
    for _ in range(repeats):
        for name, system in systems.items():
            start = time.perf_counter()
            system()
            measured[name].seconds.append(time.perf_counter() - start)
    base = next(iter(measured.values()))
    for name, own in measured.items():
        ratios = [b / o for b, o in zip(base.seconds, own.seconds, strict=True)]
        table.add_row(
            name,
            f"{statistics.median(own.seconds):.2f}",
            f"{own.peak:.0f}",
            f"{own.working:.0f}",
            f"{(own.features - base.features).abs().max():.1e}",
            f"{F.cosine_similarity(own.features, base.features, dim=-1).min():.5f}",
            f"{statistics.median(ratios):.2f}",
        )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="rounds of the nine scans")
    parser.add_argument("--batch-repeats", type=int, default=1, help="rounds of the four studies")
    parser.add_argument("--bundle", type=Path, help="measure the encoder of this bundle")
    parser.add_argument("--series", type=Path, default=GE_SERIES, help="a head CT series (DICOM files)")
    options = parser.parse_args()

    torch.manual_seed(0)
    name = "vit_base_multiscan_h2_token1176"
    encoder = load_bundle(options.bundle).model().visual.trunk if options.bundle else create_encoder(name)
    encoder.eval()
    plain, air = PlainEncoder(encoder).eval(), air_level(SPEC)
    head = head_scans(options.series)
    study = head.repeat(3, 1, 1, 1, 1)
    batch = [head.repeat(n // 3, 1, 1, 1, 1) for n in BATCH]
    dropped = 1 - len(encoder.embed([study], air=air)[0]) / len(encoder.embed([study])[0])

    def fast() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return encoder([study], air=air).float()

    title = f"encoder, {torch.get_num_threads()} threads, {dropped:.0%} of the tokens are air"
    table = Table("system", "seconds", "peak MB", "working MB", "max difference", "cosine", "ratio", title=title)
    with torch.inference_mode():
        nine = {
            "9 scans, plain fp32": lambda: plain(study)[None],
            "9 scans, exact": lambda: encoder([study]),
            "9 scans, fast (bf16, no air)": fast,
        }
        add_rows(table, nine, options.repeats)
        table.add_section()
        sizes = "+".join(map(str, BATCH))
        four = {
            f"{sizes} scans, one by one": lambda: torch.cat([encoder([one]) for one in batch]),
            f"{sizes} scans, one call": lambda: encoder(batch),
        }
        add_rows(table, four, options.batch_repeats)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
