"""The whole road in one process, for tests: listener, scheduler and worker, behind a broker where one is named."""

import atexit
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from celery.contrib.testing.worker import start_worker
from celery.worker import state
from pydicom import Dataset
from pydicom.uid import generate_uid

from hlip_core.bundle import write_untrained_bundle
from hlip_core.errors import Refused
from peers import wait_until
from plugin.bootstrap import Plugin, configure
from plugin.index.leases import QUEUES
from plugin.index.overview import overview
from plugin.lifecycle import DELIVERY_DONE, SERIES_DONE, STUDY_DONE
from plugin.listener import Listener
from plugin.preparation import Job
from plugin.sandbox import Sandbox
from plugin.scheduler import Scheduler
from plugin.settings import Settings
from plugin.tasks import Bell, celery_app
from plugin.work import work_once
from series import head, series, write
from tiny import SPEC, write_bundle

WORKER = {"perform_ping_check": False, "shutdown_timeout": 60, "use_eventloop": False}
QUICK = {"series_quiet_seconds": 0.2, "study_quiet_seconds": 0.5, "tick_seconds": 0.02}


@cache
def untrained_bundle() -> Path:
    """The untrained bundle, made once for all tests of a run."""
    folder = tempfile.TemporaryDirectory(prefix="hlip-bundle-")
    atexit.register(folder.cleanup)
    return write_untrained_bundle(Path(folder.name) / "untrained")


@cache
def tiny_bundle() -> Path:
    """A bundle of a model that takes no time, of status "trained", made once for all tests of a run."""
    folder = tempfile.TemporaryDirectory(prefix="hlip-bundle-")
    atexit.register(folder.cleanup)
    return write_bundle(Path(folder.name) / "tiny")


@cache
def sandbox() -> Sandbox:
    """The process in which series are prepared, the same for all tests of a run.

    It is started by this thread, with which it ends, and not by a worker's.
    """
    made = Sandbox()
    atexit.register(made.close)
    with suppress(Refused):
        made.prepare(Job(paths=(), spec=SPEC, rules=(), prepared_path=Path(), header_path=Path()))
    return made


def settings(folder: Path, **sections: Any) -> Settings:
    """Settings for a road in `folder` that settles quickly and listens on a free port."""
    return Settings(
        spool={"folder": folder / "data", **sections.pop("spool", {})},
        model=sections.pop("model", None) or {"bundle": str(untrained_bundle())},
        listener={"port": 0, **sections.pop("listener", {})},
        settle={**QUICK, **sections.pop("settle", {})},
        **sections,
    )


def head_ct(folder: Path, *, name: str = "a", number: int = 2, slices: int = 12, **elements: Any) -> list[Path]:
    """Files of a small head CT series; `name` makes its study, `number` its series."""
    datasets = series(head(slices), **elements)
    return write(renamed(datasets, name=name, number=number), folder / f"{name}-{number}")


def renamed(datasets: Sequence[Dataset], *, name: str, number: int) -> Sequence[Dataset]:
    """The same instances as a series of their own, with UIDs made from `name` and `number`."""
    for i, dataset in enumerate(datasets):
        dataset.StudyInstanceUID = generate_uid(entropy_srcs=[name])
        dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[name, str(number)])
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[name, str(number), str(i)])
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.SeriesNumber = number
    return datasets


class Road:
    """A running plugin, and what a test asks of it.

    Where the settings name a broker, even the embedded one, work goes through it; else a thread asks the index.
    """

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self._celery = celery_app(plugin) if "broker" in plugin.settings.model_fields_set else None
        ring = Bell(self._celery) if self._celery else lambda queue: None
        self.listener = Listener(plugin.settings.listener, plugin.spool)
        self.scheduler = Scheduler(plugin.settings, plugin.spool, plugin.database, ring=ring)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self.scheduler.run, args=(self._stop,)),
            threading.Thread(target=self._work_behind_the_broker if self._celery else self._work),
        ]

    @property
    def port(self) -> int:
        return self.listener.port

    def start(self) -> None:
        self.plugin.database.upgrade()
        self.listener.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self.listener.stop()
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self.plugin.sandbox is not sandbox():
            self.plugin.database.close()

    def _work(self) -> None:
        while not self._stop.is_set():
            if not any([work_once(self.plugin, queue) for queue in QUEUES]):
                self._stop.wait(0.02)

    def _work_behind_the_broker(self) -> None:
        with start_worker(self._celery, queues=list(QUEUES), **WORKER):
            self._stop.wait()
            state.should_terminate = 0
            for _ in range(2):  # it waits for a message before it looks, and for one more before it ends
                self.scheduler.ring("deliver")

    def status(self, *, findings: bool = False) -> dict[str, Any]:
        return overview(self.plugin.database, findings=findings)

    def study(self, study_instance_uid: str) -> dict[str, Any] | None:
        found = overview(self.plugin.database, study_uids=[study_instance_uid], findings=True)["studies"]
        return found[0] if found else None

    def is_idle(self) -> bool:
        """Nothing waits, nothing is under way."""
        status = self.status()
        done = (
            set(status["studies_by_state"]) <= STUDY_DONE
            and set(status["series_by_state"]) <= SERIES_DONE
            and set(status["deliveries_by_state"]) <= DELIVERY_DONE
        )
        return done and not self.plugin.spool.arrivals(1)

    def settled(self, *, instances: int, seconds: float = 60) -> dict[str, Any]:
        """Wait until so many instances are in the index and all work is done; then the status."""
        wait_until(
            lambda: self.status()["instances"] >= instances and self.is_idle(),
            f"{instances} instances to be dealt with; {self.status()}",
            seconds,
        )
        return self.status(findings=True)


@contextmanager
def road(folder: Path, **sections: Any) -> Iterator[Road]:
    """A road that runs until the end of the block."""
    plugin = Plugin(settings(folder, **sections))
    plugin.sandbox = sandbox()
    configure(plugin.settings.log)
    running = Road(plugin)
    running.start()
    try:
        yield running
    finally:
        running.stop()
