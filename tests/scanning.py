"""An archive scan as a process of its own that is there at once, so that it can be killed at any point of its work."""

import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console

from plugin.archive import scan as scans
from plugin.archive.scan import Wishes
from plugin.archive.selection import Selection
from plugin.bootstrap import Plugin, configure
from plugin.settings import Settings


def scan(sections: dict[str, Any], selection: Selection, began: Connection) -> None:
    """Run a scan by these settings; `began` is told when it is just about to."""
    plugin = Plugin(Settings(**sections))
    configure(plugin.settings.log)
    found = scans.open_scan(plugin.database, selection, Wishes())
    assert plugin.bundle.digest
    began.send(True)
    with Path("/dev/null").open("w") as nowhere:
        stop = threading.Event()
        scans.run(plugin, plugin.settings.archive, found, console=Console(file=nowhere), stop=stop)


@contextmanager
def scanning(sections: dict[str, Any], selection: Selection) -> Iterator[None]:
    """A scan that has just begun, and is killed with -9 at the end of the block."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scanning", "plugin.archive.dicomweb", "plugin.index.outcomes"])
    here, there = context.Pipe()
    process = context.Process(target=scan, args=(sections, selection, there), daemon=True)
    process.start()
    try:
        assert here.poll(300), "the scan does not begin"
        yield
    finally:
        process.kill()
        process.join()
        process.close()
        here.close()
        there.close()
