"""What the rounds of a run share: material, and other people's servers, started when they are first needed."""

import shutil
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

from . import material
from .gate import HttpGate
from .nursery import Nursery
from .servers import SERVERS, Orthanc, Server

STACKS: dict[str, tuple[str, ...]] = {
    "SQLite, embedded broker": (),
    "PostgreSQL, RabbitMQ": ("postgresql", "rabbitmq"),
    "PostgreSQL, Redis": ("postgresql", "redis"),
}
"""What the road runs on, and the servers that this needs."""
SQLITE, RABBITMQ, REDIS = STACKS


def is_possible(stack: str) -> bool:
    """Whether its servers are installed."""
    return not any(SERVERS[name].missing() for name in STACKS[stack])


class World:
    """What rounds share: material, and servers that are started when they are first needed.

    Args:
        folder: for what is made once, and for the rounds.
        patience: a factor for slow machines.
    """

    def __init__(self, folder: Path, *, patience: float = 1.0) -> None:
        self.folder = folder
        self.patience = patience
        self._servers: dict[str, Server] = {}
        self._scratch = Path(tempfile.mkdtemp(prefix="hlip-faults-"))

    @cached_property
    def studies(self) -> list[material.Study]:
        return material.studies(self.folder / "phantoms")

    @cached_property
    def bundle(self) -> Path:
        return material.bundle(self.folder / "untrained")

    @cached_property
    def nursery(self) -> Nursery:
        return Nursery()

    @cached_property
    def gate(self) -> HttpGate:
        """In front of Orthanc."""
        return HttpGate(self.orthanc.port)

    @property
    def orthanc(self) -> Orthanc:
        server = self.server("orthanc")
        assert isinstance(server, Orthanc)
        return server

    def server(self, name: str) -> Any:
        """A server, started; see SERVERS."""
        if name not in self._servers:
            server = SERVERS[name](self._scratch / name)
            self._servers[name] = server
            server.start()
        return self._servers[name]

    def wipe(self, names: tuple[str, ...]) -> None:
        for name in names:
            self.server(name).wipe()

    def close(self) -> None:
        for server in self._servers.values():
            server.stop()
        for name in {"gate", "nursery"} & self.__dict__.keys():
            getattr(self, name).close()
        shutil.rmtree(self._scratch, ignore_errors=True)
