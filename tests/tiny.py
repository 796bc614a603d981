"""A dual tower that is small enough for tests, its tokenizer, its bundle, and scans for it."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

import parity
from hlip_core.architectures import EncoderConfig
from hlip_core.bundle import Bundle
from hlip_core.calibration import Calibration
from hlip_core.findings import DEFAULT, FindingsTable
from hlip_core.geometry import Axis
from hlip_core.making import Description, bundle_model, replace_calibrations
from hlip_core.model import Hlip, HlipConfig, TextConfig
from hlip_core.prepared import PreparedScan, SourceMap
from hlip_core.preprocessing import PREPROCESSINGS

SPEC = dataclasses.replace(
    PREPROCESSINGS["head-ct/1"], name="tiny-ct/1", num_slices=8, size=40, crop=32, windows=("brain", "bone")
)
ENCODER = EncoderConfig(
    img_size=(8, 32, 32),
    patch_size=(4, 8, 8),
    embed_dim=24,
    depth=3,
    num_heads=2,
    scan_blocks=(0, 1),
    study_blocks=(2,),
)
BERT = {
    "vocab_size": 400,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
CONFIG = HlipConfig(encoder=ENCODER, text=TextConfig(bert=BERT, context_length=48), embed_dim=16)
JOINT = dataclasses.replace(
    CONFIG, encoder=dataclasses.replace(ENCODER, max_num_scans=1, num_registers=1, pool="cls_mean")
)
LABEL = "midline_shift"


def write_tokenizer(folder: Path) -> Path:
    """A BERT vocabulary of the words of the default table, and the letters for all others."""
    table = FindingsTable.from_toml()
    prompts = [text for finding in table.findings for text in table.texts(finding.prompts)]
    words = sorted({word.strip(".:,") for text in prompts for word in text.lower().split()} - {""})
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ":", ","]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = dict.fromkeys([*marks, *words, *letters, *(f"##{letter}" for letter in letters)])
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    return folder


def model(config: HlipConfig = CONFIG, *, tokenizer: Path | None = None) -> Hlip:
    """Values by the formula, so that it is the same everywhere."""
    hlip = Hlip.from_config(config, tokenizer=tokenizer).eval()
    hlip.load_state_dict(parity.filled(hlip.state_dict(), "sharp"))
    return hlip


def write_bundle(folder: Path, **changes) -> Path:
    """A bundle of the small model, of status "trained"."""
    tokenizer = write_tokenizer(folder.with_name("words"))
    description = Description(
        **{"name": "tiny", "version": "3", "status": "trained", "preprocessing": SPEC, "provenance": {"data": "none"}}
        | changes
    )
    hlip = model(tokenizer=tokenizer)
    return bundle_model(hlip, folder, description, findings=DEFAULT.read_bytes(), tokenizer=tokenizer)


def calibrated(bundle: Bundle, out: Path, **changes) -> Bundle:
    """A copy of a bundle in which one finding is calibrated."""
    row = {
        "method": "platt",
        "scores": (10.0,),
        "probabilities": (0.5,),
        "class_digest": bundle.embeddings.digest(LABEL),
        "threshold": 0.01,
    }
    return replace_calibrations(bundle, {LABEL: Calibration(**row | changes)}, out, diagrams={LABEL: b"png"})


def scan(series_number: int = 1, *, seed: int = 0) -> PreparedScan:
    """A prepared scan of noise in a ball, with a source slice for each of its own."""
    z, y, x = np.ogrid[-1:1:8j, -1:1:40j, -1:1:40j]
    noise = np.random.default_rng([seed, series_number]).normal(40, 60, (8, 40, 40))
    voxels = np.where(z**2 + y**2 + x**2 < 0.9, noise, -1000).astype(np.int16)
    instances = tuple(("1.2.840.10008.5.1.4.1.1.2", f"2.25.{series_number}{k:03d}") for k in range(8))
    source = SourceMap(
        instances=instances,
        frames=tuple((k, None) for k in range(8)),
        axes=(Axis(0, False, 8, 5.0), Axis(1, False, 40, 0.5), Axis(2, False, 40, 0.5)),
        depth_index=tuple(range(8)),
        rows=(1.0, 0.0),
        columns=(1.0, 0.0),
    )
    return PreparedScan(
        voxels=voxels,
        study_instance_uid="2.25.1",
        series_instance_uid=f"2.25.{series_number}",
        frame_of_reference_uid="2.25.2",
        modality="CT",
        preprocessing=SPEC.name,
        preprocessing_digest=SPEC.digest,
        orientation="axial",
        spacing=(5.0, 0.5, 0.5),
        source=source,
        notes=(),
        series_number=series_number,
        series_description="tiny",
        num_instances=8,
    )


def images(*scans: int) -> list[torch.Tensor]:
    return [torch.from_numpy(parity.image(f"tiny {n}", (1, n, 1, 8, 32, 32)))[0] for n in scans]
