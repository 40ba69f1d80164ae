"""The judge as a web service: the published protocol, health, metrics, and a bounded queue."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect

from fttt.errors import RunError
from fttt.judge.problem import BadRequest, Judgement, Submission
from fttt.judge.sandbox import Sandbox

__all__ = ["MAX_BODY", "create_app", "serve"]

MAX_BODY = 32 * 1024 * 1024
"""The most bytes that a request may have."""

_RETRY_AFTER = "1"  # seconds; a place comes free as soon as any box ends


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

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place while a request is served; raises :class:`_Refused` where all are taken."""
        if self.length >= self._limit:
            raise _Refused(503, "queue", "the judge's queue is full; try again in a second")
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
            with queue.place():
                submission = await _read(request)
                judgement = await _judge_while_connected(sandbox, submission, request)
        except _Refused as refused:
            metrics.refused.labels(refused.reason).inc()
            headers = {"Retry-After": _RETRY_AFTER} if refused.code == 503 else None
            body = Judgement("error", refused.detail).to_json()
            return JSONResponse(body, refused.code, headers)
        metrics.verdicts.labels(judgement.status).inc()
        metrics.seconds.observe(judgement.seconds)
        return JSONResponse(judgement.to_json())

    @app.get("/healthz")
    async def healthz() -> Response:
        try:
            report = await sandbox.start()
        except RunError as error:
            return JSONResponse({"status": "down", "detail": str(error)}, 503)
        return JSONResponse({"status": "ok", "layers": report.to_json()})

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def _read(request: Request) -> Submission:
    """The request's submission; raises :class:`_Refused` where it cannot be read."""
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                raise _Refused(413, "size", f"the request has more than {MAX_BODY} bytes")
    except ClientDisconnect:
        raise _Refused(400, "gone", "the client went away") from None
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
    except RunError as error:
        raise _Refused(503, "sandbox", str(error)) from error
    finally:
        for task in (judging, leaving):
            task.cancel()
        await asyncio.gather(judging, leaving, return_exceptions=True)


def serve(
    sandbox: Sandbox,
    *,
    host: str,
    port: int,
    limit_concurrency: int,
    say: Callable[[str], None],
) -> None:
    """Serve until interrupted; ``say`` is told which layers hold, and where the service listens.

    Raises :class:`fttt.errors.RunError` where the sandbox cannot start or the port is taken.
    """
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
    app = create_app(sandbox, limit_concurrency=limit_concurrency)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    await server.serve(sockets=[listener])
