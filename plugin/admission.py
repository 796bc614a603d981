"""Who may open an association: every request for one is judged here, before anything else is looked at."""

from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

from plugin.settings import ListenerSettings


class Rejection(NamedTuple):
    """Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 Table 9-21), and what the log says."""

    result: int
    source: int
    reason: int
    cause: str


BY_USER = 1  # the source of a rejection for who the peer is, not for what the connection or the load is like
CALLING_AE_TITLE_NOT_RECOGNIZED = Rejection(1, 1, 3, "calling AE title not recognized")
CALLED_AE_TITLE_NOT_RECOGNIZED = Rejection(1, 1, 7, "called AE title not recognized")
PROTOCOL_VERSION_NOT_SUPPORTED = Rejection(1, 2, 2, "protocol version not supported")
LOCAL_LIMIT_EXCEEDED = Rejection(2, 3, 2, "too many associations")


@dataclass(frozen=True)
class Request:
    """What is known of a peer that asks for an association."""

    calling_ae_title: str
    called_ae_title: str
    address: str
    """IP address."""


def admission(request: Request, settings: ListenerSettings, *, num_open: int) -> Rejection | None:
    """Why the request is rejected; None where it is not. `num_open` associations are open without this one."""
    if not _may_send(request, settings):
        return CALLING_AE_TITLE_NOT_RECOGNIZED
    if settings.check_called_ae_title and request.called_ae_title != settings.ae_title.strip():
        return CALLED_AE_TITLE_NOT_RECOGNIZED
    if num_open >= settings.max_associations:
        return LOCAL_LIMIT_EXCEEDED
    return None


def _may_send(request: Request, settings: ListenerSettings) -> bool:
    """Whether the settings let an AE send from its address; where they name no sender at all, everyone may.

    The title of a row that names networks counts from these only, whatever other list has it too.
    """
    rows = [peer for peer in settings.peers if peer.ae_title.strip() == request.calling_ae_title]
    if rows:
        address = ip_address(request.address.partition("%")[0])  # without an IPv6 zone
        address = getattr(address, "ipv4_mapped", None) or address
        return any(not peer.addresses or any(address in network for network in peer.addresses) for peer in rows)
    if settings.calling_ae_titles or settings.peers:
        return request.calling_ae_title in {title.strip() for title in settings.calling_ae_titles}
    return True
