"""The settings of a pre-training run, as tables: a TOML file read by `hlip-train pretrain`.

The files in `trainer/configs/` say what each setting means where it is used; unknown names are errors.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hlip_core.errors import InputError

__all__ = ["CONFIGS", "Config", "Stage", "load_config"]

CONFIGS = Path(__file__).with_name("configs")
"""The configurations that come along."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    cohorts: tuple[Path, ...] = Field(min_length=1)
    """Folders that `hlip-train cohort` wrote, all of one preprocessing."""
    mirror: bool = False
    """Mirror every other study left to right, and exchange the words left and right in its report."""
    jitter: bool = False
    """Cut the model's rows and columns at a random place instead of the centre."""
    variants: int = Field(0, ge=0)
    """Show each study in so many ways, mirrored and cut, in turn; 0: in a new one each epoch."""
    drop_air: bool = False
    """Leave out patches of air, as a bundle with `drop_air` does."""
    workers: int = Field(1, ge=1)
    """Threads that read and window studies ahead of the model."""


class Model(Section):
    encoder: str | dict[str, Any]
    """A published name, or fields of `hlip_core.EncoderConfig`."""
    text: dict[str, Any] = {}
    """Fields of transformers' BertConfig; none: BERT base. Dropout is off unless it is set here."""
    context_length: int = Field(256, ge=8)
    embed_dim: int = Field(512, ge=8)
    tokenizer: Path | None = None
    """A local folder with vocab.txt or tokenizer.json; none: a WordPiece vocabulary is learnt from the reports."""
    vocabulary: int = Field(2000, ge=100)
    """Most words of a learnt vocabulary."""
    start_image: Path | None = None
    """State dict of an ImageNet ViT or MAE that you supply: the image tower starts from it."""
    start_text: Path | None = None
    """State dict of a BERT that you supply (safetensors or .pt): the text tower starts from it."""
    whiten_patches: int = Field(0, ge=0)
    """Start the patch embedding as a whitening of this many patches of the training studies; 0: random."""
    lock_patches: bool = False
    """Leave the patch embedding as it starts. Studies are then projected once for each variant and kept in memory."""
    spread: bool = False
    """Start both towers with vectors that are centred and spread alike in all directions (else: random)."""
    unlocked_text_layers: int = Field(-1, ge=-1)
    """Layers of the text tower that are trained, from the last; 0: locked but for its projection; -1: all of it."""


class Loss(Section):
    kind: Literal["clip", "siglip"] = "clip"
    text: Literal["sentence", "report", "both"] = "sentence"
    """What a study is held against: sentences of its report, the whole report, or each in its own head (0.5 / 0.5)."""
    sentences_per_study: int = Field(1, ge=0)
    """Sentences drawn from each report and step; 1 as published, 0: all of them."""
    prefix: str = "This study shows: "
    logit_scale: float | None = Field(None, gt=0)
    """Where the temperature's inverse starts; none: 1 / 0.07 (CLIP) or 10 (SigLIP). Lower helps small batches: noise
    then costs little, and the towers need not agree on one vector before they have learnt anything."""


class Optimizer(Section):
    batch_size: int = Field(gt=0)
    """Studies in one contrast, over all processes."""
    accumulate: int = Field(1, ge=1)
    """Parts in which a process encodes its share of a batch; the contrast is over the whole batch all the same."""
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.2
    clip_norm: float = Field(1.0, gt=0)
    precision: Literal["fp32", "bf16", "bf16_stem"] = "fp32"
    """bf16: autocast of both towers; bf16_stem: of a convolutional stem alone, fastest for small towers on a CPU."""
    grad_checkpointing: bool = False


class Stage(Section):
    """A stretch of training: warm-up to `lr`, then a cosine to `last_lr`."""

    epochs: float = Field(gt=0)
    lr: float = Field(gt=0)
    last_lr: float = Field(0.0, ge=0)
    text_lr: float = Field(1.0, ge=0, le=1)
    """Share of the rate at which the text tower learns; 0: it stays as it is. Two towers that both move fast agree on
    one vector before the images have told anything."""
    warmup_steps: int = Field(0, ge=0)
    labels: float = Field(0.0, ge=0, le=1)
    """Share of the loss that asks for the findings which rules read from the report (`hlip_core.report_labels`), by a
    linear head that is not part of the model; the rest is the contrast. 1: texts are not looked at. A small tower that
    knows the findings first leaves the plateau at which every contrast begins."""
    patch_dropout: float = Field(0.0, ge=0, lt=1)
    scans_per_study: int = Field(8, ge=1)


class Progress(Section):
    checkpoint_steps: int = Field(100, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    validation_steps: int = Field(0, ge=0)
    """Zero-shot AUC on the validation split each so many steps; 0: at the end only."""
    validation_studies: int = Field(200, ge=1)
    tensorboard: bool = True


class Config(Section):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    seed: int = Field(0, ge=0)
    threads: int = Field(0, ge=0)
    """Of torch, 0: its own choice."""
    device: str = "auto"
    data: Data
    model: Model
    loss: Loss = Loss()
    optimizer: Optimizer
    stages: tuple[Stage, ...] = Field(min_length=1)
    progress: Progress = Progress()

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.model.lock_patches and not self.data.variants:
            raise ValueError(
                "model.lock_patches needs data.variants: patches are kept for so many ways to show a study"
            )
        if self.optimizer.precision == "bf16_stem" and not (
            isinstance(self.model.encoder, dict) and self.model.encoder.get("stem")
        ):
            raise ValueError("optimizer.precision = bf16_stem needs an encoder with a stem")
        if self.optimizer.batch_size < 2:
            raise ValueError("a contrast needs a batch_size of 2 or more")
        return self


def load_config(path: Path, changes: tuple[str, ...] = ()) -> Config:
    """A run's settings from a TOML file, with `section.name=value` (TOML values) put over it.

    Raises:
        InputError: there is no such file, it is not TOML, or a value or a name is wrong.
    """
    known = {file.stem: file for file in CONFIGS.glob("*.toml")}
    path = known.get(str(path), Path(path))
    if not path.is_file():
        raise InputError(f"no configuration at {path}; those that come along are called {', '.join(sorted(known))}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        for change in changes:
            _change(values, change)
        return Config.model_validate(values)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path.name} is not TOML: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"{path.name}: {wrong}") from error


def _change(values: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    if not equals:
        raise InputError(f"{change!r} is not of the form section.name=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word or path
    *sections, last = name.strip().split(".")
    at: Any = values
    for section in sections:
        at = at[int(section)] if isinstance(at, list) else at.setdefault(section, {})
    at[last] = value
