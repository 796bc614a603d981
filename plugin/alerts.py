"""Peers that were turned away, told at once and then no more than once in a while: a stranger fills no disk."""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from plugin.audit_message import Node

AGAIN_SECONDS = 60.0
"""A peer is told of again, for the same cause, after so long; with how often it came meanwhile."""

MAX_PEERS = 100
"""Of so many peers within that time one by one; of all others together."""

OTHERS = Node("many others")


@dataclass
class _Told:
    peer: Node
    at: float
    more: int = 0


class Alerts:
    """Safe for threads. What came since a peer was last told of is told with the next alert, of whomever."""

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[str, str], _Told] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, peer: Node, cause: str) -> list[tuple[Node, str]]:
        """One more; what is to be told now."""
        now = time.monotonic()
        with self._lock:
            due = list(self._due(now - AGAIN_SECONDS, now))
            if (cause, peer.address) not in self._told and len(self._told) >= MAX_PEERS:
                peer = OTHERS
            if (told := self._told.get((cause, peer.address))) is not None:
                told.more += 1
                return due
            self._told[cause, peer.address] = _Told(peer, now)
            return [*due, (peer, cause)]

    def rest(self) -> list[tuple[Node, str]]:
        """What was not told yet, at the end."""
        with self._lock:
            return list(self._due(time.monotonic(), time.monotonic()))

    def _due(self, before: float, now: float) -> Iterator[tuple[Node, str]]:
        for (cause, address), told in list(self._told.items()):
            if told.at > before:
                return
            del self._told[cause, address]
            if told.more:
                self._told[cause, address] = _Told(told.peer, now)
                yield told.peer, f"{cause} ({told.more} more)"
