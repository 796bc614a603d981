"""The DICOM listener: C-STORE and C-ECHO SCP (PS3.4 Annexes A and B, PS3.7 sections 9.1.1 and 9.1.5).

A thread for each connection. Negotiation is pynetdicom's (`plugin.negotiation`); an association for images is then
served by our own loop (`plugin.association`), and one that was granted any other service, whole, by pynetdicom
(`plugin.handover`). Both keep instances through `plugin.storage`.
"""

import os
import socket
import ssl
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import structlog
from pydicom.uid import AllTransferSyntaxes, ExplicitVRLittleEndian
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from plugin import metrics
from plugin.admission import BY_USER, PROTOCOL_VERSION_NOT_SUPPORTED, Rejection, Request, admission
from plugin.association import PROVIDER, USER, Association
from plugin.audit import Trail
from plugin.audit_message import Node, StudyObjects
from plugin.handover import Handover, Service
from plugin.negotiation import ACCEPTED as CONTEXT_ACCEPTED
from plugin.negotiation import Proposal
from plugin.settings import AuditSettings, ListenerSettings
from plugin.sop_classes import ACCEPTED
from plugin.spool import Spool
from plugin.storage import Sender, Storage
from plugin.wire import ASSOCIATE_RQ, UNEXPECTED_PDU, ProtocolError, Wire, pdu

log = structlog.get_logger("hlip.listener")

BACKLOG = 128
WAITING_CONNECTIONS = 16
"""Connections beyond the associations that may be open: room to tell a peer that there are too many."""
STALE_SECONDS = 3600.0
STOP_SECONDS = 10.0


def storage_contexts() -> list[PresentationContext]:
    """Every class in every transfer syntax. Of several offered in one context the first here is taken."""
    syntaxes = [ExplicitVRLittleEndian, *(uid for uid in AllTransferSyntaxes if uid != ExplicitVRLittleEndian)]
    contexts = [build_context(uid, list(syntaxes)) for uid in ACCEPTED]
    return [*contexts, build_context(Verification)]


class Listener:
    """A storage SCP that fills a spool.

    Args:
        settings: address, AE titles, limits and timeouts; port 0 takes a free port (see `port`).
        spool: where instances are kept.
        services: what else is offered, such as storage commitment; pynetdicom serves associations that use them.
        ssl_context: where given, every connection is TLS.
        audit: told what was received, and who was turned away.
    """

    def __init__(
        self,
        settings: ListenerSettings,
        spool: Spool,
        *,
        services: Sequence[Service] = (),
        ssl_context: ssl.SSLContext | None = None,
        audit: Trail | None = None,
    ) -> None:
        self._settings = settings
        self._audit = audit or Trail(AuditSettings(), spool / "audit", ae_title=settings.ae_title)
        self._spool = spool
        self._storage = Storage(spool, max_object_bytes=int(settings.max_object_gigabytes * 1e9))
        self._ssl_context = ssl_context
        self._prefix = f"{socket.gethostname()}-{settings.port}-"
        self._services = services
        self._storage_contexts = storage_contexts()
        self._own = frozenset(context.abstract_syntax for context in self._storage_contexts)
        self._handover = Handover(settings, self._storage, services)
        self.port = settings.port
        self._server: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._num_open = 0
        self._stopping = threading.Event()

    @property
    def _timeout(self) -> float | None:
        return self._settings.network_timeout_seconds or None

    def start(self) -> None:
        """Listen in the background. Raises OSError where the address cannot be bound."""
        settings = self._settings
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        self._server = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
        self.port = self._server.getsockname()[1]
        self._spool.close_all_associations(self._prefix)  # the port is ours: no one else of this name has any
        if swept := self._spool.sweep_incoming(older_than_seconds=STALE_SECONDS):
            log.info("swept away what was not finished", files=swept)
        self._acceptor = threading.Thread(target=self._accept, name="listener", daemon=True)
        self._acceptor.start()
        log.info("listening", ae_title=settings.ae_title, host=settings.host, port=self.port)

    def stop(self) -> None:
        """Abort what is open and close the port; what was acknowledged lies in the spool."""
        self._stopping.set()
        if self._server is not None and self._acceptor is not None:
            with suppress(OSError):
                self._server.shutdown(socket.SHUT_RDWR)
            self._acceptor.join(STOP_SECONDS)
            self._server.close()
        self._handover.abort()
        with self._lock:
            connections = dict(self._connections)
        for connection in connections.values():
            with suppress(OSError):  # past any TLS: a thread that waits sees the end, and aborts by itself
                socket.socket.shutdown(connection, socket.SHUT_RD)
        for thread in connections:
            thread.join(STOP_SECONDS)
        self._spool.close_all_associations(self._prefix)

    # ---- connections -----------------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._server is not None
        while not self._stopping.is_set():
            try:
                connection, address = self._server.accept()
            except OSError:  # stopped, or out of handles
                self._stopping.wait(0.1)
                continue
            if len(self._connections) >= self._settings.max_associations + WAITING_CONNECTIONS:
                log.warning("connection closed", cause="too many connections", address=address[0])
                connection.close()
                continue
            thread = threading.Thread(target=self._serve, args=(connection, address[0]), daemon=True)
            with self._lock:
                self._connections[thread] = connection
            try:
                thread.start()
            except RuntimeError:  # the system gives no more threads
                log.error("connection closed", cause="no thread for it", address=address[0])
                with self._lock:
                    del self._connections[thread]
                connection.close()

    def _serve(self, connection: socket.socket, address: str) -> None:
        """One connection, from its first byte to its last."""
        try:
            connection.settimeout(self._timeout)
            if self._ssl_context is not None:
                connection = self._ssl_context.wrap_socket(connection, server_side=True)
                with self._lock:
                    self._connections[threading.current_thread()] = connection
            wire = Wire(
                connection,
                max_pdu_length=self._settings.max_pdu_length,
                timeout_seconds=self._timeout,
                stopping=self._stopping,
            )
            self._negotiate(wire, address)
        except ssl.SSLError as error:
            cause = f"TLS: {error.reason or type(error).__name__}"
            log.warning("connection refused", address=address, cause=cause)
            self._audit.turned_away(Node("", address), cause)
        except OSError as error:
            log.debug("no association", address=address, cause=type(error).__name__)
        finally:
            with suppress(OSError):
                connection.close()
            with self._lock:
                del self._connections[threading.current_thread()]

    def _negotiate(self, wire: Wire, address: str) -> None:
        """The peer's first PDU, and what follows from it (PS3.8 Table 9-10, states 2 and 3)."""
        try:
            kind, content = wire.next_pdu()
            if kind != ASSOCIATE_RQ:
                raise ProtocolError(UNEXPECTED_PDU)
            encoded = pdu(kind, bytes(content))
            proposal = Proposal.from_pdu(encoded)
        except ProtocolError as error:
            wire.abort(source=PROVIDER, reason=error.reason)
            return
        except TimeoutError:
            wire.abort(source=USER)
            return
        if (why := self._enter(proposal, address)) is not None:
            metrics.ASSOCIATIONS.labels("rejected").inc()
            log.warning("association rejected", address=address, cause=why.cause)
            if why.source == BY_USER:
                self._audit.turned_away(Node(proposal.calling_ae_title, address), why.cause)
            wire.send(Proposal.rejection(why))
            wire.linger()
            return
        metrics.ASSOCIATIONS.labels("accepted").inc()
        metrics.ASSOCIATIONS_OPEN.inc()
        try:
            self._associate(wire, proposal, encoded, address)
        except ProtocolError as error:
            wire.abort(source=PROVIDER, reason=error.reason)
        finally:
            metrics.ASSOCIATIONS_OPEN.dec()
            with self._lock:
                self._num_open -= 1

    def _enter(self, proposal: Proposal, address: str) -> Rejection | None:
        """Count the association in, or say why not."""
        if not proposal.protocol_version & 1:
            return PROTOCOL_VERSION_NOT_SUPPORTED
        request = Request(proposal.calling_ae_title, proposal.called_ae_title, address)
        with self._lock:
            why = admission(request, self._settings, num_open=self._num_open)
            self._num_open += why is None
        return why

    # ---- associations ----------------------------------------------------------------------------------

    def _contexts(self, calling_ae_title: str) -> list[PresentationContext]:
        """All that a peer is offered."""
        offered = (service for service in self._services if calling_ae_title in service.calling_ae_titles)
        return [*self._storage_contexts, *(context for service in offered for context in service.contexts)]

    def _associate(self, wire: Wire, proposal: Proposal, encoded: bytes, address: str) -> None:
        contexts = self._contexts(proposal.calling_ae_title)
        results = proposal.negotiate(contexts)
        accepted = [context for context in results if context.result == CONTEXT_ACCEPTED]
        sender = Sender(self._spool, f"{self._prefix}{os.getpid()}-{uuid.uuid4().hex}")
        try:
            if not all(context.abstract_syntax in self._own for context in accepted):
                self._handover.serve(wire.socket, encoded, sender, address, contexts=contexts)
                return
            association = Association(
                wire,
                self._storage,
                sender,
                syntaxes={context.context_id or 0: context.transfer_syntax[0] for context in accepted},
                peer_max_pdu_length=proposal.max_pdu_length,
                timeout_seconds=self._timeout,
            )
            wire.send(proposal.acceptance(results, max_pdu_length=self._settings.max_pdu_length))
            wire.rewind()
            ended = association.run()
            log.info(
                "association", address=address, kept=association.num_kept, refused=association.num_refused, ended=ended
            )
        finally:
            sender.close()
            received = [StudyObjects(study_uid, counts) for study_uid, counts in sender.kept.items()]
            self._audit.received(Node(proposal.calling_ae_title, address), received)


@contextmanager
def listening(
    settings: ListenerSettings,
    spool: Spool,
    *,
    services: Sequence[Service] = (),
    ssl_context: ssl.SSLContext | None = None,
    audit: Trail | None = None,
) -> Iterator[Listener]:
    """A started listener, stopped at the end."""
    listener = Listener(settings, spool, services=services, ssl_context=ssl_context, audit=audit)
    listener.start()
    try:
        yield listener
    finally:
        listener.stop()
