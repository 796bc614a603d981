"""Radiology reports of synthetic studies: true sentences in varied words, with negations and side issues.

The words stand in `sentences.toml`; HELD_OUT never occurs in a report and asks whether words were understood.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .lesions import Lesion

if TYPE_CHECKING:
    from .study import Examination

SENTENCES: dict[str, Any] = tomllib.loads(Path(__file__).with_name("sentences.toml").read_text(encoding="utf-8"))
HELD_OUT: dict[str, tuple[str, ...]] = {label: tuple(texts) for label, texts in SENTENCES["held_out"].items()}
"""Ways to name each finding that no report holds, by label."""

BY_NAME = 0.35
"""How often a finding is stated by its name alone instead of with its place and size."""
DENIED = 0.34
"""How often a report denies a finding that is absent."""
NO_BLEED_DENIED = 0.8
"""How often a report denies any haemorrhage where there is none."""
AGAIN = 0.5
"""How often a haemorrhage is stated once more as such."""
TECHNIQUE, COMPARISON, ASIDE, NORMAL = 0.6, 0.4, 0.4, 0.7
"""How often these are said where they hold."""

Rng = np.random.Generator


def write(exam: Examination, rng: Rng) -> tuple[str, ...]:
    """The report of an examination: technique, then findings, denials and asides in any order, impression."""
    start = []
    if rng.random() < TECHNIQUE:
        start.append(_pick(rng, SENTENCES["contrast" if exam.head.contrast else "technique"]))
    if rng.random() < COMPARISON:
        start.append(_pick(rng, SENTENCES["comparison"]))
    body = [*_present(exam, rng), *_absent(exam, rng), *_asides(exam, rng)]
    body = [body[index] for index in rng.permutation(len(body))]
    harmless = all(lesion.kind == "scalp" for lesion in exam.lesions)
    if harmless and (rng.random() < NORMAL or not body):
        body.append(_pick(rng, SENTENCES["normal"]))
    return (*start, *body) or (_pick(rng, SENTENCES["technique"]),)


def _pick(rng: Rng, texts: list[str]) -> str:
    return texts[int(rng.integers(len(texts)))]


def _state(rng: Rng, kind: str, conspicuity: float, **words: object) -> str:
    """One sentence about a finding, by its name alone or in full."""
    row = SENTENCES["present"][kind]
    if row["names"] and rng.random() < BY_NAME:
        text = _pick(rng, SENTENCES["statements"]).format(name=_pick(rng, row["names"]))
    else:
        degree = _pick(rng, SENTENCES["degrees"][min(2, int(3 * conspicuity))])
        text = _pick(rng, row["sentences"]).format(degree=degree, **words)
    text = text.replace("the both lateral ventricle", "both lateral ventricles").replace(
        " a extensive", " an extensive"
    )
    return text[0].upper() + text[1:]


def _lesion(rng: Rng, lesion: Lesion) -> str:
    size = round(lesion.thickness) if lesion.thickness else round(2 * float(np.mean(lesion.radii)))
    region = f"{lesion.side} {lesion.region} sulci" if lesion.variant == "sulci" else lesion.region
    kind = f"subdural {lesion.variant}" if lesion.kind == "subdural" else lesion.kind
    return _state(rng, kind, lesion.conspicuity, side=lesion.side, region=region, size=size)


def _present(exam: Examination, rng: Rng) -> list[str]:
    found = exam.findings
    sentences = [_lesion(rng, lesion) for lesion in exam.visible]
    if "midline_shift" in found:
        side, other = ("right", "left") if exam.truth.shift_mm > 0 else ("left", "right")
        words = {"side": side, "other": other, "shift": round(abs(exam.truth.shift_mm))}
        sentences.append(_state(rng, "midline shift", found["midline_shift"], **words))
    if "mass_effect" in found:
        sentences.append(_state(rng, "mass effect", found["mass_effect"]))
    if "intracranial_hemorrhage" in found and rng.random() < AGAIN:
        sentences.append(_state(rng, "hemorrhage", found["intracranial_hemorrhage"]))
    return sentences


def _absent(exam: Examination, rng: Rng) -> list[str]:
    """Denials; none of an epidural is contradicted by "no extra-axial collection", nor oedema by "no edema"."""
    sentences = []
    for label, texts in SENTENCES["absent"].items():
        chance = NO_BLEED_DENIED if label == "intracranial_hemorrhage" else DENIED
        if label in exam.findings or rng.random() >= chance:
            continue
        text = _pick(rng, texts)
        too_much = ("extra-axial" in text and "epidural_hemorrhage" in exam.findings) or (
            "edema" in text and exam.lesions
        )
        if not too_much:
            sentences.append(text)
    return sentences


def _asides(exam: Examination, rng: Rng) -> list[str]:
    held = [row for row in SENTENCES["aside"] if getattr(exam.head, row["parameter"]) > row["from"]]
    return [_pick(rng, row["sentences"]) for row in held if rng.random() < ASIDE]
