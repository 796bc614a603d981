"""Zero-shot classification: a class is a direction in the space of the vectors, made from texts.

Letters: F findings, S texts, E width of the shared space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import safetensors.numpy

from hlip_core.errors import InputError
from hlip_core.findings import FindingsTable

__all__ = ["ClassEmbeddings", "build_zero_shot_classifier", "class_vector"]

EncodeText = Callable[[Sequence[str]], np.ndarray]
"""Texts to vectors [S, E], of any length."""

_NEGATIVE = ".negative"


@dataclass(frozen=True)
class ClassEmbeddings:
    """A unit vector [E] for the positive prompts of each finding, and for the negative ones where it has any."""

    positive: dict[str, np.ndarray]
    negative: dict[str, np.ndarray]

    def direction(self, label: str) -> np.ndarray:
        """[E] what a study's unit vector is multiplied with: the score of a finding is that product.

        Without negative prompts it is the class vector, and the score the published cosine; with negative prompts
        their vector is subtracted.
        """
        vector = self.positive[label]
        return vector - self.negative[label] if label in self.negative else vector

    def score(self, embedding: np.ndarray, label: str) -> float:
        """Score of a study's unit vector [E] for a finding."""
        return float(embedding.astype(np.float64) @ self.direction(label).astype(np.float64))

    def digest(self, label: str) -> str:
        """SHA-256 (hex) of the direction of a finding: a calibration is only valid for this one."""
        return hashlib.sha256(np.ascontiguousarray(self.direction(label), dtype="<f4").tobytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """As a safetensors file: ``label`` and, with negative prompts, ``label.negative``."""
        tensors = self.positive | {label + _NEGATIVE: vector for label, vector in self.negative.items()}
        return safetensors.numpy.save({name: np.asarray(tensors[name], np.float32) for name in sorted(tensors)})

    @classmethod
    def from_bytes(cls, data: bytes) -> ClassEmbeddings:
        """The inverse of :meth:`to_bytes`."""
        tensors = safetensors.numpy.load(data)
        negative = {n.removesuffix(_NEGATIVE): v for n, v in tensors.items() if n.endswith(_NEGATIVE)}
        return cls({n: v for n, v in tensors.items() if not n.endswith(_NEGATIVE)}, negative)


def class_vector(encode_text: EncodeText, texts: Sequence[str]) -> np.ndarray:
    """The mean of the unit vectors of the texts, made unit again: [E] float32."""
    vectors = encode_text(texts).astype(np.float64)  # [s, e]
    mean = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).mean(axis=0)
    length = np.linalg.norm(mean)
    if not length > 0:
        raise InputError("the texts of a class have no common direction")
    return (mean / length).astype(np.float32)


def build_zero_shot_classifier(encode_text: EncodeText, table: FindingsTable) -> ClassEmbeddings:
    """Class vectors of all findings of a table: every prompt in every template."""
    positive = {f.label: class_vector(encode_text, table.texts(f.prompts)) for f in table.findings}
    negative = {
        f.label: class_vector(encode_text, table.texts(f.negative_prompts))
        for f in table.findings
        if f.negative_prompts
    }
    return ClassEmbeddings(positive, negative)
