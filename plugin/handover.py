"""Associations that were granted more than storage and verification: pynetdicom serves them, whole.

Its association is given the socket and the A-ASSOCIATE-RQ that was read from it already, so it begins at the beginning.
"""

import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import structlog
from pynetdicom import AE, evt
from pynetdicom import _config as pynetdicom_config
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event, EventType
from pynetdicom.fsm import InvalidEventError
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationSocket

from hlip_core.headers import MALFORMED
from plugin.settings import ListenerSettings
from plugin.storage import SUCCESS, Sender, Storage
from plugin.wire import GRACE

log = structlog.get_logger("hlip.listener")

Handler = tuple[EventType, Callable[[Event], Any]]
UNLIMITED = 1 << 20  # admission counts associations, not pynetdicom
MAX_MESSAGE_BYTES = 1 << 29
"""Of a message on such an association: it lies in memory as a whole. A sender of more uses one for storage alone."""


@dataclass(frozen=True)
class Service:
    """What a listener offers besides storage and verification: presentation contexts, and pynetdicom's handlers.

    It is offered to the peers of `calling_ae_titles` alone: pynetdicom holds a message in memory as a whole.
    """

    contexts: Sequence[PresentationContext]
    handlers: Sequence[Handler]
    calling_ae_titles: frozenset[str]


class _Replayed(AssociationSocket):
    """A socket from which some bytes were read already.

    It holds what pynetdicom does not: the maximum length of a PDU, and a limit to a message, since either is put
    together in memory. `forget` counts a new message.
    """

    def __init__(
        self, association: Association, connection: socket.socket, read: bytes, *, max_pdu_length: int
    ) -> None:
        super().__init__(association, client_socket=connection)
        self._read = bytearray(read)
        self._longest = max_pdu_length + GRACE
        self._received = 0

    def forget(self, event: Event) -> None:
        self._received = 0

    @property
    def ready(self) -> bool:
        return bool(self._read) or super().ready

    def recv(self, nr_bytes: int) -> bytearray:
        self._received += nr_bytes
        if nr_bytes > max(self._longest, len(self._read)) or self._received > MAX_MESSAGE_BYTES:
            raise ConnectionAbortedError("longer than agreed")
        first, self._read = self._read[:nr_bytes], self._read[nr_bytes:]
        return first + super().recv(nr_bytes - len(first)) if len(first) < nr_bytes else first


def _without_traceback(do_action: Callable[[str], None]) -> Callable[[str], None]:
    """A state machine's, for what pynetdicom lets fall through: a PDU out of order, a command set that is none.

    With its thread the association ends too.
    """

    def act(event: str) -> None:
        try:
            do_action(event)
        except (InvalidEventError, *MALFORMED) as error:
            log.warning("association broken off", cause=type(error).__name__)
            raise SystemExit from None  # which ends the thread as the error would, but quotes nothing

    return act


class Handover:
    """The request was admitted already."""

    def __init__(self, settings: ListenerSettings, storage: Storage, services: Sequence[Service]) -> None:
        pynetdicom_config.LOG_HANDLER_LEVEL = "none"
        self._settings = settings
        self._storage = storage
        self._handlers = [handler for service in services for handler in service.handlers]
        self._ae = AE(ae_title=settings.ae_title)
        self._ae.maximum_pdu_size = settings.max_pdu_length
        self._ae.maximum_associations = UNLIMITED
        timeout = settings.network_timeout_seconds or None
        self._ae.network_timeout = self._ae.dimse_timeout = self._ae.acse_timeout = timeout

    def serve(
        self,
        connection: socket.socket,
        read: bytes,
        sender: Sender,
        address: str,
        *,
        contexts: Sequence[PresentationContext],
    ) -> None:
        """Serve one association until its end. `read` is its A-ASSOCIATE-RQ; `contexts` all that it is offered."""
        association = self._association(connection, read, address)
        association.acceptor.supported_contexts = list(contexts)
        association.bind(evt.EVT_C_ECHO, lambda event: SUCCESS)
        association.bind(evt.EVT_C_STORE, lambda event: self._on_c_store(event, sender))
        for event, handler in self._handlers:
            association.bind(event, handler)
        association.start()
        association.join()
        if association.dul.is_alive():
            association.dul.join()

    def abort(self) -> None:
        """Abort all that are open."""
        for thread in threading.enumerate():
            if isinstance(thread, Association) and thread.ae is self._ae:
                thread.abort()

    def _association(self, connection: socket.socket, read: bytes, address: str) -> Association:
        association = Association(self._ae, "acceptor")
        machine = association.dul.state_machine
        machine.do_action = _without_traceback(machine.do_action)  # type: ignore[method-assign,assignment]
        replayed = _Replayed(association, connection, read, max_pdu_length=self._settings.max_pdu_length)
        association.set_socket(replayed)
        association.bind(evt.EVT_DIMSE_RECV, replayed.forget)
        acceptor = association.acceptor
        acceptor.maximum_length = self._settings.max_pdu_length
        acceptor.ae_title = self._settings.ae_title
        acceptor.implementation_class_uid = self._ae.implementation_class_uid
        acceptor.implementation_version_name = self._ae.implementation_version_name
        host, port = connection.getsockname()[:2]
        acceptor.address_info = AddressInformation(host, port)
        association.requestor.address_info = AddressInformation(address, connection.getpeername()[1])
        return association

    def _on_c_store(self, event: Event, sender: Sender) -> int:
        request = event.request
        assert isinstance(request, C_STORE) and isinstance(request.DataSet, BytesIO)
        receiving = self._storage.receive(
            sender,
            sop_class_uid=str(request.AffectedSOPClassUID or ""),
            sop_instance_uid=str(request.AffectedSOPInstanceUID or ""),
            transfer_syntax_uid=event.context.transfer_syntax,
        )
        receiving.add(request.DataSet.getbuffer())
        return receiving.finish()
