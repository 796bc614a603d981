"""Where a request comes from, for the audit trail and the waits after wrong guesses."""

from ipaddress import ip_address

from starlette.requests import Request

from plugin.settings import WebSettings


def address_of(request: Request, settings: WebSettings) -> str:
    """The peer's; of a proxy in `trusted_proxies`, what that one says of its own peer: the end of X-Forwarded-For."""
    peer = request.client.host if request.client else ""
    if not is_proxy(peer, settings):
        return peer
    told = ",".join(request.headers.getlist("x-forwarded-for")).rpartition(",")[2].strip()
    return told if _is_address(told) else peer


def is_proxy(peer: str, settings: WebSettings) -> bool:
    return _is_address(peer) and any(ip_address(peer) in network for network in settings.trusted_proxies)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
