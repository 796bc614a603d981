"""The settings of small pre-training runs, and the losses that a run logs."""

import json
from pathlib import Path

from trainer.config import Config
from trainer.reporting import read_log

ENCODER = {
    "img_size": [8, 32, 32], "patch_size": [4, 8, 8], "embed_dim": 24, "depth": 2, "num_heads": 2,
    "scan_blocks": [0], "study_blocks": [1],
}  # fmt: skip
TEXT = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 300}
LEARNING = {
    "model": {"whiten_patches": 4000},
    "loss": {"sentences_per_study": 0, "logit_scale": 2.0},
    "stages": [{"epochs": 100, "lr": 1e-2, "warmup_steps": 20, "scans_per_study": 4}],
}
"""Soon leaves the plateau on which every contrast begins."""


def values(cohort: Path, **changes) -> dict:
    """A small run's settings; `changes` are sections."""
    sections = {
        "name": "tiny", "seed": 3, "threads": 1, "device": "cpu",
        "data": {"cohorts": [str(cohort)], "mirror": True, "jitter": True},
        "model": {"encoder": ENCODER, "text": TEXT, "context_length": 32, "embed_dim": 16, "vocabulary": 300},
        "loss": {"sentences_per_study": 2},
        "optimizer": {"batch_size": 8},
        "stages": [{"epochs": 7, "lr": 2e-3, "warmup_steps": 3, "patch_dropout": 0.25, "scans_per_study": 2}],
        "progress": {"checkpoint_steps": 4, "tensorboard": False},
    }  # fmt: skip
    for name, change in changes.items():
        sections[name] = {**sections[name], **change} if isinstance(change, dict) else change
    return sections


def config(cohort: Path, **changes) -> Config:
    return Config.model_validate(values(cohort, **changes))


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_log(folder) if "loss" in line]


def write_toml(path: Path, cohort: Path, **changes) -> Path:
    """The settings as a TOML file: JSON's values are TOML's, but for tables."""
    lines = []
    for name, value in values(cohort, **changes).items():
        if name == "stages":
            lines += ["[[stages]]", *(f"{key} = {json.dumps(v)}" for key, v in value[0].items())]
        elif isinstance(value, dict):
            flat = {k: v for k, v in value.items() if not isinstance(v, dict)}
            lines += [f"[{name}]", *(f"{key} = {json.dumps(v)}" for key, v in flat.items())]
            for key, table in value.items():
                if isinstance(table, dict):
                    lines += [f"[{name}.{key}]", *(f"{k} = {json.dumps(v)}" for k, v in table.items())]
        else:
            lines.insert(0, f"{name} = {json.dumps(value)}")
    path.write_text("\n".join(lines) + "\n")
    return path
