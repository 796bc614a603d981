"""Headers on every answer of the page, and what it does not listen to: other sites, large bodies."""

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UNSAFE_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
MAX_FORM_BYTES = 64 * 1024
DICOMWEB = "/dicom-web/"
"""Has a token of its own, and bodies of its own size."""

CONTENT_SECURITY_POLICY = "; ".join(
    f"{what} {whence}"
    for what, whence in {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self'",
        "font-src": "'self'",
        "connect-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }.items()
)

HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # not `no-referrer`, with which a browser would not say either where a form comes from
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class Guard:
    """Middleware (ASGI).

    Args:
        public_url: where browsers find the page, if not where the server listens.
    """

    def __init__(self, app: ASGIApp, *, public_url: str = "") -> None:
        self._app = app
        self._public = urlsplit(public_url).netloc
        self._headers = dict(HEADERS)
        if public_url.startswith("https://"):
            self._headers["Strict-Transport-Security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add_headers(message)
            await send(message)

        refused = self._refused(scope)
        limited = receive if scope["path"].startswith(DICOMWEB) else _limited(receive)
        await (refused or self._app)(scope, limited, sending)

    def _refused(self, scope: MutableMapping[str, Any]) -> JSONResponse | None:
        if scope["method"] not in UNSAFE_METHODS or scope["path"].startswith(DICOMWEB):
            return None
        headers = Headers(scope=scope)
        if not self._is_same_site(headers):
            return JSONResponse({"detail": "only the page itself may do this"}, 403)
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not length.isdecimal():  # of both, a server obeys the former
            return JSONResponse({"detail": "a length is needed"}, 411)
        return JSONResponse({"detail": "too large"}, 413) if int(length) > MAX_FORM_BYTES else None

    def _is_same_site(self, headers: Headers) -> bool:
        """By what the browser itself says of where a request comes from, if it does."""
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return False
        origin = headers.get("origin")
        return origin is None or urlsplit(origin).netloc in (headers.get("host", ""), self._public or None)

    def _add_headers(self, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        for name, value in self._headers.items():
            headers.setdefault(name, value)
        headers.setdefault("Cache-Control", "no-store")


def _limited(receive: Receive) -> Receive:
    """The body of a request, whatever its head says of it. Raises HTTPException 413 where it is too long."""
    total = 0

    async def receiving() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > MAX_FORM_BYTES:
            raise HTTPException(413, "too large", {"Connection": "close"})
        return message

    return receiving
