"""A PACS by DIMSE: C-FIND (PS3.4 section C.4.1), and C-MOVE to a listener of our own (C.4.2) or C-GET (C.4.3)."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import build_role, evt
from pynetdicom.association import Association
from pynetdicom.events import Event, EventHandlerType
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    SecondaryCaptureImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from hlip_core.headers import MALFORMED, text
from plugin import tls
from plugin.archive.source import (
    SERIES_FIELDS,
    STUDY_FIELDS,
    Answer,
    Denied,
    FoundSeries,
    Gone,
    NotNow,
    Query,
    Sink,
    Stopped,
    series_of,
    study_of,
)
from plugin.archive.staging import Staging, read_identity
from plugin.audit import Trail
from plugin.dimse import Peer, open_association
from plugin.listener import Listener
from plugin.sections_archive import ArchiveSettings
from plugin.settings import ListenerSettings
from plugin.sop_classes import ACCEPTED, CONTENT
from plugin.spool import Spool

SUCCESS, OUT_OF_RESOURCES, DESTINATION_UNKNOWN, CANCELLED = 0x0000, 0xA700, 0xA801, 0xFE00
CUT = frozenset({OUT_OF_RESOURCES, CANCELLED})
"""How an answer to C-FIND ends that would be too long: we never cancel."""
PENDING = frozenset({0xFF00, 0xFF01})
RETRIEVE_PATIENCE = 10
"""A retrieval may be silent for so many times as long as a query: not every PACS tells how far it is."""

NOT_OFFERED = "the PACS does not offer this service: try another way, `retrieve` in the settings' section [archive]"

PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
COMPRESSED = (
    JPEGLosslessSV1, JPEGLossless, JPEGLSLossless, JPEGLSNearLossless, JPEG2000Lossless, JPEG2000, RLELossless,
    JPEGBaseline8Bit, JPEGExtended12Bit,
)  # fmt: skip


def identifier(level: str, keys: Sequence[str] = (), **values: str) -> Dataset:
    """The identifier of a request: `keys` are asked for, `values` are matched."""
    dataset = Dataset()
    for keyword, value in {"QueryRetrieveLevel": level, **dict.fromkeys(keys, ""), **values}.items():
        tag = tag_for_keyword(keyword)
        assert tag is not None
        dataset[tag] = DataElement(tag, dictionary_VR(tag), value, validation_mode=0)  # a range of dates is no date
    return dataset


class Landing:
    """Where C-MOVE sends to: a listener of our own, apart from the clinic's, with a small spool to itself."""

    def __init__(self, settings: ArchiveSettings, listener: ListenerSettings, folder: Path, audit: Trail) -> None:
        self._spool = Spool(folder)
        for path in self._spool.arrivals(1_000_000):
            path.unlink()
        own = {
            "ae_title": settings.move_ae_title,
            "host": settings.move_host,
            "port": settings.move_port,
            "check_called_ae_title": True,
            "calling_ae_titles": (settings.ae_title,),
            "peers": (),
        }
        self._listener = Listener(
            listener.model_copy(update=own),
            self._spool,
            ssl_context=tls.server_context(listener, require_certificate=listener.tls_require_certificate)
            if settings.tls and listener.tls_certificate
            else None,
            audit=audit,
        )
        self._lock = threading.Lock()
        self._studies: dict[Path, str] = {}
        """Of files that landed for another study than the one that was asked about."""
        self._listener.start()

    @property
    def port(self) -> int:
        return self._listener.port

    def stop(self) -> None:
        self._listener.stop()

    def collect(self, sink: Staging) -> None:
        """Hand over what has landed of a study; what is no instance of any goes. Raises what the sink raises."""
        for path in self._of(sink):
            size = path.stat().st_size
            sink.adopt(path)
            sink.took(size)

    def _of(self, sink: Staging) -> list[Path]:
        with self._lock:
            landed = self._spool.arrivals(1_000_000)
            for path in landed:
                if path not in self._studies:
                    self._studies[path] = _study_of(path)
            mine = [path for path in landed if self._studies[path] in ("", sink.study_instance_uid)]
            for path in mine:
                del self._studies[path]
            return mine


def _study_of(path: Path) -> str:
    """The StudyInstanceUID, "" where none can be read: then the first sink that comes counts it as malformed."""
    try:
        return read_identity(path).study_instance_uid
    except MALFORMED:
        return ""


@contextmanager
def _associated(
    peer: Peer,
    contexts: list[PresentationContext],
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[EventHandlerType] = (),
) -> Iterator[Association]:
    """An association, established or not. Raises NotNow where the PACS aborts before anything was sent."""
    with open_association(peer, contexts, roles, handlers) as association:
        try:
            yield association
        except RuntimeError:  # pynetdicom: it must be established to send
            if association.is_established:
                raise
            raise NotNow("broken_association", is_to_blame=False) from None


class Dimse:
    """A `plugin.archive.source.Source`, for any number of threads: each question has its own association.

    Args:
        landing: where C-MOVE sends to; None: C-GET.
    """

    pages = False

    def __init__(self, settings: ArchiveSettings, *, landing: Landing | None) -> None:
        self._settings = settings
        self._landing = landing
        own = settings.tls_ca or settings.tls_certificate or settings.tls
        self._peer = Peer(
            host=settings.host,
            port=settings.port,
            ae_title=settings.ae_title,
            calling_ae_title=settings.calling_ae_title,
            timeout_seconds=settings.timeout_seconds,
            tls=tls.client_context(settings, check_hostname=settings.tls_check_hostname) if own else None,
        )

    def close(self) -> None:
        if self._landing is not None:
            self._landing.stop()

    # ---- C-FIND ----------------------------------------------------------------------------------------

    def studies(self, query: Query, *, limit: int, offset: int) -> Answer:
        """All matches: DIMSE knows neither limit nor offset. Raises NotNow where a single day gets nothing at all."""
        matches, cut = self._find(identifier("STUDY", ("StudyInstanceUID", *STUDY_FIELDS), **query.matched))
        if cut and not matches and query.first_date and query.first_date == query.last_date:
            raise NotNow("find_cut")
        rows = [row for row in map(study_of, matches) if row is not None]
        return Answer(rows, len(matches), malformed=len(matches) - len(rows), cut=cut)

    def series(self, study_uid: str) -> list[FoundSeries]:
        matches = self._find_all(
            identifier("SERIES", ("SeriesInstanceUID", *SERIES_FIELDS), StudyInstanceUID=study_uid)
        )
        rows = {row.series_instance_uid: row for row in map(series_of, matches) if row is not None}
        if not rows:
            raise Gone
        return list(rows.values())

    def instances(self, study_uid: str, series_uid: str) -> dict[str, str]:
        uids = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid}
        matches = self._find_all(identifier("IMAGE", ("SOPInstanceUID", "SOPClassUID"), **uids))
        return {uid: text(row, "SOPClassUID") for row in matches if (uid := text(row, "SOPInstanceUID"))}

    def _find_all(self, asked: Dataset) -> list[Dataset]:
        """The matches. Raises NotNow where the PACS cut them short."""
        matches, cut = self._find(asked)
        if cut:
            raise NotNow("find_cut")
        return matches

    def _find(self, asked: Dataset) -> tuple[list[Dataset], bool]:
        """The matches, and whether the PACS has more than it gives: none of a query that it finds too broad."""
        model = StudyRootQueryRetrieveInformationModelFind
        with _associated(self._peer, [build_context(model)]) as association:
            _check(association, model)
            matches = []
            for status, match in association.send_c_find(asked, model):
                code = _code(status)
                if code in PENDING:
                    matches.append(match if match is not None else Dataset())
                elif code in CUT:
                    return matches, True
                elif code != SUCCESS:
                    raise NotNow(f"find_{code:04x}")
            return matches, False

    # ---- C-MOVE and C-GET ------------------------------------------------------------------------------

    def fetch_series(self, study_uid: str, series_uid: str, sink: Sink) -> None:
        self._fetch(identifier("SERIES", StudyInstanceUID=study_uid, SeriesInstanceUID=series_uid), sink)

    def fetch_instance(self, study_uid: str, series_uid: str, sop_uid: str, sink: Sink) -> None:
        uids = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid, "SOPInstanceUID": sop_uid}
        self._fetch(identifier("IMAGE", **uids), sink)

    def _fetch(self, asked: Dataset, sink: Sink) -> None:
        if self._landing is None:
            self._get(asked, sink)
            return
        assert isinstance(sink, Staging)
        try:
            self._move(asked, sink)
        finally:
            self._landing.collect(sink)

    def _move(self, asked: Dataset, sink: Sink) -> None:
        model = StudyRootQueryRetrieveInformationModelMove
        with _associated(self._peer, [build_context(model)]) as association:
            _check(association, model)
            association.dimse_timeout = association.network_timeout = RETRIEVE_PATIENCE * self._peer.timeout_seconds
            answers = association.send_c_move(asked, self._settings.move_ae_title, model)
            _judge_retrieval(answers, sink)

    def _get(self, asked: Dataset, sink: Sink) -> None:
        model = StudyRootQueryRetrieveInformationModelGet
        failed: list[Exception] = []

        def store(event: Event) -> int:
            try:
                sink.begin()
                sink.write(event.encoded_dataset())
                sink.end()
            except (NotNow, Stopped, *MALFORMED) as error:  # pynetdicom would swallow it: it is raised again below
                sink.abandon()
                failed.append(error)
                return 0xA700
            return SUCCESS

        roles = [build_role(uid, scp_role=True) for uid in ACCEPTED]
        contexts = [build_context(model), *_storage_contexts()]
        with _associated(self._peer, contexts, roles, [(evt.EVT_C_STORE, store)]) as association:
            _check(association, model)
            association.dimse_timeout = association.network_timeout = RETRIEVE_PATIENCE * self._peer.timeout_seconds
            try:
                _judge_retrieval(association.send_c_get(asked, model), sink)
            finally:
                if failed:
                    raise failed[0]


def _storage_contexts() -> list[PresentationContext]:
    """A context for each class, and for compressed syntaxes of images, so that the PACS need not decompress.

    Together with the service's own no more than an association may have, 128 (PS3.8 section 9.3.2.2).
    """
    return [
        *(build_context(uid, list(PLAIN)) for uid in ACCEPTED),
        *(build_context(uid, [syntax]) for uid in sorted(CONTENT) for syntax in COMPRESSED),
        *(build_context(SecondaryCaptureImageStorage, [syntax]) for syntax in COMPRESSED),
    ]


def _check(association: Association, model: str) -> None:
    """Raises Denied where the PACS does not want us, NotNow where it is not there."""
    if association.is_established:
        if not any(context.abstract_syntax == model for context in association.accepted_contexts):
            raise Denied(NOT_OFFERED)
        return
    answer = association.acceptor.primitive
    if getattr(answer, "result", None) == 0x00:  # accepted, with no context
        raise Denied(NOT_OFFERED)
    if association.is_rejected and getattr(answer, "result", None) == 0x01:
        raise Denied(
            "the PACS rejects the association: does it know our calling_ae_title, and is its ae_title right "
            "(section [archive])?"
        )
    raise NotNow("no_connection", is_to_blame=False)


def _code(status: Dataset) -> int:
    """Of a response. Raises NotNow where there was none: the association broke, or the PACS was silent."""
    if "Status" not in status:
        raise NotNow("broken_association")
    return int(status.Status)


def _judge_retrieval(answers: Iterator[tuple[Dataset, Any]], sink: Sink) -> None:
    """What a retrieval came to. Sub-operations that failed are counted: what is missing is asked for again."""
    code = SUCCESS
    for status, _ in answers:
        code = _code(status)
        if code not in PENDING:
            sink.troubles["failed_suboperations"] += int(status.get("NumberOfFailedSuboperations") or 0)
    if code == DESTINATION_UNKNOWN:
        raise Denied("the PACS does not know the AE title to send to: enter move_ae_title (section [archive]) there")
    if code not in PENDING and code != SUCCESS and code >> 12 != 0xB:
        raise NotNow(f"retrieve_{code:04x}")
