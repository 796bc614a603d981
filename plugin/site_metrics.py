"""What is read of the site when Prometheus asks a role: the disk, and from some roles the index."""

import shutil
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from plugin.lifecycle import Urgency
from plugin.metrics import REGISTRY, ROLE

if TYPE_CHECKING:
    from plugin.bootstrap import Plugin
    from plugin.index.database import Database

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TELL_THE_INDEX = frozenset({"schedule", "web"})
"""The roles of which a site has one as a rule."""

GAUGES = {
    "hlip_up_index": ("Whether the index could be read.", ()),
    "hlip_queue_waiting": ("Items that wait, by the urgency of their studies.", ("queue", "urgency")),
    "hlip_queue_busy": ("Items that a worker has claimed.", ("queue",)),
    "hlip_queue_expired": ("Claimed items whose lease ran out: their worker is gone.", ("queue",)),
    "hlip_queue_oldest_seconds": ("Age of the oldest item that waits.", ("queue",)),
    "hlip_state_studies": ("Studies by state.", ("state",)),
    "hlip_state_series": ("Series by state.", ("state",)),
    "hlip_state_deliveries": ("Deliveries by state.", ("state",)),
    "hlip_state_signals": ("Signals by state.", ("state",)),
    "hlip_workers": ("Workers that gave a sign of life of late.", ("queue",)),
    "hlip_disk_free_bytes": ("Free on the data folder's disk.", ()),
    "hlip_disk_mark_bytes": ("Below this much free, it stops.", ("what",)),
    "hlip_arrivals_waiting": ("Acknowledged instances that are not in the index yet.", ()),
}
"""Read when asked: a help text and labels each. Those of the index are the same from every role that tells them."""

MAX_ARRIVALS = 10_000
Sample = tuple[str, dict[str, str], float]


SUFFIXES = {"counter": ("_total", "_created"), "histogram": ("_bucket", "_count", "_sum", "_created")}


def exported() -> frozenset[str]:
    """The names of all samples that there are, as a query names them."""
    names = set(GAUGES)
    for metric in REGISTRY.collect():
        names.add(metric.name)
        names.update(metric.name + suffix for suffix in SUFFIXES.get(metric.type, ()))
    return frozenset(names)


class SiteCollector(Collector):
    """What lies on the disk and in the index at the moment it is asked for; `with_index` where a role tells that."""

    def __init__(self, plugin: "Plugin", *, with_index: bool) -> None:
        self._plugin = plugin
        self._with_index = with_index

    def collect(self) -> Iterator[Metric]:
        samples = [*self._disk(), *(self._index() if self._with_index else ())]
        families: dict[str, GaugeMetricFamily] = {}
        for name, labels, value in samples:
            if name not in families:
                families[name] = GaugeMetricFamily(name, GAUGES[name][0], labels=GAUGES[name][1])
            families[name].add_metric([labels[key] for key in GAUGES[name][1]], value)
        yield from families.values()

    def describe(self) -> Iterable[Metric]:
        return ()

    def _disk(self) -> Iterator[Sample]:
        spool = self._plugin.spool
        yield "hlip_disk_free_bytes", {}, shutil.disk_usage(spool.folder).free
        for what, room in (("c_store", spool.room), ("workers", spool.room_for_work)):
            yield "hlip_disk_mark_bytes", {"what": what}, room.min_free_bytes

    def _index(self) -> list[Sample]:
        try:
            read = list(read_index(self._plugin.database)) if self._plugin.database.is_current() else []
        except OSError:  # IndexUnavailable
            read = []
        arrivals = len(self._plugin.spool.arrivals(MAX_ARRIVALS))
        return [*read, ("hlip_up_index", {}, float(bool(read))), ("hlip_arrivals_waiting", {}, arrivals)]


def read_index(database: "Database") -> Iterator[Sample]:
    """Raises IndexUnavailable."""
    from plugin.index import census, heartbeats, operations

    for depth in operations.depths(database):
        queue = {"queue": depth.queue}
        for urgency in Urgency:
            yield "hlip_queue_waiting", {**queue, "urgency": str(urgency)}, depth.waiting.get(str(urgency), 0)
        yield "hlip_queue_busy", queue, depth.busy
        yield "hlip_queue_oldest_seconds", queue, depth.oldest_seconds or 0
    for name, count in census.expired(database).items():
        yield "hlip_queue_expired", {"queue": name}, count
    for kind, states in census.states(database).items():
        for state, count in states.items():
            yield f"hlip_state_{kind}", {"state": state}, count
    alive = [worker.queues for worker in heartbeats.workers(database) if worker.is_alive]
    for name in sorted({name for queues in alive for name in queues}):
        yield "hlip_workers", {"queue": name}, sum(name in queues for queues in alive)


class Page:
    """The text that Prometheus reads of a role."""

    def __init__(self, plugin: "Plugin", role: str) -> None:
        ROLE.labels(role, version("hlip-pacs")).set(1)
        self._site = CollectorRegistry()
        self._site.register(SiteCollector(plugin, with_index=role in TELL_THE_INDEX))

    def text(self) -> bytes:
        return generate_latest(REGISTRY) + generate_latest(self._site)
