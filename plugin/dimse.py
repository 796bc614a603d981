"""DIMSE to a peer: C-ECHO and C-STORE as user (PS3.7 sections 9.1.1 and 9.1.5), N-EVENT-REPORT as provider (10.1.1)."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext

from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role
from pynetdicom.association import Association
from pynetdicom.events import EventHandlerType
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]


class PeerUnavailable(Exception):
    """No association, or it broke: try again later."""


class PeerRefused(Exception):
    """The peer answered that it does not take this object."""


@dataclass(frozen=True)
class Peer:
    """A DICOM node; with a `tls` context it is spoken to over TLS."""

    host: str
    port: int
    ae_title: str
    calling_ae_title: str = "HLIP"
    timeout_seconds: float = 60
    tls: SSLContext | None = None


@contextmanager
def open_association(
    peer: Peer,
    contexts: list[PresentationContext],
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[EventHandlerType] = (),
) -> Iterator[Association]:
    """An association, established or not, released at the end; its socket is closed in any case."""
    ae = AE(ae_title=peer.calling_ae_title)
    ae.requested_contexts = contexts
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = peer.timeout_seconds
    tls_args = (peer.tls, peer.host) if peer.tls is not None else None
    association = ae.associate(
        peer.host, peer.port, ae_title=peer.ae_title, ext_neg=list(roles), tls_args=tls_args,
        evt_handlers=list(handlers),
    )  # fmt: skip
    try:
        yield association
    finally:
        if association.is_established:
            association.release()
        if (socket := association.dul.socket) is not None:
            socket.close()


def _contexts_for(headers: Iterable[Dataset]) -> list[PresentationContext]:
    """One context for each SOP class and transfer syntax; uncompressed ones offer both uncompressed syntaxes."""
    plain = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    wanted: dict[tuple[str, tuple[str, ...]], None] = {}
    for header in headers:
        syntax = header.file_meta.TransferSyntaxUID
        wanted[(header.file_meta.MediaStorageSOPClassUID, plain if syntax in plain else (syntax,))] = None
    return [build_context(sop_class, list(syntaxes)) for sop_class, syntaxes in wanted]


def echo(peer: Peer) -> bool:
    """Whether the peer answers a C-ECHO with success."""
    with open_association(peer, [build_context(Verification)]) as association:
        return association.is_established and association.send_c_echo().get("Status") == 0x0000


def send(paths: Iterable[Path], peer: Peer) -> Iterator[tuple[Path, int]]:
    """C-STORE Part 10 files over one association; yields each file with the response's status.

    Raises:
        PeerUnavailable: no association, or it broke before the end; files already yielded were answered.
        PeerRefused: the peer accepts no presentation context for a file.
    """
    paths = list(paths)
    headers = [dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]) for path in paths]
    with open_association(peer, _contexts_for(headers)) as association:
        if not association.is_established:
            over = " over TLS" if peer.tls is not None else ""
            raise PeerUnavailable(f"no association with {peer.ae_title} at {peer.host}:{peer.port}{over}")
        for path in paths:
            try:
                status = association.send_c_store(path)
            except ValueError as error:  # pynetdicom: no accepted presentation context
                raise PeerRefused(f"{peer.ae_title} accepts no presentation context for the object") from error
            except RuntimeError as error:  # pynetdicom: the peer aborted before the request was sent
                raise PeerUnavailable(f"the association with {peer.ae_title} broke") from error
            if "Status" not in status:
                raise PeerUnavailable(f"the association with {peer.ae_title} broke")
            yield path, int(status.Status)


def report_event(
    peer: Peer, *, sop_class_uid: str, sop_instance_uid: str, event_type: int, information: Dataset
) -> int:
    """N-EVENT-REPORT as the provider of a SOP class, on an association of its own; the response's status.

    Raises:
        PeerUnavailable: no association, or it broke before the response.
        PeerRefused: the peer does not take the role of the user (PS3.7 section D.3.3.4).
    """
    contexts, roles = [build_context(sop_class_uid)], [build_role(sop_class_uid, scp_role=True)]
    with open_association(peer, contexts, roles) as association:
        if not association.is_established:
            raise PeerUnavailable(f"no association with {peer.ae_title} at {peer.host}:{peer.port}")
        try:
            status, _ = association.send_n_event_report(information, event_type, sop_class_uid, sop_instance_uid)
        except ValueError as error:  # pynetdicom: no accepted presentation context
            raise PeerRefused(f"{peer.ae_title} does not take events of this class") from error
        except RuntimeError as error:  # pynetdicom: the peer aborted before the request was sent
            raise PeerUnavailable(f"the association with {peer.ae_title} broke") from error
        if "Status" not in status:
            raise PeerUnavailable(f"the association with {peer.ae_title} broke")
        return int(status.Status)
