"""What a run shows while it works: a progress line, a line of JSON each step, TensorBoard where it is installed.

RUN/log.jsonl       step, epoch, loss, learning rate, studies/s; and the AUCs of each validation
RUN/tensorboard/    the same
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from trainer.recipe import Run

__all__ = ["LOG", "Reporter", "read_log"]

LOG = "log.jsonl"
LINE_SECONDS = 60.0
"""How often a line is printed where there is no terminal to draw a bar on."""


class Reporter:
    """Of the first process; that of the others is silent."""

    def __init__(self, run: Run, folder: Path, *, silent: bool) -> None:
        self._silent = silent
        self._console = Console(quiet=silent)
        self._start = self._last_line = time.monotonic()
        self._studies = 0
        if silent:
            return
        self._keep_until(folder / LOG, run.step)
        self._log = (folder / LOG).open("a", encoding="utf-8")
        self._board = _tensorboard(folder) if run.config.progress.tensorboard else None
        self._progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=self._console, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task(run.config.name, total=run.plan.num_steps, completed=run.step, facts="")
        where = f"from step {run.step} " if run.step else ""
        self._console.print(
            f"{run.config.name}: {len(run.studies.train)} training studies, {len(run.studies.validation)} for "
            f"validation, {run.plan.num_steps} steps of {run.config.optimizer.batch_size} studies; {where}in {folder}"
        )

    @classmethod
    def of(cls, run: Run, folder: Path) -> Self:
        """The reporter of this process."""
        return cls(run, folder, silent=run.world.rank > 0)

    def __enter__(self) -> Self:
        if not self._silent:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._silent:
            self._progress.stop()
            self._log.close()
            if self._board is not None:
                self._board.close()

    def step(self, run: Run, loss: float) -> None:
        """After each step."""
        if self._silent:
            return
        self._studies += run.config.optimizer.batch_size
        speed = self._studies / (time.monotonic() - self._start)
        _, lr = run.plan.stage(run.step - 1)
        epoch = run.step / run.plan.steps_per_epoch
        self._write(run.step, {"epoch": round(epoch, 3), "loss": loss, "lr": lr, "studies_per_second": round(speed, 3)})
        facts = f"epoch {epoch:.2f}  loss {loss:.3f}  {speed:.1f} studies/s"
        self._progress.update(self._task, completed=run.step, facts=facts)
        if not self._console.is_terminal and time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(f"step {run.step}/{run.plan.num_steps}  {facts}")

    def validation(self, run: Run, aucs: dict[str, float]) -> None:
        """After each validation."""
        if self._silent or not aucs:
            return
        macro = sum(aucs.values()) / len(aucs)
        self._write(run.step, {"macro_auc": macro, "auc": aucs})
        each = "  ".join(f"{label} {auc:.2f}" for label, auc in aucs.items())
        self._console.print(f"step {run.step}: zero-shot macro AUC {macro:.3f}  ({each})")

    def stopped(self, run: Run) -> None:
        """After a signal, when the checkpoint is written."""
        self._console.print(f"Stopped at step {run.step}, checkpoint written; the same command goes on from there.")

    def _write(self, step: int, values: dict[str, Any]) -> None:
        self._log.write(json.dumps({"step": step, **values}) + "\n")
        self._log.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, dict):
                    for label, part in value.items():
                        self._board.add_scalar(f"{name}/{label}", part, step)
                else:
                    self._board.add_scalar(name, value, step)

    @staticmethod
    def _keep_until(path: Path, step: int) -> None:
        """Drops what the log says of steps after the checkpoint that the run goes on from."""
        if path.is_file():
            kept = [line for line in read_log(path.parent) if line["step"] <= step]
            part = path.with_suffix(".part")
            part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            part.replace(path)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last one that was cut off by a kill is left out."""
    found = []
    for line in (folder / LOG).read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # an extra
        return None
    return SummaryWriter(str(folder / "tensorboard"))
