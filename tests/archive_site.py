"""A site of which only the archive scan runs, and small studies for the PACS that it scans."""

import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.uid import generate_uid

from hostile_pacs import pacs
from plugin.archive import report as reports
from plugin.archive import scan as scans
from plugin.archive.scan import End, Run, Wishes
from plugin.archive.selection import Selection
from plugin.bootstrap import Plugin, configure
from plugin.index import archive as index
from plugin.index.database import Database
from plugin.lifecycle import FetchState
from plugin.settings import Settings
from series import series

QUICK = {"first_retry_seconds": 0.02, "longest_retry_seconds": 0.05, "timeout_seconds": 20}
ALL = Selection(first_date="20240101", last_date="20241231")


def study(number: int, *, slices: int = 3, date: str = "", **elements: Any) -> list[Dataset]:
    """A small study of one series; without a `date` one of 2024, by its number."""
    date = date or f"2024{number % 12 + 1:02d}{number % 28 + 1:02d}"
    datasets = series(np.zeros((slices, 8, 8)), StudyDate=date, **elements)
    for i, dataset in enumerate(datasets):
        dataset.StudyInstanceUID = generate_uid(entropy_srcs=["archive", str(number)])
        dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["archive", str(number), "s"])
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=["archive", str(number), str(i)])
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return datasets


def studies(count: int) -> list[Dataset]:
    return [dataset for number in range(count) for dataset in study(number)]


STUDIES = studies(31)


@cache
def empty_index() -> bytes:
    """An index without a row, made once."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/index.sqlite", lock=Path(folder) / "lock")
        database.upgrade()
        database.close()  # and with it, all is in the one file
        return (Path(folder) / "index.sqlite").read_bytes()


class Site:
    """A plugin of which only the scan runs: what it fetched stays fetched."""

    def __init__(self, folder: Path, url: str, *, database: str = "", **rules: Any) -> None:
        sections = {"spool": {"folder": folder / "data"}, "index": {"url": database}}
        self.plugin = Plugin(Settings(**sections, archive={"url": url, **QUICK, **rules}))
        configure(self.plugin.settings.log)
        self.plugin.bundle = SimpleNamespace(digest="d")  # all that a scan asks of a model
        index_file = self.plugin.spool / "index.sqlite"
        if database:
            self.plugin.database.upgrade()
        elif not index_file.exists():
            index_file.write_bytes(empty_index())

    def scan(self, selection: Selection = ALL, *, until: str = FetchState.FETCHED, **wishes: Any) -> End:
        """Run the scan until no study is left to fetch."""
        scan = scans.open_scan(self.plugin.database, selection, Wishes(**wishes))
        stop = threading.Event()

        def show(standing: index.Standing, why: str) -> None:
            if index.find_scan(self.plugin.database, None).listed_at is None:
                return
            standing = index.standing(self.plugin.database, scan.id)
            left = {FetchState.PLANNED, FetchState.FETCHING} & {state for state, n in standing.counts.items() if n}
            if not left:
                stop.set()

        with scans.open_source(self.plugin, self.plugin.settings.archive) as source:
            return Run(self.plugin, self.plugin.settings.archive, scan, source, stop).run(show)

    def report(self) -> dict[str, Any]:
        return reports.read(self.plugin, None)

    def reasons(self) -> dict[tuple[str, str | None], int]:
        return {(row["state"], row["reason"]): row["studies"] for row in self.report()["by_reason"]}

    def fetched(self) -> Counter[str]:
        """How many instances of each study were handed over whole."""
        return Counter(path.parents[1].name for path in self.plugin.spool.fetched.glob("*/*/*/*.dcm"))


@contextmanager
def site(folder: Path, datasets: list[Dataset], *, rules: dict[str, Any] | None = None, **tricks: Any) -> Iterator[Any]:
    """A PACS and a site that scans it."""
    with pacs(datasets, **tricks) as archive:
        here = Site(folder, archive.url, **{"look_ahead": 100, **(rules or {})})
        try:
            yield here, archive
        finally:
            here.plugin.database.close()
