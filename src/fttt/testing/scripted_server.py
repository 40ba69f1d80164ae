"""An OpenAI-compatible server that follows a script, errors included."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Reply", "ScriptedServer", "completion", "refusal"]


@dataclass(frozen=True)
class Reply:
    """What a scripted server does with a request: a status and a body, or worse."""

    body: Any = ""
    """JSON, or bytes that are none."""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    torn: bool = False
    """Whether the connection ends in the middle of the body."""
    seconds: float = 0.0
    """Before anything is said."""


def completion(*texts: str, usage: bool = True, **choice: Any) -> dict[str, Any]:
    """A chat completion of these texts, ten tokens each."""
    choices = [
        {"index": n, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        for n, text in enumerate(texts)
    ]
    counted = {"prompt_tokens": 7, "completion_tokens": 10 * len(texts), "total_tokens": 0}
    return {
        "id": "c", "object": "chat.completion", "created": 1, "model": "tiny",
        "choices": [{**one, **choice} for one in choices],
        **({"usage": counted} if usage else {}),
    }  # fmt: skip


def refusal(status: int, message: str, *headers: tuple[str, str], **more: Any) -> Reply:
    """An error as OpenAI-compatible servers write it."""
    return Reply({"error": {"message": message, "type": "t", **more}}, status, headers)


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong, unless the client left."""
        if not isinstance(sys.exception(), OSError | ValueError):  # or closed what is written to
            super().handle_error(request, client_address)


class ScriptedServer:
    """An OpenAI-compatible server on this machine that answers as its script says."""

    def __init__(self, script: Callable[[dict[str, Any]], Reply | dict[str, Any]]) -> None:
        self.script = script
        self.models: Any = {"object": "list", "data": [{"id": "tiny", "object": "model"}]}
        """What it lists, or a reply."""
        self.asked: list[dict[str, Any]] = []
        """The bodies of requests for chat completions."""
        self.keys: list[str] = []
        """The authorisation of each."""
        self.begun = threading.Event()
        """Set by the first of them."""
        self.most = 0
        """Requests that it had at once."""
        self._now = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._http = _QuietServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """End, in the middle of whatever it waits for."""
        self._stopped.set()
        self._http.shutdown()
        self._http.server_close()

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - a handler has a self
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.answer(server.models)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.asked.append(body)
                    server.keys.append(self.headers["Authorization"])
                    server._now += 1
                    server.most = max(server.most, server._now)
                server.begun.set()
                try:
                    self.answer(server.script(body))
                finally:
                    with server._lock:
                        server._now -= 1

            def answer(self, said: Any) -> None:
                reply = said if isinstance(said, Reply) else Reply(said)
                server._stopped.wait(reply.seconds)
                data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body)
                data = data if isinstance(data, bytes) else data.encode()
                with suppress(OSError):  # nobody waits any more
                    self.send_response(reply.status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    for header in reply.headers:
                        self.send_header(*header)
                    self.end_headers()
                    self.wfile.write(data[: len(data) // 2] if reply.torn else data)
                self.close_connection = reply.torn

        return Handler
