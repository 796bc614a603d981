"""`hlip-train phantom`: synthetic head CT studies with reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .audit import LIMIT
from .audit import audit as histogram_audit
from .generate import MANIFEST, Batch, generate
from .lesions import KINDS
from .picture import contact_sheet
from .population import LABELS, SERIES
from .scanner import MAKES
from .study import BODIES, PRESETS, PhantomStudy

console = Console()

SHEET_ROWS = 8


def phantom(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write into; made when missing.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many studies.")] = 1,
    seed: Annotated[int, typer.Option("--seed", "-s", min=0, help="First seed; study i has seed + i.")] = 0,
    preset: Annotated[str, typer.Option(help=f"How fine: {', '.join(PRESETS)}.")] = "training",
    body: Annotated[str, typer.Option(help=f"{', '.join(BODIES)}; all but head are studies to refuse.")] = "head",
    make: Annotated[
        str, typer.Option(help=f"Make of the scanner: {', '.join(MAKES)}; keep one for evaluation.")
    ] = "usual",
    lesions: Annotated[
        str | None, typer.Option(help=f"Ask for lesions, comma-separated: {', '.join(KINDS)}; or none.")
    ] = None,
    series: Annotated[str | None, typer.Option(help=f"Ask for series: {', '.join(SERIES)}.")] = None,
    conspicuity: Annotated[
        tuple[float, float],
        typer.Option(metavar="LOW HIGH", help="How easily lesions are seen: 0 hardly visible, 1 obvious."),
    ] = (0.0, 1.0),
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=1, help="Processes; all cores if not set.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Also draw a sheet of the first studies into this PNG file, a row each.")
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="Also measure what histograms alone can tell (some hundred studies).")
    ] = False,
) -> None:
    """Make synthetic head CT studies with reports, labels and lesion masks.

    Each study is a folder of valid CT Images (one folder a series) with `study.json` (labels, report) and
    `lesions.npz` (where the lesions are); `manifest.jsonl` lists them all. The same seed gives the same bytes.
    Start it again after an interruption: finished studies are kept.

    **Examples**

    `hlip-train phantom --count 2000 --seed 1 --out phantoms` - a training set

    `hlip-train phantom --lesions subdural --series localizer,thick,bone --preset full --out demo` - one study

    `hlip-train phantom --count 2000 --conspicuity 0.4 1 --out phantoms` - without what hardly shows

    `hlip-train phantom --count 300 --out phantoms --audit` - are they too easy?
    """
    if not 0 <= conspicuity[0] <= conspicuity[1] <= 1:
        raise typer.BadParameter("two numbers from 0 to 1, the lower one first", param_hint="--conspicuity")
    options: dict[str, Any] = {
        "preset": preset, "make": make, "body": body, "lesions": _split(lesions), "series": _split(series),
        "conspicuity": conspicuity,
    }  # fmt: skip
    _check(preset, PRESETS, "preset")
    _check(body, BODIES, "body")
    _check(make, MAKES, "make of scanner")
    for name in options["lesions"] or []:
        _check(name, {*KINDS, *LABELS, "none"}, "lesion")
    for name in options["series"] or []:
        _check(name, SERIES, "series")
    studies = _run(Batch(out, count, seed, options), workers)
    console.print(_summary(studies))
    console.print(f"{len(studies)} studies in {out}, listed in {out / MANIFEST}")
    if picture is not None:
        contact_sheet([study.folder for study in studies[:SHEET_ROWS]]).save(picture, optimize=True)
        console.print(f"First studies drawn in {picture}")
    if audit:
        console.print(_audit(out))


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _check(name: str, known: object, what: str) -> None:
    names = sorted(known)  # type: ignore[call-overload]
    if name not in names:
        raise typer.BadParameter(f"no such {what}: {name}. There are: {', '.join(names)}")


def _run(batch: Batch, workers: int | None) -> list[PhantomStudy]:
    columns = (
        TextColumn("[bold]phantoms"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}"),
    )  # fmt: skip
    studies = []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=batch.count)
        for study in generate(batch, workers=workers):
            studies.append(study)
            progress.update(task, advance=1, description=", ".join(study.conspicuity) or "normal")
    return studies


def _summary(studies: list[PhantomStudy]) -> Table:
    table = Table("finding", "studies", "share", "mean conspicuity", title="What was made")
    for label in LABELS:
        values = [study.conspicuity[label] for study in studies if study.labels[label]]
        mean = f"{sum(values) / len(values):.2f}" if values else ""
        table.add_row(label, str(len(values)), f"{len(values) / len(studies):.0%}", mean)
    return table


def _audit(out: Path) -> Table:
    rows = list(histogram_audit(out))
    table = Table("finding", "positives", "AUC", title="What global histograms and maxima can tell")
    for label, positives, auc in rows:
        table.add_row(label, str(positives), f"{auc:.3f}")
    if rows:
        macro = sum(auc for *_, auc in rows) / len(rows)
        table.add_row("macro", "", f"{macro:.3f}", style="bold")
        table.caption = f"{'too easy' if macro > LIMIT else 'not trivial'}: the limit is {LIMIT}"
    else:
        table.caption = "too few positives of any finding: make more studies"
    return table
