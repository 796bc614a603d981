"""Benchmark of the fast mode on a trained bundle: what do bfloat16 and leaving out air cost in numbers?

    python deploy/bench/fast.py [--bundle DIR] [--count 200] [--phantoms DIR] [--threads 2]

The same synthetic studies (`hlip-train phantom --make other --conspicuity 0.4 1`, or the folders in --phantoms) go
through the bundle in turn, exact (fp32, every token) and fast (bf16, no air). The cosine is between the vectors of a
study; the AUCs are zero-shot, macro over the findings that occur. Beside them stands the real head CT of encoder.py,
nine times.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from copy import copy
from pathlib import Path

import numpy as np
import torch
from encoder import GE_SERIES
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hlip_core.assessment import order_scans
from hlip_core.bundle import Bundle, load_bundle
from hlip_core.metrics import zero_shot_auc
from hlip_core.prepared import PreparedScan
from hlip_core.volume import open_series, prepare
from trainer.evaluation.dicom import prepare_series
from trainer.phantom.study import read_study

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "hlip_core" / "demo"
MODES = {"exact (fp32, all tokens)": ("fp32", False), "fast (bf16, no air)": ("bf16", True)}


def write_phantoms(folder: Path, count: int) -> None:
    """Studies of a scanner and of seeds that no training has seen."""
    command = [sys.executable, "-m", "trainer", "phantom", "--out", str(folder), "--count", str(count)]
    how = ["--seed", "9800000", "--make", "other", "--conspicuity", "0.4", "1", "--preset", "small"]
    subprocess.run([*command, *how], check=True, cwd=ROOT)


def scans_of(study: Path, bundle: Bundle) -> list[PreparedScan]:
    """What the encoder is shown of a study, in order."""
    series = [open_series(sorted(path.iterdir())) for path in sorted(study.iterdir()) if path.is_dir()]
    scans = order_scans(prepare_series(series, bundle.preprocessing)[0])
    return scans[: bundle.max_scans // len(bundle.preprocessing.windows)]


def in_mode(bundle: Bundle, precision: str, *, drop_air: bool) -> Bundle:
    """The bundle, to be run otherwise."""
    other = copy(bundle)
    other.precision, other.drop_air = precision, drop_air
    return other


def real_head(bundle: Bundle) -> np.ndarray:
    """The vector of nine scans of the series; zeros where it is missing."""
    if not GE_SERIES.is_dir():
        return np.zeros(1)
    scan = prepare(open_series(sorted(GE_SERIES.iterdir())), bundle.preprocessing)
    return bundle.embed([scan] * (9 // len(bundle.preprocessing.windows)))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=DEMO)
    parser.add_argument("--count", type=int, default=200, help="phantoms to make")
    parser.add_argument("--phantoms", type=Path, help="take these, of hlip-train phantom")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    bundle = load_bundle(options.bundle)
    modes = {name: in_mode(bundle, precision, drop_air=drop_air) for name, (precision, drop_air) in MODES.items()}
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in modes}
    seconds: dict[str, list[float]] = {name: [] for name in modes}
    truths = []
    with tempfile.TemporaryDirectory() as made:
        folder = options.phantoms or Path(made)
        if options.phantoms is None:
            write_phantoms(folder, options.count)
        for path in track(sorted(path.parent for path in folder.glob("*/study.json")), "encoding"):
            scans = scans_of(path, bundle)
            if not scans:
                continue
            truths.append(read_study(path).labels)
            for name, mode in modes.items():
                begun = time.perf_counter()
                vectors[name].append(mode.embed(scans))
                seconds[name].append(time.perf_counter() - begun)
    exact = np.array(vectors[next(iter(modes))])
    columns = ("mode", "ms a study", "cosine, median", "5 %", "lowest", "macro AUC", "cosine, real head CT")
    table = Table(*columns, title=f"{len(truths)} phantoms")
    real = {name: real_head(mode) for name, mode in modes.items()}
    for name, found in vectors.items():
        cosines = (np.array(found) * exact).sum(1)
        table.add_row(
            name,
            f"{1000 * np.median(seconds[name]):.1f}",
            f"{np.median(cosines):.5f}",
            f"{np.quantile(cosines, 0.05):.5f}",
            f"{cosines.min():.5f}",
            f"{np.mean(list(zero_shot_auc(np.array(found), truths, bundle.embeddings).values())):.4f}",
            f"{real[name] @ real[next(iter(modes))]:.5f}" if GE_SERIES.is_dir() else "",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
