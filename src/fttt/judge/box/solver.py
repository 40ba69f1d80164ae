"""The solver: the process that holds the submission, and nothing worth stealing."""

from __future__ import annotations

import builtins
import json
import os
import socket
import sys
from types import ModuleType
from typing import Any

from .channel import BrokenBorder, Channel
from .peer import OPERATIONS, Peer

__all__ = ["run_solver"]

_STANDARD = sys.stdlib_module_names


class Solver(Peer):
    """Serves the tester from the submission's own namespace."""

    def __init__(self, channel: Channel, namespace: dict[str, Any]) -> None:
        super().__init__(channel)
        self._namespace = namespace

    def kind(self, value: Any) -> str:
        return "iterator" if hasattr(type(value), "__next__") else "object"

    def perform(self, operation: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if operation == "names":
            return {name: self._name(name) for name in args if name in self._namespace}
        return OPERATIONS[operation](target, *args, **kwargs)

    def _name(self, name: str) -> Any:
        """What the submission means by a name: ``(what, value)``."""
        value = self._namespace[name]
        if isinstance(value, ModuleType):
            return ("module", value.__name__)
        module = getattr(value, "__module__", None)
        home = sys.modules.get(module) if isinstance(module, str) else None
        if module in _STANDARD and module != "builtins" and getattr(home, name, None) is value:
            return ("standard", module)
        if isinstance(value, type) and issubclass(value, BaseException):
            known = (c.__name__ for c in value.__mro__ if getattr(builtins, c.__name__, None) is c)
            return ("exception", next(known))
        return ("value", value)


def run_solver(connection: socket.socket, submission: int) -> None:
    """Run the submission (a JSON file descriptor), then serve until the tester is done.

    Never returns: the process ends here, whatever the submission did to this interpreter.
    """
    channel = Channel(connection)
    with os.fdopen(submission, "rb") as file:
        program = json.load(file)
    module = ModuleType("submission")
    # Where dataclasses and typing look up a class's own module.
    sys.modules["submission"] = module
    try:
        code = compile(program["source"], "<submission>", "exec", dont_inherit=True)
        exec(code, module.__dict__)
    except BaseException as error:
        channel.send({"failed": describe(error)})
        os._exit(0)
    channel.send({"loaded": True})
    solver = Solver(channel, module.__dict__)
    try:
        while True:
            solver.serve(channel.receive())
    except BrokenBorder:
        os._exit(0)


def describe(error: BaseException) -> list[str]:
    """An exception as its type's name and its text, however it was made."""
    try:
        text = str(error)
    except BaseException:
        text = "(no text)"
    return [type(error).__name__, text[:1000]]
