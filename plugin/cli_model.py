"""The command `hlip model`: bundles from released checkpoints, their findings, their calibration."""

import json
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.progress import track
from rich.table import Table

from hlip_core.architectures import ENCODERS
from hlip_core.errors import CheckpointMismatch, InputError
from hlip_core.findings import DEFAULT
from hlip_core.preprocessing import PREPROCESSINGS
from plugin.console import console, errors

if TYPE_CHECKING:
    from hlip_core.bundle import Bundle

app = typer.Typer(
    no_args_is_help=True,
    help="""Model bundles: import released weights, show what is in a bundle, change its findings, calibrate it.

A bundle is a folder that holds everything that fixes what the model says, each file by its digest.""",
)

BundlePath = Annotated[Path, typer.Argument(help="Folder of the bundle.", exists=True, file_okay=False)]
Out = Annotated[Path | None, typer.Option(help="Write the changed bundle here. Without: in place of the old one.")]


class Precision(StrEnum):
    """Number format of matrix products."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class CalibrationMethod(StrEnum):
    """Form of the curve from score to probability."""

    PLATT = "platt"
    ISOTONIC = "isotonic"


def load_bundle(path: Path) -> "Bundle":
    """As `hlip_core.bundle.load_bundle`, imported when it is needed: every `hlip` command imports this module."""
    from hlip_core import bundle

    return bundle.load_bundle(path)


@app.command("list")
def list_models(
    folder: Annotated[Path | None, typer.Argument(help="A folder with bundles in it.", file_okay=False)] = None,
) -> None:
    """List the published models that `import` knows, or the bundles in a folder."""
    if folder is None:
        table = Table("model", "patches", "patch (voxels)", "width", "blocks")
        for name, config in ENCODERS.items():
            patches = int(np.prod(config.grid_size))
            patch = " x ".join(map(str, config.patch_size))
            table.add_row(name, str(patches), patch, str(config.embed_dim), str(config.depth))
        console.print(table)
        console.print("Models with 1568 patches are built from their description and not verified against numbers.")
        return
    table = Table("folder", "name", "version", "status", "digest")
    for path in sorted(folder.iterdir()):
        if (path / "digests.json").is_file():
            bundle = load_bundle(path)
            table.add_row(path.name, bundle.name, bundle.version, bundle.status, bundle.digest[:12])
    console.print(table)


@app.command("import")
def import_model(
    checkpoint: Annotated[Path, typer.Argument(help="Released checkpoint (.pt) or safetensors.", exists=True)],
    model: Annotated[str, typer.Option(help="A published model, see `hlip model list`; or a JSON configuration.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder with tokenizer.json or vocab.txt.", exists=True)],
    out: Annotated[Path, typer.Option(help="Folder of the new bundle; must not exist.")],
    findings: Annotated[Path, typer.Option(help="Table of findings.", exists=True)] = DEFAULT,
    preprocessing: Annotated[str, typer.Option(help=f"One of {', '.join(PREPROCESSINGS)}.")] = "head-ct/1",
    precision: Annotated[Precision, typer.Option(help="bf16 is faster; 1 - cosine stays below 1e-4.")] = Precision.FP32,
    drop_air: Annotated[bool, typer.Option(help="Leave out patches of air: faster, other numbers.")] = False,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; else that of its folder.")] = None,
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "1",
    data: Annotated[str, typer.Option(help="What it was trained on.")] = "not stated",
    licence: Annotated[str, typer.Option(help="Licence of the weights.")] = "not stated",
    intended_use: Annotated[str, typer.Option(help="What it is for.")] = "research; not for diagnosis",
) -> None:
    """Make a bundle of a released checkpoint.

    Only numbers are read from the file: one that would run code is refused. Parameters that are missing, unexpected
    or of another shape are listed, and nothing is written.
    """
    from hlip_core.making import Description, import_checkpoint

    if preprocessing not in PREPROCESSINGS:
        raise typer.BadParameter(f"no preprocessing {preprocessing}; there are {', '.join(PREPROCESSINGS)}")
    description = Description(
        name=name or out.name,
        version=version,
        status="trained",
        preprocessing=PREPROCESSINGS[preprocessing],
        provenance={
            "model": model,
            "checkpoint": checkpoint.name,
            "data": data,
            "licence": licence,
            "intended_use": intended_use,
        },
        precision=precision.value,
        drop_air=drop_air,
    )
    table = findings.read_bytes()
    try:
        import_checkpoint(checkpoint, model, out, description, findings=table, tokenizer=tokenizer)
    except CheckpointMismatch as error:
        for kind in ("missing", "unexpected", "misshapen"):
            for parameter in getattr(error, kind):
                console.print(f"{kind}: {parameter}", highlight=False)
        raise
    _print_bundle(load_bundle(out))


@app.command()
def show(
    path: BundlePath,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Show what is in a bundle, after every file was checked against its digest."""
    bundle = load_bundle(path)
    if as_json:
        print(json.dumps(_facts(bundle) | {"findings": _finding_rows(bundle)}, indent=2))
    else:
        _print_bundle(bundle)


@app.command()
def prompts(
    path: BundlePath,
    findings: Annotated[Path, typer.Argument(help="The new table of findings (TOML).", exists=True)],
    out: Out = None,
) -> None:
    """Give a bundle another table of findings: class vectors are computed again, without training.

    A hospital adds a finding by adding a row to a copy of the bundle's findings.toml. A finding whose prompts changed
    loses its calibration.
    """
    from hlip_core.making import replace_findings

    lost = replace_findings(load_bundle(path), findings.read_bytes(), out or path, replace=out is None)
    _print_bundle(load_bundle(out or path))
    if lost:
        console.print(f"No longer calibrated, since the prompts changed: {', '.join(lost)}")


@app.command()
def calibrate(
    path: BundlePath,
    truth: Annotated[
        Path,
        typer.Argument(
            help="Labelled studies: CSV with a column `study` and one column (0, 1 or empty) a finding, or JSON lines "
            "with `folder` and `labels`, as `hlip-train phantom` writes them.",
            exists=True,
        ),
    ],
    studies: Annotated[Path | None, typer.Option(help="Folder with a folder of DICOM for each study.")] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="Vectors of the studies (safetensors): read if it exists, else written.")
    ] = None,
    method: Annotated[CalibrationMethod, typer.Option(help="isotonic needs many studies.")] = CalibrationMethod.PLATT,
    sensitivity: Annotated[float | None, typer.Option(help="Choose thresholds that reach it (0..1).")] = None,
    specificity: Annotated[float | None, typer.Option(help="Choose thresholds that reach it (0..1).")] = None,
    out: Out = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Turn the scores of a bundle into probabilities, from studies of which the truth is known.

    Each finding gets a curve, a threshold (with --sensitivity or --specificity), intervals and a reliability diagram.
    Findings that too few studies show, or that the scores do not separate, stay uncalibrated, with the reason. Use
    studies of your own site that were not used for training.
    """
    from hlip_core.calibration_findings import fit_findings
    from hlip_core.calibration_fit import Target
    from hlip_core.making import replace_calibrations
    from plugin.labelled import read_truth, study_vectors

    target = Target(sensitivity, specificity) if sensitivity is not None or specificity is not None else None
    bundle = load_bundle(path)
    known = read_truth(truth)
    vectors = study_vectors(bundle, known, studies=studies, embeddings=embeddings, device=device, progress=_progress)
    fitted = fit_findings(bundle, known, vectors, method=method.value, target=target)
    if fitted.calibrations:
        out = out or path
        changed = replace_calibrations(bundle, fitted.calibrations, out, diagrams=fitted.diagrams, replace=out == path)
        _print_bundle(changed)
    for label, reason in fitted.refused.items():
        console.print(f"{label} stays a score: {reason}", highlight=False)
    if not fitted.calibrations:
        raise InputError("no finding could be calibrated; the bundle is unchanged")


def _progress(names: Sequence[str]) -> Iterator[str]:
    yield from track(names, "studies", console=errors)


def _facts(bundle: "Bundle") -> dict[str, Any]:
    return {
        "name": bundle.name,
        "version": bundle.version,
        "status": bundle.status,
        "digest": bundle.digest,
        "weights_digest": bundle.weights_digest,
        "prompts_digest": bundle.prompts_digest,
        "calibration_digest": bundle.calibration_digest,
        "preprocessing": bundle.preprocessing.name,
        "preprocessing_digest": bundle.preprocessing.digest,
        "findings_version": bundle.findings.version,
        "precision": bundle.precision,
        "drop_air": bundle.drop_air,
        "max_scans": bundle.max_scans,
        "provenance": bundle.provenance,
    }


def _finding_rows(bundle: "Bundle") -> list[dict[str, Any]]:
    """JSON-ready rows of the findings and their calibration."""
    rows = []
    for finding in bundle.findings.findings:
        calibration = bundle.calibrations.get(finding.label)
        rows.append(
            {
                "label": finding.label,
                "name": finding.name,
                "critical": finding.critical,
                "code": [finding.code.value, finding.code.scheme, finding.code.meaning],
                "calibration": calibration and calibration.method,
                "threshold": calibration and calibration.threshold,
                "evidence": dict(calibration.evidence) if calibration else {},
            }
        )
    return rows


def _print_bundle(bundle: "Bundle") -> None:
    for key, value in _facts(bundle).items():
        console.print(f"{key.replace('_', ' '):22}{value}", highlight=False, soft_wrap=True)
    table = Table("finding", "critical", "calibration", "threshold", "AUC", "sensitivity", "specificity")
    for row in _finding_rows(bundle):
        evidence = [_with_interval(row["evidence"].get(key)) for key in ("auc", "sensitivity", "specificity")]
        threshold = "" if row["threshold"] is None else f"{row['threshold']:.3f}"
        critical = "yes" if row["critical"] else ""
        table.add_row(row["label"], critical, row["calibration"] or "score only", threshold, *evidence)
    console.print(table)


def _with_interval(values: list[float] | None) -> str:
    return "" if values is None else f"{values[0]:.2f} ({values[1]:.2f}-{values[2]:.2f})"
