"""Many synthetic studies: in parallel, resumable, with a manifest."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from .study import PhantomStudy, write_study

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Batch:
    """What to make: `count` studies with the seeds seed, seed + 1, ..., all else as `write_study` takes it."""

    out: Path
    count: int
    seed: int
    options: dict[str, Any]

    def folder(self, index: int) -> Path:
        """Of one study: named by its seed, so that a longer batch keeps what a shorter one made."""
        return self.out / f"phantom-{self.seed + index:07d}"


def _one(batch: Batch, index: int) -> PhantomStudy:
    return write_study(batch.folder(index), seed=batch.seed + index, **batch.options)


def generate(batch: Batch, *, workers: int | None = None) -> Iterator[PhantomStudy]:
    """Makes the studies that are not there yet and yields each as it is done; writes the manifest at the end.

    A study that exists with the same parameters is kept. Interrupted, it can simply be started again.
    """
    batch.out.mkdir(parents=True, exist_ok=True)
    count = workers or os.cpu_count() or 1
    done: dict[int, PhantomStudy] = {}
    if count == 1:
        for index in range(batch.count):
            done[index] = _one(batch, index)
            yield done[index]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, mp_context=context, initializer=threadpool_limits, initargs=(1,)) as pool:
            tasks = {pool.submit(_one, batch, index): index for index in range(batch.count)}
            try:
                for task in as_completed(tasks):
                    done[tasks[task]] = task.result()
                    yield done[tasks[task]]
            finally:
                pool.shutdown(cancel_futures=True)
    write_manifest(batch.out / MANIFEST, [done[index] for index in range(batch.count)])


def write_manifest(path: Path, studies: list[PhantomStudy]) -> None:
    """One JSON row a study; replaced as a whole."""
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(study.row()) + "\n" for study in studies))
    part.replace(path)


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """The rows of a manifest."""
    return [json.loads(line) for line in path.read_text().splitlines() if line]
