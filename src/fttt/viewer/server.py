"""The page's service: its files, the facts of runs, and a stream of what is new.

Everything is read from the run folders; nothing is written. A run is named by a key that the
watcher made, never by a path, so that no request can name another file.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import webbrowser
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import StreamingResponse
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fttt.errors import UsageError
from fttt.store import FollowedRun
from fttt.viewer.stream import RunStream
from fttt.viewer.watcher import Watcher

__all__ = ["create_view", "serve_view"]

_HOSTS = ["127.0.0.1", "localhost"]
"""Names that the page may be asked for by; a foreign name that resolves to here is refused."""
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; connect-src 'self'; "
        "img-src data:; "  # the icon, which is none
        "style-src 'self' 'unsafe-inline'; "  # the plots carry their colours as attributes
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_SEND_EVERY = 0.5
"""Seconds between two messages of a stream."""
_SCRIPT, _STYLE = "text/javascript; charset=utf-8", "text/css; charset=utf-8"
_ASSETS = {"report.css": _STYLE, "trials.js": _SCRIPT, "view.js": _SCRIPT}


def create_view(watcher: Watcher) -> FastAPI:
    """The application over a watcher, which starts and ends with it."""
    view = _View(watcher)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watcher.start()
        yield
        watcher.stop()
        view.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS)
    app.add_middleware(_Protected)
    app.get("/")(view.page)
    app.get("/assets/{name}")(view.file)
    app.get("/stream")(view.stream)
    app.get("/runs/{key}/questions/{place}")(view.question)
    app.get("/runs/{key}/settings")(view.settings)
    app.get("/runs/{key}/curves")(view.curves)
    return app


class _View:
    """What is answered to each address."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._plotter = ThreadPoolExecutor(1, thread_name_prefix="plots")
        # Plots bring in matplotlib and scipy, which takes a second or two: they are loaded beside.
        self._curves = self._plotter.submit(_live_curves, watcher)

    def close(self) -> None:
        """Draw no more."""
        self._plotter.shutdown(wait=False, cancel_futures=True)

    def page(self) -> Response:
        from fttt.report.page import render

        text = render("view.html.j2", folder=str(self._watcher.folder))
        return Response(text, media_type="text/html")

    def file(self, name: str) -> Response:
        from fttt.report.page import asset

        if name not in _ASSETS:
            raise HTTPException(404, "There is no such file.")
        return Response(asset(name), media_type=_ASSETS[name])

    async def stream(self, run: str = "", against: str = "") -> Response:
        stream = RunStream(self._watcher, run, against)
        return StreamingResponse(_events(self._watcher, stream), media_type="text/event-stream")

    def question(self, key: str, place: int) -> Response:
        from fttt.report.page import question_texts

        run = self._find(key)
        if not 0 <= place < len(run.questions):
            raise HTTPException(404, "There is no such question in the run.")
        try:
            return _json(question_texts(run.run, run.texts(place)))
        except (UsageError, KeyError, TypeError) as error:
            raise HTTPException(409, f"The question cannot be read: {error}") from error

    def settings(self, key: str) -> Response:
        from fttt.report.page import settings_text

        return _json(settings_text(self._find(key).run))

    async def curves(self, key: str, against: str = "") -> Response:
        self._find(key)
        made = await asyncio.wrap_future(self._curves)
        loop = asyncio.get_running_loop()
        return _json(await loop.run_in_executor(self._plotter, made.draw, key, against))

    def _find(self, key: str) -> FollowedRun:
        run = self._watcher.runs.get(key)
        if run is None:
            raise HTTPException(404, "There is no such run in the folder any more.")
        return run


class _Protected:
    """Sends our headers with every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def protect(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, protect)


def _live_curves(watcher: Watcher) -> Any:
    from fttt.viewer.live_curves import LiveCurves

    return LiveCurves(watcher)


def _json(value: Any) -> Response:
    # ASCII keeps lone surrogates, which a model may write, as escapes.
    return Response(json.dumps(value, allow_nan=False), media_type="application/json")


async def _events(watcher: Watcher, stream: RunStream) -> AsyncIterator[str]:
    """What is new, as server-sent events, until the page or the service ends."""
    with watcher.watching(*stream.keys):
        while not watcher.stopped:
            for name, value in await asyncio.to_thread(stream.news):
                yield f"event: {name}\ndata: {json.dumps(value, allow_nan=False)}\n\n"
            await asyncio.sleep(_SEND_EVERY)


class _ViewServer(uvicorn.Server):
    """Ends the open streams when it is told to end."""

    watcher: Watcher

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.watcher.stop()
        super().handle_exit(sig, frame)


def serve_view(
    watcher: Watcher, *, port: int, say: Callable[[str], None], open_page: bool = True
) -> None:
    """Serve the page on this machine alone until interrupted.

    Args:
        watcher: the runs.
        port: the port of 127.0.0.1; 0 takes a free one.
        say: is told the page's address.
        open_page: whether to open it in a browser, where there is a screen.

    Raises:
        UsageError: the port is in use or not allowed.
    """
    try:
        listener = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        why = "in use" if error.errno == errno.EADDRINUSE else f"not free ({error.strerror})"
        raise UsageError(
            f"The port {port} of 127.0.0.1 is {why}; choose another --port, or leave it away for "
            "a free one."
        ) from error
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    runs = len(watcher.runs)
    say(
        f"{runs} run{'s' if runs != 1 else ''} of {str(watcher.folder)!r} at {address} "
        "(Ctrl-C ends it)"
    )
    if open_page and _has_screen():
        webbrowser.open(address)  # the socket listens: the page waits until it is served
    server = _ViewServer(
        uvicorn.Config(
            create_view(watcher),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=2,
        )
    )
    server.watcher = watcher
    server.run(sockets=[listener])


def _has_screen() -> bool:
    """Whether a browser would have a window; else one in the terminal would take it over."""
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
