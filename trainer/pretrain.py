"""`hlip-train pretrain`: contrast studies with their reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hlip_core.errors import HlipError


def pretrain(
    config: Annotated[
        Path, typer.Argument(help="A TOML file, or one that comes along: demo, brain-mri, head-ct, joint, ablation.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The run's folder; runs/NAME if not set.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Put a value over the file's, as section.name=value. Repeatable.")
    ] = None,
) -> None:
    """Pre-train an encoder on a cohort: studies against the sentences of their reports.

    The run's folder holds checkpoints (each with the whole configuration), `log.jsonl` and TensorBoard files. Start
    the same command again after an interruption: it goes on from the newest checkpoint, and ends as if there had
    been none. SIGTERM and Ctrl-C write a checkpoint first.

    **Examples**

    `hlip-train pretrain demo --set data.cohorts='["phantoms/train", "phantoms/validation"]'`

    `torchrun --nproc-per-node 8 -m trainer pretrain head-ct --set data.cohorts='["archive"]' --out runs/head-ct`

    `hlip-train bundle runs/demo --out demo-bundle` - what comes next
    """
    from trainer.config import load_config  # torch takes seconds to import: only where a model is trained
    from trainer.recipe import pretrain as run

    try:
        settings = load_config(config, tuple(change or ()))
        run(settings, out or Path("runs") / settings.name)
    except HlipError as error:
        Console(stderr=True).print(f"[red]{error}[/red]")
        raise typer.Exit(1) from error
