"""The judge as a web service: the published protocol, health, metrics, and a bounded queue.

``fttt judge serve`` serves it; so does any ASGI server, from this module's ``app``::

    uvicorn fttt.judge.service:app --host 0.0.0.0 --port 9999 --workers 8 --limit-concurrency 16

Each process of such a server has a sandbox of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import socket
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from http import HTTPStatus
from typing import Any, ClassVar

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from fttt.errors import RunError, UsageError
from fttt.judge.problem import BadRequest, Judgement, Submission
from fttt.judge.sandbox import ExhaustedError, Sandbox, default_workers

__all__ = ["BOXES", "MAX_BODY", "app", "create_app", "serve"]

BOXES = "FTTT_JUDGE_BOXES"
"""The variable that says how many boxes each process of a server of ``app`` runs at once."""

_log = logging.getLogger("uvicorn.error")  # where uvicorn itself says what it does

MAX_BODY = 32 * 1024 * 1024
"""The most bytes that a request may have."""

_UPLOAD_SECONDS, _UPLOAD_RATE = 10.0, 1_000_000
"""A request has to arrive in so many seconds, and one more for so many bytes."""
_UPLOADS = 8 * MAX_BODY
"""The most bytes of requests that have not arrived as a whole."""
_PROBE_SECONDS = 0.2
_TCP_CLOSE = 7  # TCP_INFO's state of a connection that was reset
_ACCEPTED = 16  # connections that are taken at once, before the first of them is looked at
_PER_BOX, _SPARE = 12, 16  # descriptors of a running box, and for all else that comes and goes
_FEWEST = 8  # connections below which serving makes no sense
_IDLE_SECONDS = 15.0
"""A connection is closed when it has had no whole request under way for so long."""


class _Metrics:
    """What Prometheus reads, in a registry of this service's own."""

    def __init__(self, sandbox: Sandbox, queue: _Queue) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.verdicts = Counter("fttt_judge_verdicts", "Verdicts given", ["status"], registry=own)
        self.refused = Counter("fttt_judge_refused", "Requests refused", ["reason"], registry=own)
        self.seconds = Histogram("fttt_judge_seconds", "Seconds in a box", registry=own)
        requests = Gauge("fttt_judge_requests", "Requests that run or wait", registry=own)
        requests.set_function(lambda: queue.length)
        boxes = Gauge("fttt_judge_boxes", "Boxes that run", registry=own)
        boxes.set_function(lambda: sandbox.busy)


class _Queue:
    """Counts the requests that run or wait."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.length = 0
        self.arriving = 0
        """Bytes of requests that hold no place yet."""

    def refuse_if_full(self) -> None:
        """Raise :class:`_Refused` where all places are taken."""
        if self.length >= self._limit:
            raise _Refused(503, "queue", "the judge's queue is full; try again in a second")

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place while a request is served; raises :class:`_Refused` where all are taken."""
        self.refuse_if_full()
        self.length += 1
        try:
            yield
        finally:
            self.length -= 1


class _Refused(Exception):  # noqa: N818
    """A request that is answered without a verdict."""

    def __init__(self, code: int, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.reason, self.detail = code, reason, detail

    @property
    def headers(self) -> dict[str, str]:
        """A place comes free as soon as a box ends; a broken sandbox does not heal so soon."""
        if self.code == 408:
            return {"Connection": "close"}
        return {"Retry-After": "1"} if self.code == 503 and self.reason != "sandbox" else {}


def _raw(refused: _Refused) -> bytes:
    """A whole answer for a connection that the web server does not get to see."""
    body = json.dumps(Judgement("error", refused.detail).to_json())
    fields = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    fields |= {"Connection": "close", **refused.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    phrase = HTTPStatus(refused.code).phrase
    return f"HTTP/1.1 {refused.code} {phrase}\r\n{head}\r\n{body}".encode("ascii")


_NO_DESCRIPTORS = _raw(
    _Refused(503, "exhausted", "the judge has no descriptors left; try again in a second")
)


def create_app(sandbox: Sandbox, *, limit_concurrency: int = 256) -> FastAPI:
    """The service around a sandbox.

    ``limit_concurrency`` requests run or wait at a time; more are answered 503 with
    ``Retry-After``. The sandbox starts and ends with the service.
    """
    queue = _Queue(limit_concurrency)
    metrics = _Metrics(sandbox, queue)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await sandbox.start()
        yield
        await sandbox.close()

    app = FastAPI(title="fttt code judge", lifespan=lifespan, openapi_url=None)

    @app.post("/")
    async def judge(request: Request) -> Response:
        try:
            queue.refuse_if_full()
            submission = await _read(request, queue)
            with queue.place():
                judgement = await _judge_while_connected(sandbox, submission, request)
        except _Refused as refused:
            metrics.refused.labels(refused.reason).inc()
            body = Judgement("error", refused.detail).to_json()
            return JSONResponse(body, refused.code, refused.headers)
        metrics.verdicts.labels(judgement.status).inc()
        metrics.seconds.observe(judgement.seconds)
        return JSONResponse(judgement.to_json())

    @app.get("/healthz")
    async def healthz() -> Response:
        try:
            report = await sandbox.start()
        except RunError as error:
            return JSONResponse({"status": "down", "detail": str(error)}, 503)
        found = {"layers": report.to_json(), "counting": dict(report.counting)}
        return JSONResponse({"status": "ok", **found})

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def _read(request: Request, queue: _Queue) -> Submission:
    """The request's submission; raises :class:`_Refused` where it cannot be read."""
    body = bytearray()
    loop = asyncio.get_running_loop()
    begin = loop.time()
    try:
        async with asyncio.timeout(_UPLOAD_SECONDS) as patience:
            async for part in request.stream():
                body += part
                queue.arriving += len(part)
                if len(body) > MAX_BODY:
                    raise _Refused(413, "size", f"the request has more than {MAX_BODY} bytes")
                if queue.arriving > _UPLOADS:
                    raise _Refused(503, "uploads", "too many large requests; try again in a second")
                patience.reschedule(begin + _UPLOAD_SECONDS + len(body) / _UPLOAD_RATE)
    except TimeoutError:
        raise _Refused(
            408,
            "slow",
            f"only {len(body)} bytes of the request came in {loop.time() - begin:.0f} seconds; "
            f"{_UPLOAD_SECONDS:.0f} seconds are given, and one more for each MB",
        ) from None
    except ClientDisconnect:
        raise _Refused(400, "gone", "the client went away") from None
    finally:
        queue.arriving -= len(body)
    try:
        return Submission.from_json(json.loads(body))
    except BadRequest as error:
        raise _Refused(422, "fields", str(error)) from None
    except (ValueError, RecursionError) as error:
        raise _Refused(400, "json", f"the request is not JSON: {error}") from None


async def _judge_while_connected(
    sandbox: Sandbox, submission: Submission, request: Request
) -> Judgement:
    """Judge, and stop where the client goes away; the box is killed then."""
    judging = asyncio.ensure_future(sandbox.judge(submission))
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({judging, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not judging.done():
            raise _Refused(400, "gone", "the client went away")
        return judging.result()
    except ExhaustedError as error:
        raise _Refused(503, "exhausted", str(error)) from error
    except RunError as error:
        raise _Refused(503, "sandbox", str(error)) from error
    finally:
        for task in (judging, leaving):
            task.cancel()
        await asyncio.gather(judging, leaving, return_exceptions=True)


class _Connection(asyncio.Protocol):
    """A connection to the service: uvicorn's, with an end to those that only hold a descriptor.

    A client that has closed only its own direction gets its answer. One that has closed both looks
    the same until something is sent to it, so it is sent an interim response, which every client
    of HTTP/1.1 passes over; a closed one answers that with a reset.
    """

    open: ClassVar[set[_Connection]] = set()
    most: ClassVar[int] = sys.maxsize
    """As many as there are descriptors for; more are answered 503."""

    def __init__(self, **options: Any) -> None:
        self._inner: Any = AutoHTTPProtocol(**options)
        self._loop = asyncio.get_running_loop()
        self._active = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False

    @property
    def _under_way(self) -> bool:
        """Whether a request is being read or answered."""
        cycle = self._inner.cycle
        return cycle is not None and not cycle.response_complete

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._refused = len(self.open) >= self.most
        self.open.add(self)
        if self._refused:
            # Closed at once, it could be reset before the client has read the answer.
            transport.write(_NO_DESCRIPTORS)
            transport.write_eof()
            self._timer = self._loop.call_later(1.0, transport.abort)
        else:
            self._inner.connection_made(transport)
            self._timer = self._loop.call_later(_IDLE_SECONDS, self._close_idle)

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            self._inner.data_received(data)

    def eof_received(self) -> bool:
        if self._refused or not self._under_way or self._inner.cycle.more_body:
            return False
        if self._inner.scope["http_version"] == "1.1":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._loop.call_later(_PROBE_SECONDS, self._close_reset)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.open.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if not self._refused:
            self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def _close_idle(self) -> None:
        now = self._loop.time()
        if self._under_way:
            self._active = now
        if now - self._active >= _IDLE_SECONDS:
            self._transport.close()
        else:
            left = self._active + _IDLE_SECONDS - now
            self._timer = self._loop.call_later(max(left, 1.0), self._close_idle)

    def _close_reset(self) -> None:
        """After the end of what a client sends, look whether it has its answer or is gone."""
        if self._transport.is_closing():
            return
        if not self._under_way:
            self._transport.close()
            return
        connection = self._transport.get_extra_info("socket")
        if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
            self._transport.abort()
        else:
            self._loop.call_later(_PROBE_SECONDS, self._close_reset)


class _Server(uvicorn.Server):
    """uvicorn's server, over a listening socket whose backlog is longer than one round of accepts.

    What is accepted in one round is open before the first of it can be refused for want of
    descriptors.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(1024)


def _room(workers: int) -> int:
    """How many connections the limit on open files leaves room for.

    The limit is raised as far as this process may. Raises :class:`fttt.errors.RunError` where
    there is no room for a few.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    used = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    kept = used + _PER_BOX * workers + _ACCEPTED + _SPARE
    room = (sys.maxsize if hard == resource.RLIM_INFINITY else hard) - kept
    if room < _FEWEST:
        raise RunError(
            f"the judge cannot serve with {hard} open files, of which {kept} are kept for "
            f"{workers} boxes and its own use; allow at least {kept + _FEWEST} (ulimit -n), or "
            "start it with fewer --workers"
        )
    return room


def serve(
    sandbox: Sandbox,
    *,
    host: str,
    port: int,
    limit_concurrency: int,
    say: Callable[[str], None],
) -> None:
    """Serve until interrupted; ``say`` is told which layers hold, and where the service listens.

    Raises :class:`fttt.errors.RunError` where the sandbox cannot start, the port is taken, or too
    few files may be open.
    """
    _Connection.most = _room(sandbox.workers)
    asyncio.run(_serve(sandbox, host, port, limit_concurrency, say))


async def _serve(
    sandbox: Sandbox, host: str, port: int, limit_concurrency: int, say: Callable[[str], None]
) -> None:
    report = await sandbox.start()
    for line in report.lines():
        say(line)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        await sandbox.close()
        raise RunError(
            f"the judge cannot listen on {host}:{port} ({error}); choose another --port"
        ) from error
    # Accepted connections inherit this; asyncio sets it only on sockets that name their protocol,
    # and without it each answer waits 40 ms for the client's acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    say(
        f"judging at http://{host}:{listener.getsockname()[1]} with {sandbox.workers} boxes at once"
    )
    config = uvicorn.Config(
        create_app(sandbox, limit_concurrency=limit_concurrency),
        http=_Connection,
        backlog=_ACCEPTED,
        log_level="warning",
        access_log=False,
    )
    await _Server(config).serve(sockets=[listener])


def _answer_at_once() -> None:
    """Have the connections of the socket that this process was handed send small packets at once.

    A server of several processes hands each a socket that was made without this; every answer on
    a connection that stays open would wait 40 ms for the client's acknowledgement. The first
    process to start finds it bound but not listening yet.
    """
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):  # no TCP, or opened by this loop and closed by now
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as found:
                    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _Application:
    """The service for a server that imports it: it starts and ends with that server's process."""

    def __init__(self) -> None:
        self._app: FastAPI | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._app is None:
            raise RunError("the server has to run the lifespan of fttt.judge.service:app")
        else:
            await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            boxes = os.environ.get(BOXES, str(default_workers()))
            if not boxes.isdigit() or int(boxes) < 1:
                raise UsageError(f"{BOXES} is {boxes!r}; it is a number of boxes, from 1 up")
            sandbox = Sandbox(workers=int(boxes))
            _room(sandbox.workers)
            for line in (await sandbox.start()).lines():
                _log.info(line)
        except (RunError, UsageError) as error:
            await send({"type": "lifespan.startup.failed", "message": f"error: {error}"})
            return
        self._app = create_app(sandbox)
        _answer_at_once()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await sandbox.close()
        await send({"type": "lifespan.shutdown.complete"})


app = _Application()
