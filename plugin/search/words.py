"""From words to a vector, by the text tower of the bundle in use."""

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from hlip_core.bundle import TEXT
from hlip_core.zero_shot import class_vector
from plugin.index.filters import SearchError

if TYPE_CHECKING:
    from hlip_core.bundle import Bundle

__all__ = ["Words"]

MOST_CHARACTERS = 2000
KEPT = 256


class Words:
    """The text tower, loaded with the first question and then kept. Safe for threads, which take turns."""

    def __init__(self, bundle: "Bundle") -> None:
        self._bundle = bundle
        self._lock = threading.Lock()
        self._tower: Any = None
        self._known: dict[str, np.ndarray] = {}

    def vector(self, words: str) -> np.ndarray:
        """[E] float32 of unit length: the words in each of the bundle's templates, as findings are asked for.

        Raises SearchError for no words, too many, or a bundle without a text tower.
        """
        asked = " ".join(words.split()).rstrip(". ")
        if not asked:
            raise SearchError("say in words what to search for")
        if len(asked) > MOST_CHARACTERS:
            raise SearchError(f"a question has at most {MOST_CHARACTERS} characters")
        with self._lock:
            if asked not in self._known:
                if len(self._known) >= KEPT:
                    self._known.clear()
                texts = [template.replace("{}", asked) for template in self._bundle.findings.templates]
                self._known[asked] = class_vector(self._encode, texts)
            return self._known[asked]

    def _encode(self, texts: Any) -> np.ndarray:
        import torch

        if self._tower is None:
            self._tower = self._load()
        with torch.inference_mode():
            return self._tower(texts, head="sentence").float().numpy()

    def _load(self) -> Any:
        if TEXT not in self._bundle.digests:
            raise SearchError(
                f"the bundle {self._bundle.name} has no text tower, so it does not understand words: use one that has "
                "(`hlip model import` keeps it), or search by a finding or by a similar study"
            )
        from hlip_core.checkpoint import load_model

        return load_model(self._bundle, text=True).eval().text_tower
