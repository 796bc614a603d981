"""Directions of classes, and vectors of reports, from the bundle's words.

Letters: S texts, E width of the shared space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hlip_core.bundle import TEXT, Bundle
from hlip_core.zero_shot import class_vector
from trainer.evaluation.benchmarks import BenchmarkClass

if TYPE_CHECKING:
    from hlip_core.encoder import Head

__all__ = ["Words", "directions"]

REPORT = "This study shows: {}"
"""How a report is put to the text tower, as in training."""
TEXTS = 32
"""Texts that are encoded at once."""


class Words:
    """The text tower of a bundle that has one."""

    def __init__(self, bundle: Bundle, device: str) -> None:
        self.bundle, self.device = bundle, device

    @classmethod
    def of(cls, bundle: Bundle, device: str = "cpu") -> Words | None:
        """None for a bundle without a text tower."""
        return cls(bundle, device) if TEXT in bundle.digests else None

    def direction(self, prompts: Sequence[str]) -> np.ndarray:
        """[E] the class vector of prompts in the bundle's templates."""
        return class_vector(self.sentences, self.bundle.findings.texts(tuple(prompts)))

    def sentences(self, texts: Sequence[str]) -> np.ndarray:
        """[S, E] of texts as they stand."""
        return self._encode(texts, "sentence")

    def reports(self, texts: Sequence[str]) -> np.ndarray:
        """[S, E] of whole reports, by the report head where the model has one; equal reports get equal vectors."""
        known = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        head: Head = "report" if self.bundle.config["model"]["encoder"].get("num_registers") else "sentence"
        rows = self._encode([REPORT.format(text) for text in known], head)
        return rows[[known[text] for text in texts]]

    def _encode(self, texts: Sequence[str], head: Head) -> np.ndarray:
        import torch

        model = self.bundle.model(self.device, text=True)
        parts = [list(texts[start : start + TEXTS]) for start in range(0, len(texts), TEXTS)]
        with torch.inference_mode():
            return np.concatenate([model.encode_text(part, head=head).float().cpu().numpy() for part in parts])


def directions(
    bundle: Bundle, classes: Sequence[BenchmarkClass], words: Words | None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What a study's vector is multiplied with, by class: the finding's, else that of the prompts. And what is not.

    The second table says why a class cannot be scored.
    """
    found: dict[str, np.ndarray] = {}
    skipped: dict[str, str] = {}
    encode: Callable[[Sequence[str]], np.ndarray] | None = words.direction if words else None
    for row in classes:
        if row.label in bundle.embeddings.positive:
            found[row.name] = bundle.embeddings.direction(row.label)
        elif row.prompts and encode is not None:
            found[row.name] = encode(row.prompts)
        else:
            missing = "has no finding for it" + ("" if words else ", and no text tower for its prompts")
            skipped[row.name] = f"the bundle {missing}"
    return found, skipped
