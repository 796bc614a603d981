"""What a searcher asks of an engine that holds vectors; `plugin.search.embedded` and `plugin.index.halfvec` are two."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from plugin.index.filters import Filters

__all__ = ["SLACK", "Least", "Track", "Vectors", "untracked"]

SLACK = 1e-3
"""What half precision may cost a score; hits are scored in full precision afterwards."""

Track = Callable[[Sequence[Any], str], Iterable[Any]]
"""Shows the progress of going through things."""


def untracked(things: Sequence[Any], what: str) -> Iterable[Any]:
    return things


@dataclass(frozen=True, eq=False)
class Least:
    """A finding that is asked for: the product of its direction [E] with a vector, and from which on it counts."""

    label: str
    direction: np.ndarray
    score: float


class Vectors(Protocol):
    """Vectors of one space, kept up with the index."""

    name: str

    def __len__(self) -> int: ...

    @property
    def is_exact(self) -> bool:
        """Whether every vector is compared."""

    def refresh(self) -> None:
        """Take up what is new in the index."""

    @property
    def wants_graph(self) -> bool:
        """Whether it would be faster after `build`."""

    def build(self, track: Track = untracked) -> None:
        """Build what makes searches fast."""

    def nearest(self, query: np.ndarray, count: int, filters: Filters, least: Iterable[Least] = ()) -> list[int]:
        """Ids of about the `count` nearest to a vector [E], the nearest first.

        Some may no longer stand; where fewer are given than were asked for, there are no more.
        """
