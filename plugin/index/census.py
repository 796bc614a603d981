"""Counts over the whole index, for metrics."""

from enum import StrEnum
from typing import Any

from sqlalchemy import func, select

from plugin.index.database import Database, clock
from plugin.index.leases import QUEUES
from plugin.index.signal_table import Signal
from plugin.index.tables import Delivery, Series, Study
from plugin.lifecycle import DeliveryState, SeriesState, StudyState

KINDS: dict[str, tuple[Any, type[StrEnum]]] = {
    "studies": (Study, StudyState),
    "series": (Series, SeriesState),
    "deliveries": (Delivery, DeliveryState),
    "signals": (Signal, DeliveryState),
}


def states(database: Database) -> dict[str, dict[str, int]]:
    """How many of each kind are in which state; every state is named, those of none too."""
    counts: dict[str, dict[str, int]] = {}
    with database.read() as session:
        for kind, (table, known) in KINDS.items():
            rows = session.execute(select(table.state, func.count()).group_by(table.state))
            counts[kind] = dict.fromkeys(map(str, known), 0) | {state: count for state, count in rows}
    return counts


def expired(database: Database) -> dict[str, int]:
    """How many items of each queue are claimed by a worker that is gone, and not yet claimed again."""
    with database.read() as session:
        return {
            name: session.scalar(
                select(func.count())
                .select_from(queue.table)
                .where(queue.table.state == queue.busy, queue.table.lease_until < clock())
            )
            or 0
            for name, queue in QUEUES.items()
        }
