"""Messages between the tester and the solver: JSON with a length in front, over a socket."""

from __future__ import annotations

import _thread
import json
import socket
import struct
from typing import Any

__all__ = ["MAX_MESSAGE", "BrokenBorder", "Channel", "Item", "Monitor", "NotLoaded"]

MAX_MESSAGE = 64 * 1024 * 1024
"""The most bytes that one message may have."""

_LENGTH = struct.Struct(">I")
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
_DECODE = json.JSONDecoder().raw_decode
_PART = 1 << 16
"""The bytes to ask the socket for, at least: a message and its length then come at once."""


class BrokenBorder(BaseException):
    """The other side is gone, or said something that the protocol does not know."""


class NotLoaded(BaseException):
    """The submission did not even load: its exception's type and text."""


class Channel:
    """One end of the border: sends and receives one JSON value at a time.

    JSON is read by the standard library's parser, which builds plain data only; ``pickle`` or
    ``marshal`` would let the other side build whatever it likes.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""
        """What has come of the next message."""

    @staticmethod
    def pack(message: dict[str, Any]) -> bytes:
        """A message as it is sent; raises :class:`ValueError` where it is too large."""
        body = _ENCODE(message).encode("ascii")
        if len(body) > MAX_MESSAGE:
            raise ValueError(f"a value of {len(body)} bytes; at most {MAX_MESSAGE} may cross")
        return _LENGTH.pack(len(body)) + body

    def write(self, packed: bytes) -> None:
        """Send a packed message; raises :class:`BrokenBorder` where the other side is gone."""
        try:
            self._connection.sendall(packed)
        except OSError as error:
            raise BrokenBorder("the other process ended") from error

    def send(self, message: dict[str, Any]) -> None:
        """Send one message."""
        self.write(self.pack(message))

    def receive(self) -> dict[str, Any]:
        """Wait for one message; raises :class:`BrokenBorder` where none can come."""
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if length > MAX_MESSAGE:
            raise BrokenBorder(f"a value of {length} bytes; at most {MAX_MESSAGE} may cross")
        try:
            text = self._read(length).decode("ascii")
            message, end = _DECODE(text)
            if end != len(text):
                raise ValueError("more than one value")
        except (ValueError, RecursionError) as error:
            raise BrokenBorder(f"a message that is not JSON: {type(error).__name__}") from error
        if type(message) is not dict:
            raise BrokenBorder("a message that is not an object")
        return message

    def _read(self, length: int) -> bytes:
        parts, missing = [self._rest], length - len(self._rest)
        while missing > 0:
            try:
                part = self._connection.recv(max(missing, _PART))
            except OSError as error:
                raise BrokenBorder("the other process ended") from error
            if not part:
                raise BrokenBorder("the other process ended")
            parts.append(part)
            missing -= len(part)
        found = b"".join(parts)
        self._rest = found[length:]
        return found[:length]


class Monitor:
    """A lock, and threads that wait for news: what ``threading.Condition`` is.

    Few programs import ``threading``, and every box would copy it.
    """

    def __init__(self) -> None:
        self.lock = _thread.allocate_lock()
        self._sleepers: list[_thread.LockType] = []

    def wait(self) -> None:
        """Give up the lock until there is news."""
        sleeper = _thread.allocate_lock()
        sleeper.acquire()
        self._sleepers.append(sleeper)
        self.lock.release()
        try:
            sleeper.acquire()
        finally:
            self.lock.acquire()

    def wake_all(self) -> None:
        """Tell all who wait, while holding the lock."""
        while self._sleepers:
            self._sleepers.pop().release()


class Item:
    """A message whose values have been read: a request, or the answer to one."""

    __slots__ = (
        "args", "around", "error", "groups", "kwargs", "loop", "operation", "printed", "target",
        "thread", "value", "wait",
    )  # fmt: skip

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self.operation: str | None = None
        """What is asked; nothing where this is an answer."""
        self.target: Any = None
        self.args: list[Any] = []
        self.kwargs: dict[str, Any] = {}
        self.wait = self.loop = False
        self.around: dict[str, Any] = {}
        self.printed: dict[str, Any] = {}
        self.value: Any = None
        self.error: BaseException | None = None
        self.groups: list[Any] = []
        """The containers that it passes."""
