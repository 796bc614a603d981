"""The table of signals: what receivers outside the PACS are told, one row a message."""

from typing import Any

from sqlalchemy import ColumnElement, ForeignKey, Index, String, UniqueConstraint, exists
from sqlalchemy.orm import Mapped, aliased, mapped_column, relationship
from sqlalchemy.types import JSON

from plugin.index.tables import Base, Leased, Revision
from plugin.lifecycle import DeliveryState


class Signal(Leased, Base):
    """A message to one receiver about one revision of a study; `state` is a `plugin.lifecycle.DeliveryState`."""

    __tablename__ = "signal"
    __table_args__ = (
        UniqueConstraint("revision_id", "receiver", "status"),
        Index("ix_signal_study_receiver", "study_id", "receiver"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    revision_id: Mapped[int] = mapped_column(ForeignKey("revision.id"))
    receiver: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16))
    """A `plugin.lifecycle.SignalStatus`."""
    key: Mapped[str] = mapped_column(String(32), unique=True)
    """By which the receiver recognises a repeat."""
    corrects: Mapped[str | None] = mapped_column(String(32))
    """The key of the message that this one takes the place of."""
    positive: Mapped[list[str]] = mapped_column(JSON, default=list)
    """Labels of the positive findings that it tells of."""
    retracted: Mapped[list[str]] = mapped_column(JSON, default=list)
    """Labels that the message before told of and this one takes back."""
    content: Mapped[dict] = mapped_column(JSON, default=dict)
    """What the message is made of, the patient's name included: never logged."""
    created_at: Mapped[float]
    delivered_at: Mapped[float | None]

    revision: Mapped[Revision] = relationship()


def waits_for_another(table: Any) -> ColumnElement[bool]:
    """Whether an earlier signal of the same study to the same receiver is not through: they go in order."""
    earlier = aliased(Signal)
    return exists().where(
        earlier.study_id == table.study_id,
        earlier.receiver == table.receiver,
        earlier.id < table.id,
        earlier.state.in_([DeliveryState.WAITING, DeliveryState.SENDING]),
    )
