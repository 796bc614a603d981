"""The application that the web role serves: what there is, under which path."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import h11
import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from plugin.web.stow import Stow

if TYPE_CHECKING:
    from plugin.bootstrap import Plugin

log = structlog.get_logger("hlip.web")

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1", "[::1]")


async def healthz(request: Request) -> Response:
    """Whether the process answers."""
    return JSONResponse({"status": "ok"})


async def _failed(request: Request, error: Exception) -> Response:
    """A mistake of ours, told by its type alone: a text might quote what was sent."""
    if isinstance(error, h11.LocalProtocolError):  # the client's: there is no answer to what it has made of HTTP
        log.warning("request broken off", cause="the client broke HTTP")
        return JSONResponse({"status": "failed"}, 400)
    log.error(
        "request failed",
        path=request.scope["route"].path if "route" in request.scope else "",
        cause=type(error).__name__,
    )
    return JSONResponse({"status": "failed"}, 500)


def create_app(plugin: "Plugin") -> Starlette:
    """The application on a plugin's parts.

    Without a token it answers only requests that name this machine as their host, so that no page in a browser here
    gets at it by a name of its own (DNS rebinding).
    """
    settings = plugin.settings.web
    routes = [Route("/healthz", healthz)]
    stow = None
    if settings.stow:
        prefix = f"stow-{socket.gethostname()}-{settings.port}-"
        stow = Stow(settings, plugin.spool, prefix=prefix, audit=plugin.audit)
        routes += [Route(f"/dicom-web/studies{rest}", stow.store, methods=["POST"]) for rest in ("", "/{study}")]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        if stow is not None:
            stow.close()

    needs_no_token = not settings.stow_token.get_secret_value()
    local_only = [Middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK_HOSTS)] if needs_no_token else []
    return Starlette(routes=routes, lifespan=lifespan, middleware=local_only, exception_handlers={Exception: _failed})
