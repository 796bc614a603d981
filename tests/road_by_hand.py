"""The road without a listener and threads, moved on step by step, for tests of what may happen in between."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hlip_core.bundle import Bundle, load_bundle
from plugin import retention as rules
from plugin.bootstrap import Plugin, configure
from plugin.index import leases, outcomes, overview
from plugin.index.tables import Base
from plugin.retention import Retention
from plugin.scheduler import Scheduler
from plugin.work import work_once
from road import sandbox, settings, tiny_bundle

AT_ONCE = 1e-7
"""Days: ten milliseconds."""
SENT = {"destinations": [{"name": "pacs", "url": "http://127.0.0.1:9/none"}]}
POSITIVE = {"thresholds": {"intracranial_hemorrhage": -1.0}, "results": {"key_images": False}}


@cache
def tiny() -> Bundle:
    return load_bundle(tiny_bundle())


class Site:
    """A plugin without a listener, moved on by hand; what is to be delivered is delivered when told so."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        quick = {"settle": {"series_quiet_seconds": 0, "study_quiet_seconds": 0}, "retention": {"instances_days": 0}}
        self.folder = folder
        self.plugin = Plugin(settings(folder, model={"bundle": str(tiny_bundle())}, **quick, **sections))
        configure(self.plugin.settings.log)
        self.plugin.sandbox, self.plugin.bundle = sandbox(), tiny()  # once for all: they know no site
        self.database, self.spool = self.plugin.database, self.plugin.spool
        self.database.upgrade()
        with self.database.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(table.delete())
        self.scheduler = Scheduler(self.plugin.settings, self.spool, self.database, lambda queue: None)

    def close(self) -> None:
        self.database.close()

    def receive(self, *paths: Path) -> None:
        for path in paths:
            self.spool.accept(path.read_bytes())
        self.scheduler.tick()

    def work(self) -> None:
        """Prepare and analyse all there is."""
        for _ in range(3):
            self.scheduler.tick()
            while work_once(self.plugin, "prepare") or work_once(self.plugin, "analyse"):
                pass

    def deliver(self) -> None:
        while (claim := self.claim("deliver")) is not None:
            assert outcomes.delivered(self.database, claim, action="store", seconds=0.1)

    def claim(self, queue: str) -> leases.Claim | None:
        return leases.claim(self.database, queue, owner="me", lease_seconds=30, max_attempts=3)

    def report(self, *paths: Path) -> None:
        """A study, from its images to its delivered results."""
        self.receive(*paths)
        self.work()
        self.deliver()

    def rules(self, *kinds: str) -> Retention:
        time.sleep(0.02)
        return Retention(dict.fromkeys(kinds or rules.KINDS, AT_ONCE), self.spool, self.database)

    def clean(self, *kinds: str) -> dict[str, int]:
        """Files removed by kind."""
        gone = [going for going in self.rules(*kinds).run(frozenset)]
        return {kind: sum(g.files for g in gone if g.kind == kind) for kind in sorted({g.kind for g in gone})}

    def study(self) -> dict[str, Any]:
        (study,) = overview.overview(self.database, findings=True)["studies"]
        return study

    def reasons(self) -> dict[int, str]:
        return {s["series_number"]: s["reason"] or s["state"] for s in self.study()["series"]}

    def files(self, kind: str) -> int:
        return sum(path.is_file() for path in (self.spool / kind).rglob("*"))


@contextmanager
def sites(folder: Path) -> Iterator[Callable[..., Site]]:
    """Makes sites in this folder, on SQLite unless told otherwise, and closes them at the end of the block."""
    made: list[Site] = []

    def make(**sections: Any) -> Site:
        made.append(Site(folder, **sections))
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            one.close()
