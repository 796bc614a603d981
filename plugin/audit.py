"""The audit trail: what happened, written to a file, or kept in the spool until a syslog receiver has it.

Nothing here stops or delays the road: a message that cannot be kept is lost, and the log says so; a receiver that is
away costs disk until it is back. Off unless the settings name a file or a receiver.
"""

import fcntl
import os
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import structlog
from pydicom import dcmread

from hlip_core import headers
from plugin import audit_message, syslog, tls
from plugin.alerts import Alerts
from plugin.audit_message import Actor, Node, Outcome, Source, StudyObjects
from plugin.lifecycle import backoff_seconds
from plugin.settings import AuditSettings, Destination

log = structlog.get_logger("hlip.audit")

SUFFIX = ".syslog"
BATCH = 100
MAX_LOOKED_AT = 100 * BATCH
LOOK_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0
TIMEOUT_SECONDS = 10.0


class Trail:
    """Where audit messages go.

    Args:
        folder: where they wait for the receiver; shared by all processes of a site.
        ae_title: ours.
    """

    def __init__(self, settings: AuditSettings, folder: Path, *, ae_title: str) -> None:
        self._settings = settings
        self._folder = folder
        self._source = Source(settings.source_id, settings.enterprise_site_id, ae_title)
        self._alerts = Alerts()

    @property
    def is_on(self) -> bool:
        return bool(self._settings.file or self._settings.syslog_host)

    # ---- events --------------------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """The application starts now, and stops at the end of the block."""
        self._keep(lambda: audit_message.application_activity(self._source, is_start=True))
        try:
            yield
        finally:
            self._alert(self._alerts.rest())
            self._keep(lambda: audit_message.application_activity(self._source, is_start=False))

    def received(self, sender: Node, objects: Sequence[StudyObjects]) -> None:
        """Instances were kept; a message for each study, since one is about one patient."""
        for moved in objects:
            self._keep(partial(audit_message.instances_transferred, self._source, [moved], sender=sender))

    def sent(
        self, receiver: Node, objects: StudyObjects, *, outcome: Outcome = "0", patient_id: str | None = None
    ) -> None:
        """Instances were taken by `receiver`, or refused (an `outcome` other than "0")."""
        self._keep(
            lambda: audit_message.instances_transferred(
                self._source,
                [objects],
                receiver=receiver,
                outcome=outcome,
                patient_id=patient_id if self._settings.patient_ids else None,
            ),
            severity=syslog.NOTICE if outcome == audit_message.SUCCESS else syslog.WARNING,
        )

    def sent_file(self, path: Path, destination: Destination, *, outcome: Outcome = "0") -> None:
        """The object of a file was taken by a destination, or refused."""
        if not self.is_on:
            return
        header = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID", "StudyInstanceUID", "PatientID"])
        host = destination.host or urlsplit(destination.url).hostname or ""
        self.sent(
            Node(destination.ae_title or destination.name, host),
            StudyObjects(header.StudyInstanceUID, {header.SOPClassUID: 1}),
            outcome=outcome,
            patient_id=headers.text(header, "PatientID"),
        )

    def turned_away(self, peer: Node, cause: str) -> None:
        """A peer was not let in: its AE title, its address, its certificate. Often the same one is told together."""
        if self.is_on:
            self._alert(self._alerts.add(peer, cause))

    def _alert(self, due: list[tuple[Node, str]]) -> None:
        for peer, cause in due:
            self._keep(partial(audit_message.security_alert, self._source, peer, cause), severity=syslog.WARNING)

    def deleted(self, objects: StudyObjects) -> None:
        """Instances or results of a study were removed for good."""
        self._keep(lambda: audit_message.study_deleted(self._source, objects))

    # ---- what people do ------------------------------------------------------------------------------------

    def accessed(
        self,
        actor: Actor,
        objects: StudyObjects,
        *,
        act: str = "",
        outcome: Outcome = "0",
        patient_id: str | None = None,
    ) -> bool:
        """A person saw a study, or did one of `audit_message.ACTS` with it. Whether that was kept."""
        return self._keep(
            lambda: audit_message.study_accessed(
                self._source,
                actor,
                objects,
                act=act,
                outcome=outcome,
                patient_id=patient_id if self._settings.patient_ids else None,
            ),
            severity=syslog.NOTICE if outcome == audit_message.SUCCESS else syslog.WARNING,
        )

    def searched(self, actor: Actor, text: str) -> None:
        self._keep(lambda: audit_message.searched(self._source, actor, text))

    def signed(self, actor: Actor, *, is_login: bool, outcome: Outcome = "0") -> None:
        """A person signed in or out, or was not let in."""
        self._keep(
            lambda: audit_message.user_authentication(self._source, actor, is_login=is_login, outcome=outcome),
            severity=syslog.NOTICE if outcome == audit_message.SUCCESS else syslog.WARNING,
        )

    def user_changed(self, actor: Actor, user: str, description: str) -> None:
        """Who may sign in was changed."""
        self._keep(lambda: audit_message.user_changed(self._source, actor, user, description))

    # ---- keeping -------------------------------------------------------------------------------------------

    def _keep(self, content: Callable[[], bytes], *, severity: int = syslog.NOTICE) -> bool:
        """Wherever the settings say; whether it was kept anywhere."""
        if not self.is_on:
            return False
        message = syslog.message(content(), severity=severity)
        kept = []
        if self._settings.file:
            kept.append(_is_done(append, Path(self._settings.file).expanduser(), message))
        if self._settings.syslog_host:
            kept.append(_is_done(keep, self._folder, message))
        return any(kept)

    # ---- sending -------------------------------------------------------------------------------------------

    @contextmanager
    def forwarding(self) -> Iterator[None]:
        """Send what waits, in the background of the block; one process of a site does it. Raises TlsError."""
        if not self._settings.syslog_host:
            yield
            return
        stop = threading.Event()
        thread = threading.Thread(target=forward, args=(self._folder, connection(self._settings), stop), name="audit")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _is_done(write: Callable[[Path, bytes], None], where: Path, message: bytes) -> bool:
    try:
        write(where, message)
    except OSError as error:
        log.error("an audit message is lost", sink=write.__name__, cause=os.strerror(error.errno or 0))
        return False
    return True


def append(file: Path, message: bytes) -> None:
    """A line more, whole or not at all; processes take their turn. Raises OSError."""
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        length = os.fstat(handle).st_size
        try:
            _write(handle, message + b"\n")
        except OSError:
            if stat.S_ISREG(os.fstat(handle).st_mode):
                os.ftruncate(handle, length)
            raise
    finally:
        os.close(handle)


def keep(folder: Path, message: bytes) -> None:
    """A file more in the folder, whole or not at all; in the order of time. Raises OSError."""
    folder.mkdir(mode=0o700, exist_ok=True)
    name = f"{time.time_ns():020d}-{uuid.uuid4().hex}"
    part = folder / f".{name}"
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            _write(handle, message)
        finally:
            os.close(handle)
        part.rename(folder / f"{name}{SUFFIX}")
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _write(handle: int, content: bytes) -> None:
    """All of it: on a disk that fills up a part is written first."""
    while content:
        content = content[os.write(handle, content) :]


def connection(settings: AuditSettings) -> syslog.Connection:
    """To the receiver of the settings. Raises TlsError."""
    is_tls = settings.syslog_transport == "tls"
    return syslog.Connection(
        settings.syslog_host,
        settings.syslog_port,
        settings.syslog_transport,
        context=tls.client_context(settings) if is_tls else None,
        timeout_seconds=TIMEOUT_SECONDS,
    )


def forward(folder: Path, receiver: syslog.Connection, stop: threading.Event) -> None:
    """Send what waits in `folder`, oldest first, until stopped; what was sent is removed."""
    failures = 0
    while not stop.is_set():
        try:
            waiting = waiting_in(folder)
            receiver.send([path.read_bytes() for path in waiting])
            for path in waiting:
                path.unlink(missing_ok=True)
        except OSError as error:
            failures += 1
            wait = backoff_seconds(failures, first=LOOK_SECONDS, longest=LONGEST_WAIT_SECONDS)
            log.warning("the audit receiver is away", cause=type(error).__name__, next_try_seconds=wait)
            stop.wait(wait)
        else:
            failures = 0
            if len(waiting) < BATCH:
                stop.wait(LOOK_SECONDS)
    receiver.close()


def waiting_in(folder: Path) -> list[Path]:
    """The oldest messages that wait, a batch of them at most; of very many, the oldest of some."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(islice((entry.name for entry in entries if entry.name.endswith(SUFFIX)), MAX_LOOKED_AT))
    except FileNotFoundError:
        return []
    return [folder / name for name in names[:BATCH]]
