"""`hlip-train bundle`: from a run's newest checkpoint to a bundle that the plugin loads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from hlip_core.errors import HlipError, InputError

console = Console()

PHANTOM = "Trained on synthetic phantoms: it knows nothing of patients."


def bundle(
    run: Annotated[
        Path, typer.Argument(help="Folder of a run of `hlip-train pretrain`.", exists=True, file_okay=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new bundle; must not exist.")],
    version: Annotated[str, typer.Option(help="Of the bundle.")] = "1",
    findings: Annotated[Path | None, typer.Option(help="Table of findings (TOML); the default one if not set.")] = None,
    calibrate: Annotated[
        bool, typer.Option(help="Fit probabilities and thresholds on the validation studies of the run's cohorts.")
    ] = True,
    sensitivity: Annotated[float, typer.Option(help="What the thresholds reach on those studies.")] = 0.9,
    specificity: Annotated[
        float | None, typer.Option(help="What the thresholds reach on those studies, in place of a sensitivity.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Of the weights, as the bundle states it.")] = "not stated",
    data: Annotated[str, typer.Option(help="What it was trained on, in a sentence; phantoms are recognised.")] = "",
) -> None:
    """Make a bundle of a run: weights, prompts and class embeddings, calibration, model card, digests.

    A bundle whose training studies were all phantoms says so, and its results stay on the machine unless a setting
    says otherwise.

    **Example**

    `hlip-train bundle runs/demo --out demo-bundle`
    """
    from hlip_core.calibration_fit import Target

    try:
        target = Target(sensitivity=sensitivity) if specificity is None else Target(specificity=specificity)
        made = make_bundle(
            run, out, version=version, findings=findings, target=target if calibrate else None,
            licence=licence, data=data,
        )  # fmt: skip
    except HlipError as error:
        Console(stderr=True).print(f"[red]{error}[/red]")
        raise typer.Exit(1) from error
    calibrated = ", ".join(made.calibrations) or "none"
    size = sum((made.path / name).stat().st_size for name in made.digests) / 1e6
    console.print(f"{made.name} {made.version} ({made.status}), {size:.1f} MB, digest {made.digest[:12]}, in {out}")
    console.print(f"Calibrated findings: {calibrated}")


def make_bundle(
    run: Path, out: Path, *, version: str, findings: Path | None, target: Any, licence: str, data: str
) -> Any:
    """The `hlip_core.bundle.Bundle` of a run's newest checkpoint; `target` is what its thresholds reach, None: without.

    Raises:
        InputError: no checkpoint. BundleError: `out` exists, or the bundle cannot be written.
    """
    from hlip_core import findings as table  # torch takes seconds to import: only where a model is needed
    from hlip_core.bundle import load_bundle
    from hlip_core.checkpoint import load_strict
    from hlip_core.making import Description, bundle_model
    from hlip_core.model import Hlip
    from trainer import checkpoints
    from trainer.config import Config
    from trainer.dataset import Studies
    from trainer.start import architecture

    if (path := checkpoints.latest(run)) is None:
        raise InputError(f"no checkpoint in {run}: `hlip-train pretrain` writes them")
    content = checkpoints.load(path)
    config = Config.model_validate(content["config"])
    studies = Studies(config)
    model = Hlip(architecture(config))
    load_strict(model, content["model"])
    phantoms = all(row.source for _, row in studies.train)
    description = Description(
        name=config.name,
        version=version,
        status="phantom" if phantoms else "trained",
        preprocessing=studies.preprocessing,
        drop_air=config.data.drop_air,
        provenance={
            "data": data or (PHANTOM if phantoms else "not stated"),
            "training_studies": str(len(studies.train)),
            "training": _training(config, content["step"], run),
            "licence": licence,
            "intended_use": "Research. Not for diagnosis.",
        },
    )
    words = config.model.tokenizer or run / "tokenizer"
    rows = (findings or table.DEFAULT).read_bytes()
    bundle_model(model, out, description, findings=rows, tokenizer=words)
    made = load_bundle(out)
    if target is not None:
        made = _calibrated(made, studies, target)
    return made


def _training(config: Any, step: int, run: Path) -> str:
    from trainer.reporting import read_log

    log = read_log(run)
    losses = [line["loss"] for line in log if "loss" in line]
    last = next((line["macro_auc"] for line in reversed(log) if "macro_auc" in line), None)
    text = f"hlip-train pretrain, configuration {config.name}, seed {config.seed}, {step} steps of "
    text += f"{config.optimizer.batch_size} studies"
    if losses:
        text += f"; loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last"
    return text if last is None else f"{text}; zero-shot macro AUC on validation studies {last:.3f}"


def _calibrated(bundle: Any, studies: Any, target: Any) -> Any:
    import torch

    from hlip_core.calibration_findings import fit_findings
    from hlip_core.making import replace_calibrations

    rows = [(cohort, row) for cohort, row in studies.validation if row.labels]
    model, vectors = bundle.model(), {}
    with torch.inference_mode():
        for cohort, row in _shown(rows):
            vector = model.encode_image([studies.whole(cohort, row)], air=bundle.air)[0]
            vectors[row.study] = vector.float().numpy()
    truth = {row.study: row.labels for _, row in rows}
    fitted = fit_findings(bundle, truth, vectors, method="platt", target=target)
    for label, reason in fitted.refused.items():
        console.print(f"{label} stays a score: {reason}", highlight=False)
    if not fitted.calibrations:
        return bundle
    return replace_calibrations(bundle, fitted.calibrations, bundle.path, diagrams=fitted.diagrams, replace=True)


def _shown(rows: list[Any]) -> Iterable[Any]:
    return track(rows, "calibration", console=Console(stderr=True))
