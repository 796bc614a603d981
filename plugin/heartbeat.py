"""A worker's heartbeat: who it is and that it lives, written to the index while it works."""

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version

from plugin.bootstrap import Plugin
from plugin.index import heartbeats
from plugin.index.database import IndexUnavailable
from plugin.index.heartbeats import BEAT_SECONDS, Introduction


def introduction(plugin: Plugin, queues: Sequence[str]) -> Introduction:
    """Of this process. Only where a model runs is there a device to tell, and torch to ask."""
    runs_model = "analyse" in queues
    knows_model = runs_model or "prepare" in queues
    return Introduction(
        name=f"{socket.gethostname()[:80]}-{os.getpid()}-{time.time_ns() // 1_000_000}",
        queues=tuple(queues),
        device=device_name(plugin.device) if runs_model else "",
        model=f"{plugin.bundle.name} ({plugin.bundle.status})" if knows_model else "",
        version=version("hlip-pacs"),
    )


def device_name(device: str) -> str:
    """What a device is called: with the card's name, or the number of threads."""
    import torch

    if device.startswith("cuda"):
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return f"{device}, {torch.get_num_threads()} threads"


@contextmanager
def beating(plugin: Plugin, queues: Sequence[str], *, seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """The worker of this process lives until the end of the block. An index that is away is told later."""
    worker, done = introduction(plugin, queues), threading.Event()

    def beat() -> None:
        while True:
            with suppress(IndexUnavailable):
                heartbeats.beat(plugin.database, worker)
            if done.wait(seconds):
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with suppress(IndexUnavailable):
            heartbeats.stopped(plugin.database, worker.name)
