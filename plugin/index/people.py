"""Who may use the page: local users, signed-in sessions, and guesses that failed.

A session's token is known to the browser alone; here lies its digest. Times are by the database's clock.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, cast

from sqlalchemy import ForeignKey, String, Text, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from plugin.index.database import Database, clock
from plugin.index.tables import Base, Instance, Series, Study

Role = Literal["viewer", "operator"]

TOUCH_SECONDS = 60.0
"""A session that is used is written down again only so often."""

FORGET_SECONDS = 3600.0
"""Failed guesses older than this count no more."""


class User(Base):
    __tablename__ = "page_user"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    password_hash: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float]


class WebSession(Base):
    """A signed-in browser. Of a local user (whose role then rules), or of somebody an OIDC provider vouched for."""

    __tablename__ = "web_session"

    id: Mapped[int] = mapped_column(primary_key=True)
    token_digest: Mapped[str] = mapped_column(String(64), unique=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("page_user.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float]
    seen_at: Mapped[float]
    ends_at: Mapped[float]


class FailedSignIn(Base):
    """How often a name or an address guessed wrong lately."""

    __tablename__ = "failed_sign_in"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(128), unique=True)
    count: Mapped[int] = mapped_column(default=0)
    last_at: Mapped[float]


@dataclass(frozen=True)
class UserRow:
    name: str
    role: Role
    created_at: float
    sessions: int


# ---- users -----------------------------------------------------------------------------------------------------


def add_user(database: Database, name: str, *, role: Role, password_hash: str) -> None:
    """Raises ValueError where there is one of this name."""
    try:
        with database.write() as session:
            session.add(User(name=name, role=role, password_hash=password_hash, created_at=_now(session)))
    except IntegrityError:
        raise ValueError(f"there is a user {name} already: see `hlip user list`") from None


def remove_user(database: Database, name: str) -> None:
    """With all sessions of theirs. Raises ValueError where there is none."""
    with database.write() as session:
        user = _user(session, name)
        session.execute(delete(WebSession).where(WebSession.user_id == user.id))
        session.delete(user)


def set_password(database: Database, name: str, password_hash: str) -> None:
    """Ends all sessions of theirs. Raises ValueError where there is none."""
    with database.write() as session:
        user = _user(session, name)
        user.password_hash = password_hash
        session.execute(delete(WebSession).where(WebSession.user_id == user.id))


def set_role(database: Database, name: str, role: Role) -> None:
    """Counts at once, in open sessions too. Raises ValueError where there is none."""
    with database.write() as session:
        _user(session, name).role = role


def users(database: Database) -> list[UserRow]:
    """All, by name, with their open sessions."""
    sessions = func.count(WebSession.id).filter(WebSession.ends_at > clock())
    with database.read() as session:
        rows = session.execute(
            select(User.name, User.role, User.created_at, sessions)
            .join(WebSession, WebSession.user_id == User.id, isouter=True)
            .group_by(User.id)
            .order_by(User.name)
        )
        return [UserRow(name, cast(Role, role), at, count) for name, role, at, count in rows]


def has_users(database: Database) -> bool:
    with database.read() as session:
        return session.scalar(select(User.id).limit(1)) is not None


def password_hash(database: Database, name: str) -> str | None:
    """None where there is no such user."""
    with database.read() as session:
        return session.scalar(select(User.password_hash).where(User.name == name))


def _user(session: Session, name: str) -> User:
    user = session.scalar(select(User).where(User.name == name))
    if user is None:
        raise ValueError(f"there is no user {name}: see `hlip user list`")
    return user


def _now(session: Session) -> float:
    now = session.scalar(select(clock()))
    assert now is not None
    return now


# ---- sessions --------------------------------------------------------------------------------------------------


def begin_session(database: Database, token_digest: str, *, name: str, role: Role | None = None, hours: float) -> None:
    """A browser is signed in: as the local user of this name, or with the `role` that a provider gave.

    Raises ValueError where there is no such local user.
    """
    with database.write() as session:
        now = _now(session)
        session.execute(delete(WebSession).where(WebSession.ends_at < now))
        user = _user(session, name) if role is None else None
        session.add(
            WebSession(
                token_digest=token_digest,
                user_id=user.id if user else None,
                name=name,
                role=user.role if user else role,
                created_at=now,
                seen_at=now,
                ends_at=now + hours * 3600,
            )
        )


def session_of(
    database: Database, token_digest: str, *, idle_seconds: float, touch: bool = True
) -> tuple[str, Role] | None:
    """Name and role of a session that has not ended; None for any other. With `touch`, it is used now."""
    with database.read() as session:
        row = session.execute(
            select(
                WebSession.name,
                func.coalesce(User.role, WebSession.role),
                clock() - WebSession.seen_at,
            )
            .join(User, User.id == WebSession.user_id, isouter=True)
            .where(WebSession.token_digest == token_digest, WebSession.ends_at > clock())
        ).first()
    if row is None or row[2] > idle_seconds:
        return None
    if touch and row[2] > min(TOUCH_SECONDS, idle_seconds / 4):
        _touch(database, token_digest)
    return row[0], cast(Role, row[1])


def _touch(database: Database, token_digest: str) -> None:
    with database.write() as session:
        session.execute(update(WebSession).where(WebSession.token_digest == token_digest).values(seen_at=clock()))


def end_session(database: Database, token_digest: str) -> None:
    with database.write() as session:
        session.execute(delete(WebSession).where(WebSession.token_digest == token_digest))


# ---- guesses ---------------------------------------------------------------------------------------------------


def failures(database: Database, key: str) -> tuple[int, float]:
    """How often `key` failed lately, and how many seconds ago it last did."""
    with database.read() as session:
        row = session.execute(
            select(FailedSignIn.count, clock() - FailedSignIn.last_at).where(FailedSignIn.key == key)
        ).first()
    return (row[0], row[1]) if row is not None and row[1] < FORGET_SECONDS else (0, FORGET_SECONDS)


def count_guess(database: Database, waits: Mapping[str, Callable[[int], float]]) -> float:
    """One more guess for each key, taken for a failure until `forget_failures`; or the seconds that it must wait.

    Of guesses at the same time each sees those before it. Old ones are forgotten.

    Args:
        waits: by the key, the seconds to wait after so many failures.
    """
    with database.write() as session:
        session.execute(delete(FailedSignIn).where(FailedSignIn.last_at < clock() - FORGET_SECONDS))
        rows = [_locked(session, key) for key in sorted(waits)]
        now = _now(session)
        wait = max(waits[row.key](row.count) - (now - row.last_at) for row in rows)
        if wait <= 0:
            for row in rows:
                row.count, row.last_at = row.count + 1, now
        return max(wait, 0.0)


def _locked(session: Session, key: str) -> FailedSignIn:
    """The row of a key, for this transaction alone; with a count of 0 where there was none."""
    found = select(FailedSignIn).where(FailedSignIn.key == key).with_for_update()
    if (row := session.scalar(found)) is None:
        with suppress(IntegrityError), session.begin_nested():
            session.add(FailedSignIn(key=key, count=0, last_at=_now(session)))
        row = session.scalars(found).one()
    return row


def forget_failures(database: Database, key: str) -> None:
    with database.write() as session:
        session.execute(delete(FailedSignIn).where(FailedSignIn.key == key))


def take_back_guess(database: Database, key: str) -> None:
    """It was right: one failure less; those before stay."""
    with database.write() as session:
        fewer = update(FailedSignIn).where(FailedSignIn.key == key, FailedSignIn.count > 0)
        session.execute(fewer.values(count=FailedSignIn.count - 1))


# ---- what they look at -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Holdings:
    """Whose a study is, and how many instances of each SOP class we received of it."""

    patient_id: str
    instances: dict[str, int]


def holdings(database: Database, study_instance_uid: str) -> Holdings | None:
    """For the audit trail; None where there is no such study."""
    with database.read() as session:
        study = session.execute(
            select(Study.id, Study.patient_id).where(Study.study_instance_uid == study_instance_uid)
        ).first()
        if study is None:
            return None
        counts = session.execute(
            select(Instance.sop_class_uid, func.count())
            .join(Series, Series.id == Instance.series_id)
            .where(Series.study_id == study.id)
            .group_by(Instance.sop_class_uid)
        )
        return Holdings(study.patient_id, {sop_class_uid: count for sop_class_uid, count in counts})
