"""The application that the web role serves: what there is, under which path."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import h11
import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.staticfiles import StaticFiles

from plugin.health import Health
from plugin.web import access, archive, events, operations, sign_in, study, worklist
from plugin.web.events import Watch
from plugin.web.images import Images
from plugin.web.pages import STATIC, page
from plugin.web.stow import Stow
from plugin.web.worklist import Lists

if TYPE_CHECKING:
    from plugin.bootstrap import Plugin

log = structlog.get_logger("hlip.web")

ROUTERS = (worklist.router, study.router, events.router, sign_in.router, operations.router, archive.router)
"""The page's parts."""


async def healthz(request: Request) -> Response:
    """Whether the process answers."""
    return JSONResponse({"status": "ok"})


def _told(health: Health, *paths: str) -> list[Route]:
    """Whether the role is ready, and what it counts. Either looks at the index, in a thread."""

    def tell(request: Request) -> Response:
        status, content_type, body = health.answer(request.url.path)
        return Response(body, status, media_type=content_type)

    return [Route(path, tell) for path in paths]


class _Static(StaticFiles):
    """Files of the page: browsers keep them, and ask whether they changed."""

    async def get_response(self, path: str, scope: dict) -> Response:  # type: ignore[override]
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


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


async def _refused(request: Request, error: Exception) -> Response:
    """A page for people, a line of JSON for programs and for htmx."""
    assert isinstance(error, HTTPException)
    is_navigation = "text/html" in request.headers.get("accept", "") and "hx-request" not in request.headers
    if is_navigation and not request.url.path.startswith("/dicom-web"):
        return page(request, "refused.html", status=error.status_code, detail=error.detail)
    return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)


def create_app(plugin: "Plugin") -> FastAPI:
    """The application on a plugin's parts: STOW-RS, health, the page."""
    settings = plugin.settings.web
    health = Health(plugin, ("web",))
    told = ("/readyz", "/metrics") if plugin.settings.metrics.web else ("/readyz",)
    routes: list[BaseRoute] = [Route("/healthz", healthz), *_told(health, *told)]
    stow = None
    if settings.stow:
        prefix = f"stow-{socket.gethostname()}-{settings.port}-"
        stow = Stow(settings, plugin.spool, prefix=prefix, audit=plugin.audit)
        routes += [Route(f"/dicom-web/studies{rest}", stow.store, methods=["POST"]) for rest in ("", "/{study}")]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if stow is not None:
            stow.start()
        async with app.state.watch.running():
            yield
        if stow is not None:
            stow.close()
        health.close()

    app = FastAPI(title="hlip", routes=routes, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.plugin = plugin
    app.state.watch = Watch(plugin)
    app.state.images = Images(plugin.spool)
    app.state.lists = Lists()
    app.add_exception_handler(Exception, _failed)
    app.add_exception_handler(HTTPException, _refused)
    for router in ROUTERS:
        app.include_router(router)
    app.mount("/static", _Static(directory=STATIC))
    access.install(app, plugin)
    return app
