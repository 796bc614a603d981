"""Making bundles: from a model in memory, from a released checkpoint, or from another bundle with one part replaced."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from hlip_core.bundle import (
    CALIBRATION,
    CARD,
    CONFIG,
    EMBEDDINGS,
    FINDINGS,
    FORMAT,
    TEXT,
    TOKENIZER,
    WEIGHTS,
    Bundle,
    Status,
    bundle_files,
    load_bundle,
    write_bundle,
)
from hlip_core.calibration import Calibration, calibrations_to_json
from hlip_core.checkpoint import load_strict, read_checkpoint, save_tower
from hlip_core.errors import BundleError
from hlip_core.findings import FindingsTable
from hlip_core.model import Hlip
from hlip_core.preprocessing import Preprocessing
from hlip_core.text import TOKENIZER_FILES
from hlip_core.zero_shot import build_zero_shot_classifier

__all__ = ["Description", "bundle_model", "import_checkpoint", "replace_calibrations", "replace_findings"]

TEXTS = 64
"""Texts that are encoded at once."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a bundle says about itself, and how it runs."""

    name: str
    version: str
    status: Status
    preprocessing: Preprocessing
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Data, licence, intended use, where the weights come from."""
    precision: str = "fp32"
    drop_air: bool = False
    max_scans: int = 60

    def card(self) -> bytes:
        """A model card from the same facts."""
        facts = "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in self.provenance.items())
        text = (
            f"# {self.name} {self.version} ({self.status})\n\n"
            f"Research software, not a medical device. Not for diagnosis.\n\n{facts}\n"
        )
        return text.encode()


def bundle_model(
    model: Hlip, out: str | Path, description: Description, *, findings: bytes, tokenizer: str | Path
) -> Path:
    """Write a model with both towers as a bundle; class embeddings are computed from the table ``findings`` (TOML)."""
    model.eval()
    model.text_tower.use_tokenizer(tokenizer)
    table = FindingsTable.from_bytes(findings)
    config = {
        "format": FORMAT,
        "name": description.name,
        "version": description.version,
        "status": description.status,
        "model": model.config.to_dict(),
        "preprocessing": description.preprocessing.to_dict(),
        "inference": {"precision": description.precision, "drop_air": description.drop_air},
        "max_scans": description.max_scans,
        "provenance": dict(description.provenance),
    }
    words = [Path(tokenizer) / name for name in TOKENIZER_FILES if (Path(tokenizer) / name).is_file()]
    return write_bundle(
        out,
        {
            CONFIG: (json.dumps(config, indent=1) + "\n").encode(),
            WEIGHTS: save_tower(model, text=False),
            TEXT: save_tower(model, text=True),
            **{f"{TOKENIZER}/{path.name}": path for path in words},
            FINDINGS: findings,
            EMBEDDINGS: build_zero_shot_classifier(text_encoder(model), table).to_bytes(),
            CALIBRATION: calibrations_to_json({}),
            CARD: description.card(),
        },
    )


def import_checkpoint(
    checkpoint: str | Path,
    model: str,
    out: str | Path,
    description: Description,
    *,
    findings: bytes,
    tokenizer: str | Path,
) -> Path:
    """Write a released checkpoint as a bundle; ``model`` is a published name or a JSON file with a configuration.

    Raises :class:`HostileCheckpoint` for a file that would run code, :class:`CheckpointMismatch` for one whose
    parameters do not fit, :class:`BundleError` for one that cannot be read.
    """
    if Path(out).exists():
        raise BundleError(f"{out} exists already")
    state = read_checkpoint(checkpoint)
    tower = Hlip.from_config(model, tokenizer=Path(tokenizer))
    load_strict(tower, state)
    return bundle_model(tower, out, description, findings=findings, tokenizer=tokenizer)


def replace_findings(bundle: Bundle, findings: bytes, out: str | Path, *, replace: bool = False) -> tuple[str, ...]:
    """Write the bundle with another table of findings to ``out``; no training.

    Class vectors that change lose their calibration, which was fitted for the old ones; their labels are returned.
    Raises :class:`BundleError` when the bundle has no text tower.
    """
    table = FindingsTable.from_bytes(findings)
    embeddings = build_zero_shot_classifier(text_encoder(bundle.model(text=True)), table)
    kept = {
        label: calibration
        for label, calibration in bundle.calibrations.items()
        if label in embeddings.positive and calibration.class_digest == embeddings.digest(label)
    }
    files = {FINDINGS: findings, EMBEDDINGS: embeddings.to_bytes(), CALIBRATION: calibrations_to_json(kept)}
    write_bundle(out, bundle_files(bundle) | files, replace=replace)
    return tuple(sorted(bundle.calibrations.keys() - kept.keys()))


def replace_calibrations(
    bundle: Bundle,
    calibrations: Mapping[str, Calibration],
    out: str | Path,
    *,
    diagrams: Mapping[str, bytes],
    replace: bool = False,
) -> Bundle:
    """Write the bundle with these calibrations, and reliability diagrams (PNG by label), to ``out``; returns it."""
    files = {name: path for name, path in bundle_files(bundle).items() if not name.startswith("reliability/")}
    files |= {f"reliability/{label}.png": image for label, image in diagrams.items()}
    files[CALIBRATION] = calibrations_to_json(calibrations)
    return load_bundle(write_bundle(out, files, replace=replace))


def text_encoder(model: Hlip) -> Callable[[Sequence[str]], np.ndarray]:
    """Texts to vectors [S, E] float32, a few at once."""

    def encode(texts: Sequence[str]) -> np.ndarray:
        parts = [texts[i : i + TEXTS] for i in range(0, len(texts), TEXTS)]
        with torch.inference_mode():
            return np.concatenate([model.encode_text(part).float().cpu().numpy() for part in parts])

    return encode
