"""`hlip-train evaluate`: the published protocol on a cohort, CQ500 or RSNA 2019."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hlip_core.errors import HlipError

if TYPE_CHECKING:
    from trainer.evaluation.evaluation import Evaluation

console, errors = Console(), Console(stderr=True)
RESULTS, SCORES, PICTURE = "results.json", "scores.csv", "roc.png"


class BenchmarkName(StrEnum):
    """What to evaluate on."""

    MANIFEST = "manifest"
    CQ500 = "cq500"
    RSNA = "rsna"


class SplitName(StrEnum):
    """Which studies of a cohort."""

    TEST = "test"
    VALIDATION = "validation"
    TRAIN = "train"
    ALL = "all"


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.", exists=True, file_okay=False)],
    data: Annotated[
        Path, typer.Option(help="The cohort's folder, or that of the public set.", exists=True, file_okay=False)
    ],
    benchmark: Annotated[
        BenchmarkName,
        typer.Option(help="manifest: a folder that `hlip-train cohort` wrote. cq500: reads.csv and its folders. "
                          "rsna: stage_2_train.csv and the images."),
    ] = BenchmarkName.MANIFEST,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help=f"Folder for {RESULTS}, {SCORES}, {PICTURE} and the studies' vectors. "
                                         "Started again, it takes up where it was interrupted."),
    ] = None,
    split: Annotated[SplitName, typer.Option(help="Which studies of a cohort.")] = SplitName.TEST,
    threshold: Annotated[
        list[str] | None,
        typer.Option(help="LABEL=VALUE, or a TOML file with [thresholds] such as hlip.toml; may be repeated. "
                          "Without: those of the bundle's calibration."),
    ] = None,
    phantoms: Annotated[
        Path | None,
        typer.Option(help="The phantoms that the cohort was made of: does the model look where the lesion is?",
                     exists=True, file_okay=False),
    ] = None,
    histogram: Annotated[
        bool, typer.Option("--histogram", help="With --phantoms: also what histograms alone can tell.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first studies.")] = None,
    series: Annotated[
        int | None, typer.Option(min=1, help="Only the first series of each study: what are more of them worth?")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Studies that go through the encoder at once.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Of the CPU; as PyTorch chooses if not set.")] = None,
) -> None:  # fmt: skip
    """Evaluate a bundle without training: zero-shot AUC with intervals, and whatever else the data allows.

    The score of a study is the cosine of its vector and the class's, as published. Printed are AUC by class and macro,
    sensitivity and specificity at the thresholds, retrieval of reports (with the text tower), and for the public sets
    what others published. For a cohort of phantoms also: AUC by conspicuity, in other words, by denial, and, with
    --phantoms, how often the model's point lies on the lesion.

    The sets are not downloaded here; unpack them as they come.

    **Examples**

    `hlip-train evaluate my-bundle --data cohort --out evaluation` - the test split of a cohort

    `hlip-train evaluate my-bundle --data cohort --phantoms phantoms --out evaluation` - a cohort of phantoms

    `hlip-train evaluate my-bundle --benchmark cq500 --data /data/CQ500 --out cq500 --device cuda --batch 8`

    `hlip-train evaluate my-bundle --benchmark rsna --data /data/rsna --out rsna --limit 500` - a first look
    """
    from hlip_core.bundle import load_bundle
    from trainer.evaluation.evaluation import Options
    from trainer.evaluation.evaluation import evaluate as run
    from trainer.evaluation.tables import tables
    from trainer.evaluation.thresholds import read_thresholds

    if histogram and phantoms is None:
        raise typer.BadParameter("--histogram needs --phantoms")
    _use_threads(threads)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    try:
        with _progress() as progress:
            options = Options(
                split=split.value, limit=limit, series=series, device=device, batch=batch, out=out,
                site=read_thresholds(threshold or []), phantoms=phantoms, histogram=histogram, track=_Track(progress),
            )  # fmt: skip
            found = run(load_bundle(bundle), benchmark.value, data, options)
    except HlipError as error:
        errors.print(f"[red]{error}[/red]", highlight=False)
        raise typer.Exit(1) from error
    for part in tables(found.document):
        console.print(part)
    if out is not None:
        _write(found, out)
        console.print(f"Written to {out}: {RESULTS}, {SCORES}, {PICTURE}")


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _progress() -> Progress:
    columns = (
        TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    return Progress(*columns, console=errors)


class _Track:
    """A bar for each long step."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def __call__(self, things: Sequence[Any], what: str) -> Iterable[Any]:
        yield from self.progress.track(things, description=what, total=len(things))


def _write(found: Evaluation, out: Path) -> None:
    from trainer.evaluation.picture import draw_roc

    (out / RESULTS).write_text(json.dumps(found.document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / SCORES).write_text(found.table(), encoding="utf-8")
    title = f"{found.document['bundle']['name']} on {found.document['benchmark']['title']}"
    (out / PICTURE).write_bytes(draw_roc(found.curves, title))
