"""Pre-training, top to bottom: studies, model, optimizer; batches, steps; checkpoints, validation.

Everything random follows from the seed, the epoch and the study, so a checkpoint holds only the step, the weights and
the optimizer's state, and a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import math
import signal
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from hlip_core.assessment import air_level
from hlip_core.errors import InputError
from hlip_core.findings import FindingsTable
from hlip_core.model import Hlip
from trainer import checkpoints
from trainer.config import Config, Stage
from trainer.contrast import Contrast
from trainer.dataset import Sample, Studies, batches
from trainer.kept import KeptPatches
from trainer.reporting import Reporter
from trainer.start import new_model, tokenizer_of
from trainer.validation import zero_shot_auc
from trainer.world import World

__all__ = ["Plan", "Run", "pretrain"]

MAX_LOGIT_SCALE = math.log(100)


@dataclass(frozen=True)
class Plan:
    """Which batch a step sees, in which stage, at which learning rate. All stages share one row of epochs."""

    config: Config
    num_studies: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch."""
        return self.num_studies // self.config.optimizer.batch_size

    @property
    def lengths(self) -> list[int]:
        """Steps of each stage."""
        return [max(1, round(stage.epochs * self.steps_per_epoch)) for stage in self.config.stages]

    @property
    def num_steps(self) -> int:
        """Of the run."""
        return sum(self.lengths)

    def stage(self, step: int) -> tuple[Stage, float]:
        """The stage of a step, and its learning rate: linear warm-up, then a cosine."""
        starts = [0, *accumulate(self.lengths)]
        at = bisect_right(starts, step) - 1
        stage, length, step = self.config.stages[at], self.lengths[at], step - starts[at]
        if step < stage.warmup_steps:
            return stage, stage.lr * (step + 1) / stage.warmup_steps
        along = (step - stage.warmup_steps) / max(1, length - stage.warmup_steps)
        return stage, stage.last_lr + (stage.lr - stage.last_lr) * (1 + math.cos(math.pi * along)) / 2

    def batches(self, start: int) -> Iterator[tuple[int, int, list[int]]]:
        """(step, epoch, studies) from step `start` to the end."""
        order: list[Any] = []
        for step in range(start, self.num_steps):
            epoch, place = divmod(step, self.steps_per_epoch)
            if not order or not place:
                order = batches(self.config.seed, epoch, self.num_studies, self.config.optimizer.batch_size)
            yield step, epoch, list(order[place])


class Run:
    """Everything of a run: made anew, or as its newest checkpoint left it."""

    def __init__(self, config: Config, folder: Path, world: World) -> None:
        self.config, self.folder, self.world = config, folder, world
        self.studies = Studies(config)
        self.plan = Plan(config, len(self.studies.train))
        self.air = air_level(self.studies.preprocessing) if config.data.drop_air else None
        self.tokenizer = tokenizer_of(config, self.studies, folder)
        self.model: Hlip = new_model(config, self.studies, self.tokenizer).to(world.device)
        self.model.visual.trunk.grad_checkpointing = config.optimizer.grad_checkpointing
        self._text = [parameter for parameter in self.model.text.parameters() if parameter.requires_grad]
        self.contrast = Contrast(config, self.model, world, air=self.air).to(world.device)
        self.optimizer = _optimizer(config, self.model, self.contrast)
        self.keep = KeptPatches(self.model.visual.trunk, air=self.air) if config.model.lock_patches else None
        self.step = 0
        if (path := checkpoints.latest(folder)) is not None:
            self._take_up(path)

    def _take_up(self, path: Path) -> None:
        content = checkpoints.load(path)
        before, now = _settings(content["config"]), _settings(self.config.model_dump(mode="json"))
        if changed := [name for name in now if before.get(name) != now[name]]:
            raise InputError(
                f"{self.folder} holds a run with other settings ({', '.join(changed)}): choose another --out"
            )
        self.model.load_state_dict(content["model"])
        self.contrast.load_state_dict(content["contrast"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step = content["step"]

    def train_step(self, samples: list[Sample]) -> float:
        """One step on this process's share of a batch; returns the loss over the whole of it."""
        stage, lr = self.plan.stage(self.step)
        self.model.train()
        self.model.visual.trunk.patch_dropout = stage.patch_dropout
        for parameter in self._text:
            parameter.requires_grad_(stage.text_lr > 0)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * (stage.text_lr if group["tower"] == "text" else 1)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.contrast.backward(samples, step=self.step, labels=stage.labels)
        if not math.isfinite(loss):
            raise InputError(f"the loss of step {self.step} is {loss}: lower the learning rate, or use fp32")
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name.endswith("logit_scale"):
                    parameter.clamp_(0, MAX_LOGIT_SCALE)
        self.step += 1
        return loss

    def save(self) -> None:
        """A checkpoint, by the first process."""
        if self.world.rank == 0:
            content = {
                "step": self.step,
                "model": self.model.state_dict(),
                "contrast": self.contrast.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "config": self.config.model_dump(mode="json"),
            }
            checkpoints.save(self.folder, content, keep=self.config.progress.keep_checkpoints)

    def validate(self, table: FindingsTable) -> dict[str, float]:
        """AUC by finding, on the first process; elsewhere nothing."""
        if self.world.rank or not self.studies.validation:
            return {}
        return zero_shot_auc(
            self.model, self.studies, table, limit=self.config.progress.validation_studies, air=self.air
        )

    def samples(self) -> Iterator[list[Sample]]:
        """This process's share of each batch from here to the end, read one batch ahead."""
        with ThreadPoolExecutor(self.config.data.workers) as pool:
            waiting: deque[list[Future[Sample]]] = deque()
            try:
                for step, epoch, batch in self.plan.batches(self.step):
                    stage, _ = self.plan.stage(step)
                    share = self.world.share(batch)
                    waiting.append(
                        [pool.submit(self.studies.sample, epoch, index, stage, self.keep) for index in share]
                    )
                    if len(waiting) > 1:
                        yield [future.result() for future in waiting.popleft()]
                while waiting:
                    yield [future.result() for future in waiting.popleft()]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def pretrain(config: Config, folder: Path) -> None:
    """Trains from the newest checkpoint in `folder` (or from the start) to the end of the last stage.

    SIGTERM and SIGINT end it after the step at hand, with a checkpoint.

    Raises:
        InputError: the configuration, a cohort or a checkpoint cannot be used, or the loss is no longer finite.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    world = World.join(config.device)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        run = Run(config, folder, world)
        table = FindingsTable.from_toml()
        with Reporter.of(run, folder) as reporter, _asked_to_stop() as asked:
            for samples in run.samples():
                loss = run.train_step(samples)
                reporter.step(run, loss)
                last = run.step == run.plan.num_steps
                if _due(run.step, config.progress.validation_steps) or last:
                    reporter.validation(run, run.validate(table))
                stop = world.any(bool(asked))
                if _due(run.step, config.progress.checkpoint_steps) or last or stop:
                    run.save()
                if stop:
                    reporter.stopped(run)
                    break
    finally:
        world.leave()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """A list that is empty until SIGTERM or SIGINT arrives; a second SIGINT ends the program at once."""
    asked: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _optimizer(config: Config, model: Hlip, contrast: Contrast) -> torch.optim.AdamW:
    """AdamW; weight decay for matrices only; the text tower in groups of its own."""
    given = config.optimizer
    groups: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in [*model.named_parameters(), *contrast.named_parameters()]:
        if parameter.requires_grad:
            tower = "text" if name.startswith("text.") else "image"
            groups.setdefault((tower, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "tower": tower, "weight_decay": given.weight_decay if matrix else 0.0}
            for (tower, matrix), parameters in groups.items()
        ],
        lr=1.0, betas=(given.beta1, given.beta2), eps=given.eps,
    )  # fmt: skip


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that must not change within a run: all but those of the machine and of what is reported."""
    return {name: value for name, value in config.items() if name not in ("threads", "device", "progress")}
