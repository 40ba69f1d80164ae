"""The solver: the process that holds the submission, and nothing worth stealing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import socket
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, ClassVar

from .channel import Channel, Item
from .peer import Peer
from .remote import OPERATIONS
from .tester import run_here

__all__ = ["run_solver", "serve"]


class Solver(Peer):
    """Serves the tester from the submission's own namespace."""

    parity: ClassVar[int] = 1
    trusting: ClassVar[bool] = True

    def __init__(self, channel: Channel, namespace: dict[str, Any]) -> None:
        super().__init__(channel)
        self._namespace = namespace
        self._shared: dict[str, type] = {}
        self._names: dict[type, str] = {}

    def shared_class(self, kind: type) -> str | None:
        return self._names.get(kind)

    def known_class(self, name: str) -> type:
        return self._shared[name]

    def perform(self, operation: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if operation == "begin":
            return self._begin(*args, **kwargs)
        if operation == "run":
            return self._run(*args, **kwargs)
        return OPERATIONS[operation](target, *args, **kwargs)

    @contextlib.contextmanager
    def within(self, item: Item) -> Iterator[None]:
        """Serve a request with the tests' streams and seed, where they have set any."""
        if not item.around:
            yield
            return
        before = {name: getattr(sys, name) for name in ("stdout", "stderr", "stdin")}
        streams = {name: io.StringIO() for name in ("stdout", "stderr") if item.around.get(name)}
        if "seed" in item.around:
            random.seed(*item.around["seed"])
        try:
            for name, stream in streams.items():
                setattr(sys, name, stream)
            if "stdin" in item.around:
                sys.stdin = item.around["stdin"]
            yield
        finally:
            for name, stream in before.items():
                setattr(sys, name, stream)
            item.printed = {name: stream.getvalue() for name, stream in streams.items()}

    def _begin(
        self, names: list[str], classes: dict[str, list[str] | None], threads: bool
    ) -> dict[str, Any]:
        """Take note of what the tests are like; says what the submission means by some names.

        ``classes`` are those of the prompt; where attributes are named, the submission may have
        continued the class, and then it is its own.
        """
        for name, attributes in classes.items():
            found = self._namespace.get(name)
            if not isinstance(found, type):
                continue
            if attributes is None or set(vars(found)) == set(attributes):
                self._shared[name] = found
                self._names[found] = name
        if threads:
            self.read_on()
        values = {name: self._namespace[name] for name in names if name in self._namespace}
        return {"values": values, "classes": list(self._shared)}

    def _run(self, *asked: Any) -> dict[str, Any]:
        """Run the tests here, for a problem whose tests need both sides in one process."""
        prompt, test, call, names, secret = asked
        return {**run_here(prompt, test, call, names, self._namespace), "secret": secret}


def run_solver(connection: socket.socket, submission: int) -> None:
    """Run the submission (a JSON file descriptor), then serve until the tester is done.

    Never returns: the process ends here, whatever the submission did to this interpreter.
    """
    try:
        with os.fdopen(submission, "rb") as file:
            program = json.load(file)
        serve(Channel(connection), program["source"])
    finally:
        os._exit(0)


def serve(channel: Channel, source: str) -> None:
    """Run a submission once the tester asks for the first time, then serve until it is done."""
    module = ModuleType("submission")
    # Where dataclasses and typing look up a class's own module.
    sys.modules["submission"] = module
    solver = Solver(channel, module.__dict__)
    first = solver.take()  # from here on nothing can be changed that the next box will load
    try:
        code = compile(source, "<submission>", "exec", dont_inherit=True)
        exec(code, module.__dict__)
    except BaseException as error:
        channel.send({"t": 0, "table": [], "failed": describe(error)})
        return
    solver.serve_on(first)


def describe(error: BaseException) -> list[str]:
    """An exception as its type's name and its text, however it was made."""
    try:
        text = str(error)
    except BaseException:
        text = "(no text)"
    return [type(error).__name__, text[:1000]]
