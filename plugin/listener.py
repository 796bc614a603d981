"""The DICOM listener: C-STORE and C-ECHO SCP (PS3.4 Annexes A and B, PS3.7 sections 9.1.1 and 9.1.5).

An instance is written as it came, fsynced and renamed before 0x0000 is answered. No database, no broker and no
decoding of pixels stand on this path.
"""

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from pydicom.uid import AllTransferSyntaxes, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom import _config as pynetdicom_config
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from plugin.arrival import check_instance
from plugin.settings import ListenerSettings
from plugin.sop_classes import ACCEPTED
from plugin.spool import Spool, UnsafeUid

log = structlog.get_logger("hlip.listener")

# PS3.4 Table B.2-1, C-STORE response status values
SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH_SOP_CLASS = 0xA900
CANNOT_UNDERSTAND = 0xC000


def _contexts() -> list[PresentationContext]:
    """Every class in every transfer syntax. Of several offered in one context the first here is taken."""
    syntaxes = [ExplicitVRLittleEndian, *(uid for uid in AllTransferSyntaxes if uid != ExplicitVRLittleEndian)]
    contexts = [build_context(uid, list(syntaxes)) for uid in ACCEPTED]
    return [*contexts, build_context(Verification)]


class Listener:
    """A storage SCP that fills a spool.

    Args:
        settings: address, AE titles, limits and timeouts; port 0 takes a free port (see `port`).
        spool: where instances are kept.
    """

    def __init__(self, settings: ListenerSettings, spool: Spool) -> None:
        self._settings = settings
        self._spool = spool
        self._prefix = f"{socket.gethostname()}-{settings.port}-"
        self._names: dict[int, str] = {}
        self._sending: dict[str, dict[str, str]] = {}
        self.port = settings.port
        self._ae = self._application_entity()
        self._server: object | None = None

    def _application_entity(self) -> AE:
        settings = self._settings
        ae = AE(ae_title=settings.ae_title)
        ae.supported_contexts = _contexts()
        ae.maximum_pdu_size = settings.max_pdu_length
        ae.maximum_associations = settings.max_associations
        ae.network_timeout = ae.dimse_timeout = ae.acse_timeout = settings.network_timeout_seconds or None
        ae.require_called_aet = settings.check_called_ae_title
        ae.require_calling_aet = list(settings.calling_ae_titles)
        return ae

    def start(self) -> None:
        """Listen in the background. Raises OSError where the address cannot be bound."""
        pynetdicom_config.LOG_HANDLER_LEVEL = "none"
        self._spool.close_all_associations(self._prefix)
        settings = self._settings
        handlers = [
            (evt.EVT_ESTABLISHED, self._on_established),
            (evt.EVT_CONN_CLOSE, self._on_closed),
            (evt.EVT_C_STORE, self._on_c_store),
            (evt.EVT_C_ECHO, self._on_c_echo),
        ]
        server = self._ae.start_server(
            (settings.host, settings.port), block=False, evt_handlers=handlers  # type: ignore[arg-type]
        )  # fmt: skip
        self._server = server
        self.port = server.socket.getsockname()[1]  # type: ignore[union-attr]
        log.info("listening", ae_title=settings.ae_title, host=settings.host, port=self.port)

    def stop(self) -> None:
        """Abort what is open and close the port; what was acknowledged lies in the spool."""
        self._ae.shutdown()
        self._spool.close_all_associations(self._prefix)

    # ---- association's events ------------------------------------------------------------------------

    def _on_established(self, event: Event) -> None:
        name = f"{self._prefix}{os.getpid()}-{uuid.uuid4().hex}"
        self._names[id(event.assoc)] = name
        self._sending[name] = {}
        self._spool.open_association(name)

    def _on_closed(self, event: Event) -> None:
        name = self._names.pop(id(event.assoc), None)
        if name is not None:
            self._sending.pop(name, None)
            self._spool.close_association(name)

    def _on_c_echo(self, event: Event) -> int:
        return SUCCESS

    def _on_c_store(self, event: Event) -> int:
        """Keep the instance, then answer; a refusal leaves nothing behind."""
        if not self._spool.has_room():
            log.error("refused", status="0xA700", cause="the spool's disk is nearly full")
            return OUT_OF_RESOURCES
        try:
            return self._keep(event)
        except UnsafeUid as error:
            log.warning("refused", status="0xA900", cause=str(error))
            return DOES_NOT_MATCH_SOP_CLASS
        except OSError as error:
            if error.errno is None:  # not the system's: pydicom's on a broken header
                log.warning("refused", status="0xC000", cause=type(error).__name__)
                return CANNOT_UNDERSTAND
            log.error("refused", status="0xA700", cause=os.strerror(error.errno))
            return OUT_OF_RESOURCES
        except Exception as error:  # the association's border: a header that pydicom cannot read
            log.warning("refused", status="0xC000", cause=type(error).__name__)
            return CANNOT_UNDERSTAND

    def _keep(self, event: Event) -> int:
        part10 = event.encoded_dataset()
        header, study_uid, series_uid = check_instance(part10)
        request = event.request
        if (header.get("SOPInstanceUID"), header.get("SOPClassUID")) != (
            request.AffectedSOPInstanceUID,  # type: ignore[union-attr]
            request.AffectedSOPClassUID,
        ):
            log.warning("refused", status="0xA900", cause="the dataset's SOP UIDs are not the request's")
            return DOES_NOT_MATCH_SOP_CLASS
        self._mark(event, study_uid, series_uid)
        self._spool.accept(part10)
        return SUCCESS

    def _mark(self, event: Event, study_uid: str, series_uid: str) -> None:
        name = self._names[id(event.assoc)]
        sending = self._sending[name]
        if sending.get(study_uid) == series_uid:
            self._spool.touch_study(name, study_uid)
        else:
            self._spool.mark_series(name, study_instance_uid=study_uid, series_instance_uid=series_uid)
            sending[study_uid] = series_uid


@contextmanager
def listening(settings: ListenerSettings, spool: Spool) -> Iterator[Listener]:
    """A started listener, stopped at the end."""
    listener = Listener(settings, spool)
    listener.start()
    try:
        yield listener
    finally:
        listener.stop()
