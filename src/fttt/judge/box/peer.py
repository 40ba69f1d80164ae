"""Calls over the border: each side asks the other, and answers while it waits.

A request names an operation, a target and arguments; the answer carries the result or the
exception. Both carry what containers have changed since. Requests belong to threads: a thread that
waits for an answer serves what the other side asks on its behalf, so that callbacks work to any
depth, and each further thread of one side is served by a thread of its own on the other. What is
awaited runs in the other side's event loop.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from .channel import BrokenBorder, Channel, Item, Monitor, NotLoaded
from .identities import Identities
from .remote import waiting
from .replicas import LARGE, Incoming, Outgoing, ReplicaGroup
from .values import Malformed

if TYPE_CHECKING:
    import asyncio
    import concurrent.futures

__all__ = ["Peer", "Refused"]

_CACHED = 16  # groups
_PATIENT = 16  # messages between two looks at whether a large group is still held
_NESTED_ITEMS = 20_000_000  # looked at for changes while calls are under way


class Refused(BaseException):
    """A value that the border cannot carry; no verdict about the submission follows from it."""


def _runs_a_loop() -> bool:
    """Whether this thread runs an event loop.

    ``asyncio`` is imported only where it is used: it would double what each box has to copy.
    """
    events = sys.modules.get("asyncio.events")
    return events is not None and events._get_running_loop() is not None


class _Token:
    """Lives as long as its thread; then the thread that served it may end as well."""

    def __init__(self, number: int, ended: list[int]) -> None:
        self._number, self._ended = number, ended

    def __del__(self) -> None:
        self._ended.append(self._number)


class Peer(Identities):
    """One side of the border. Subclasses say what may cross and what may be done."""

    shows_operands = True
    """Whether operators on the other side's objects may show it plain values of this side."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        self._live: dict[int, ReplicaGroup] = {}
        self._spent = 0
        self._crossings = 0
        self.reading = False
        """Whether values are being rebuilt just now, when nothing can be asked."""
        self.broken: str | None = None
        """Why the border is closed, once it is; no verdict after that can be a pass."""
        self.refused: str | None = None
        """What could not be carried, once there was such a thing."""
        self._process = os.getpid()
        self._lock = _thread.RLock()  # around the tables
        self._sending = _thread.allocate_lock()
        self._out: deque[bytes] = deque()
        self._turn = Monitor()
        self._reading = self._reads_on = False
        self._workers: set[int] = set()
        self._cached: dict[int, None] = {}
        self._boxes: dict[int, deque[Item | None]] = {0: deque()}
        self._asking: dict[int, int] = {}
        self._local = _thread._local()
        self._local.number = 0
        self._next_thread = 2 + self.parity
        self._ended: list[int] = []
        self.concurrent = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waits: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Future[Any]]] = {}
        self._tasks: dict[int, Any] = {}
        self._drivers: dict[int, Any] = {}

    # -------------------------------------------------------------- what subclasses decide

    def perform(self, operation: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Do what the other side asked for."""
        raise NotImplementedError

    def may_swallow(self, error: BaseException | None, trace: Any) -> bool:
        """Whether an ``__exit__`` of the other side may end an exception of this one."""
        return True

    def unsendable(self, error: Exception) -> BaseException:
        """What to raise where a request cannot be written."""
        return error

    def surroundings(self, writer: Any) -> dict[str, Any]:
        """What a request says of the process that it comes from."""
        return {}

    def within(self, item: Item) -> contextlib.AbstractContextManager[None]:
        """Serve a request in the surroundings that it came from."""
        return contextlib.nullcontext()

    def printed(self, texts: dict[str, Any]) -> None:
        """Take what was printed while a request was served."""

    def forget(self, group: ReplicaGroup) -> None:
        super().forget(group)
        self._live.pop(group.root, None)

    # -------------------------------------------------------------- asking

    def ask(
        self, operation: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Have the other side do something; raises what it raised."""
        thread = self._thread()
        in_loop = _runs_a_loop()
        with self._lock:
            groups = self._request(thread, operation, target, args, kwargs, loop=in_loop)
        self._asking[thread] = self._asking.get(thread, 0) + 1
        try:
            self._flush()
            while (item := self._wait(thread)) is not None and item.operation is not None:
                self._serve(item)
        finally:
            self._asking[thread] -= 1
            with self._lock:
                self._release(groups)
        if item is None:
            raise BrokenBorder("an answer to nobody")
        if item.printed:
            self.printed(item.printed)
        if item.error is not None:
            error = item.error
            del item
            raise self.raisable(error, operation, args)
        return item.value

    def _request(
        self,
        thread: int,
        operation: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        **flags: bool,
    ) -> list[ReplicaGroup]:
        """Send a request; the groups that it passes are under way from now on."""
        if self.broken is not None:
            raise BrokenBorder(self.broken)
        if os.getpid() != self._process:
            raise RuntimeError("values of the tests cannot be used from another process")
        message: dict[str, Any] = {"t": thread}
        message.update({name: True for name, value in flags.items() if value})
        writer = Outgoing(self)
        try:
            code = writer.write(target)
            pairs = writer.pairs(kwargs.keys(), kwargs.values())
            message["ask"] = [operation, code, writer.items(list(args)), pairs]
            if around := self.surroundings(writer):
                message["around"] = around
            self._complete(message, writer)
            self._out.append(self._channel.pack(message))
        except (TypeError, ValueError, RecursionError) as error:
            self.undo(writer)
            raise self.unsendable(error) from error
        passed = list(writer.passed.values())
        for group in passed:
            group.fresh = False
            group.active += 1
            self._live[group.root] = group
        return passed

    def _complete(self, message: dict[str, Any], writer: Outgoing) -> None:
        """Add to a message all that has changed in what both sides hold."""
        writer.finish()
        writer.passed = dict(writer.touched)
        self._crossings += 1
        if self._live:
            self._bring_up_to_date(message, writer)
        message["table"] = writer.table
        if self._ended:
            message["ended"] = self._ended[:]
            del self._ended[: len(message["ended"])]
        for root in message.get("gone", ()):
            if root in self.groups:
                self.forget(self.groups[root])

    def _bring_up_to_date(self, message: dict[str, Any], writer: Outgoing) -> None:
        """Write what has changed in all that is kept in step, or under way."""
        for group in list(self._live.values()):
            if group.root in writer.touched:
                continue
            if group.active and group.size >= LARGE:
                self._spent += group.size
                if self._spent > _NESTED_ITEMS:
                    continue
            writer.touch(group)
        writer.finish()
        for group in list(self._live.values()):
            # Its last changes go with it.
            idle = group.kept and not group.active and group.root not in writer.passed
            if idle and self._let_go(group):
                message.setdefault("gone", []).append(group.root)

    def _let_go(self, group: ReplicaGroup) -> bool:
        """Whether this side's program has no hold any more on what is kept in step."""
        if self.concurrent or group.pinned:
            return False
        if group.size >= LARGE and self._crossings % _PATIENT:
            return False
        return not group.held()

    def _release(self, groups: list[ReplicaGroup]) -> None:
        for group in groups:
            group.active -= 1
            if not group.active and not group.kept:
                self._live.pop(group.root, None)

    def _flush(self) -> None:
        """Send what is in the line, in its order; whoever comes first sends all."""
        while self._out:
            with self._sending:
                while self._out:
                    self._channel.write(self._out.popleft())

    # -------------------------------------------------------------- threads

    def _thread(self) -> int:
        try:
            return int(self._local.number)
        except AttributeError:
            with self._lock:
                number = self._next_thread
                self._next_thread += 2
            self._local.number = number
            self._local.token = _Token(number, self._ended)
            return number

    def read_on(self) -> None:
        """Read messages in a thread of its own from now on, for programs that use threads."""
        import threading  # noqa: F401  (which takes the thread that imports it for the main one)

        self.concurrent = True
        with self._turn.lock:
            if self._reading or self._reads_on:
                self._reads_on = True  # whoever reads now starts it
                return
            self._reads_on = self._reading = True
        _thread.start_new_thread(self._read_forever, ())

    def _read_forever(self) -> None:
        try:
            while True:
                self._receive()
        except BaseException as error:
            self._break(error)

    def _break(self, error: BaseException) -> None:
        """Close the border for all threads."""
        with self._turn.lock:
            self.broken = self.broken or str(error) or type(error).__name__
            self._turn.wake_all()
        for loop, future in list(self._waits.values()):
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(future.cancel)

    def _wait(self, thread: int) -> Item | None:
        """The next message for a thread; whoever waits reads for all, one at a time."""
        box = self._boxes.setdefault(thread, deque())
        while True:
            with self._turn.lock:
                while not box and self._reading and self.broken is None:
                    self._turn.wait()
                if box:
                    return box.popleft()
                if self.broken is not None:
                    raise BrokenBorder(self.broken)
                self._reading = True
            try:
                self._receive()
            except BrokenBorder as error:
                self._break(error)
                raise
            finally:
                with self._turn.lock:
                    self._reading = self._reads_on
                    self._turn.wake_all()
                if self._reads_on:
                    _thread.start_new_thread(self._read_forever, ())

    def _receive(self) -> None:
        """Read one message and give it to the thread that it is for."""
        message = self._channel.receive()
        try:
            with self._lock:
                self.reading = True
                try:
                    item = self._read(message)
                finally:
                    self.reading = False
            if item is not None:
                self._deliver(item)
        except MemoryError:
            raise
        except Exception as malformed:
            text = f"an answer that is no plain data ({type(malformed).__name__})"
            raise BrokenBorder(text) from malformed

    def _read(self, message: dict[str, Any]) -> Item | None:
        if "cancel" in message:
            task = self._tasks.pop(message["cancel"], None)
            if task is not None:
                task.cancel()
            return None
        thread = message["t"]
        if type(thread) is not int:
            raise Malformed("a message without a thread")
        item = Item(thread)
        reader = Incoming(self)
        reader.load(message["table"])
        if "ask" in message:
            item.operation, target, args, kwargs = message["ask"]
            item.target, item.args = reader.read(target), reader.items(args)
            item.kwargs = reader.pairs(kwargs)
            item.around = dict(message.get("around", {}))
            for name in {"seed", "stdin"} & set(item.around):
                item.around[name] = reader.read(item.around[name])
            item.wait, item.loop = bool(message.get("wait")), bool(message.get("loop"))
            item.groups = list(reader.touched.values())
            for group in item.groups:
                group.active += 1
                self._live[group.root] = group
        elif "failed" in message:
            item.error = NotLoaded(*map(str, message["failed"]))
        elif "refused" in message:
            self.refused = str(message["refused"])
            item.error = Refused(self.refused)
        elif "error" in message:
            error = reader.read(message["error"])
            if not isinstance(error, BaseException):
                raise Malformed("an error that is none")
            item.error = error
        else:
            item.value = reader.read(message["value"])
        item.printed = message.get("printed", {})
        self._settle(message)
        for number in message.get("ended", ()):
            if number in self._workers:
                self._boxes[number].append(None)
        return item

    def _settle(self, message: dict[str, Any]) -> None:
        """Take note of what the other side still holds."""
        for root in message.get("kept", ()):
            group = self.groups[root]
            group.kept = True
            self._live[root] = group
        for root in message.get("cached", ()):
            group = self.groups[root]
            group.kept = False
            if not group.active:
                self._live.pop(root, None)
        for root in message.get("gone", ()):
            if root in self.groups:
                self.forget(self.groups[root])

    def _deliver(self, item: Item) -> None:
        thread = item.thread
        asking = self._asking.get(thread)
        if item.operation is None:
            if thread in self._waits:
                self._resolve(item)
                return
            if not asking:
                raise Malformed("an answer to nobody")
        elif item.wait:
            self._start_waiting(item)
            return
        elif item.loop and not asking:
            self._event_loop().call_soon_threadsafe(self._serve, item)
            return
        with self._turn.lock:
            if thread and not asking and thread not in self._workers:
                self._workers.add(thread)
                _thread.start_new_thread(self._work, (thread,))
            self._boxes.setdefault(thread, deque()).append(item)
            self._turn.wake_all()

    def _work(self, thread: int) -> None:
        """Serve one thread of the other side, until it ends."""
        self._local.number = thread
        try:
            while (item := self._wait(thread)) is not None:
                self._serve(item)
        except BaseException as error:
            self._break(error)
        finally:
            self._workers.discard(thread)
            self._boxes.pop(thread, None)

    # -------------------------------------------------------------- answering

    def take(self) -> Item | None:
        """Wait for a request of the other side's first thread; raises :class:`BrokenBorder`."""
        return self._wait(0)

    def serve_on(self, item: Item | None = None) -> None:
        """Answer a request that was taken, and all others, until the border is closed."""
        while True:
            if item is not None:
                self._serve(item)
            item = self.take()

    def _serve(self, item: Item) -> None:
        """Answer one request of the other side."""
        before = getattr(self._local, "number", None)
        self._local.number = item.thread
        try:
            operation = str(item.operation)
            if item.around:
                with self.within(item):
                    item.value = self.perform(operation, item.target, item.args, item.kwargs)
            else:
                item.value = self.perform(operation, item.target, item.args, item.kwargs)
        except (BrokenBorder, Refused):
            raise
        except BaseException as error:
            item.error = error
        finally:
            if before is None:
                del self._local.number
            else:
                self._local.number = before
        self._answer(item)

    def _answer(self, item: Item) -> None:
        message: dict[str, Any] = {"t": item.thread}
        if item.printed:
            message["printed"] = item.printed
        with self._lock:
            writer = Outgoing(self)
            try:
                if item.error is None:
                    message["value"] = writer.write(item.value)
                else:
                    message["error"] = self.write_raised(writer, item.error)
                for group in item.groups:
                    if group.root in self.groups:
                        writer.touch(group)
                self._complete(message, writer)
                # From here on only the program itself may hold what it was handed.
                item.target = item.value = item.error = None
                item.args, item.kwargs = [], {}
                self._part(item.groups, writer, message)
                self._out.append(self._channel.pack(message))
            except (BrokenBorder, Refused):
                raise
            except Exception as error:
                self.undo(writer)
                text = f"a value that cannot cross ({type(error).__name__}: {error})"[:500]
                refusal = {"t": item.thread, "refused": text, "table": []}
                self._out.append(self._channel.pack(refusal))
            item.groups = []
        self._flush()

    def _part(self, groups: list[ReplicaGroup], writer: Outgoing, message: dict[str, Any]) -> None:
        """Say which of the containers of a call this side's program still holds."""
        fresh = [group for group in writer.passed.values() if group.fresh]
        for group in groups:
            group.active -= 1
        for root, group in {group.root: group for group in (*groups, *fresh)}.items():
            if group.active or root not in self.groups:
                continue
            created, group.fresh = group.fresh, False
            if group.pinned or self.concurrent or group.held():
                if not group.kept:
                    group.kept = True
                    self._live[root] = group
                    message.setdefault("kept", []).append(root)
            elif group.size >= LARGE and not created:
                group.kept = False
                self._live.pop(root, None)
                message.setdefault("cached", []).append(root)
                self._cached[root] = None
            else:
                message.setdefault("gone", []).append(root)
                self.forget(group)
        while len(self._cached) > _CACHED:
            root = next(iter(self._cached))
            del self._cached[root]
            group_there = self.groups.get(root)
            if group_there is not None and not group_there.active and not group_there.kept:
                message.setdefault("gone", []).append(root)
                self.forget(group_there)

    # -------------------------------------------------------------- what is awaited

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        """The loop in which this side runs what the other one awaits."""
        import asyncio

        loop = self._loop
        if loop is None or loop.is_closed() or not loop.is_running():
            loop = self._loop = asyncio.new_event_loop()
            _thread.start_new_thread(loop.run_forever, ())
            while not loop.is_running():
                time.sleep(0.0005)
        return loop

    async def wait_for(self, operation: str, target: Any, args: tuple[Any, ...]) -> Any:
        """Await what the other side runs in its event loop."""
        import asyncio

        loop = asyncio.get_running_loop()
        if not self.trusting:
            self._loop = loop
        self.read_on()
        future: asyncio.Future[Item] = loop.create_future()
        with self._lock:
            number = self._next_thread
            self._next_thread += 2
            self._waits[number] = (loop, future)
            groups = self._request(number, operation, target, args, {}, wait=True)
        self._flush()
        try:
            item = await future
        except asyncio.CancelledError:
            with self._lock:
                self._out.append(self._channel.pack({"cancel": number}))
            self._flush()
            raise
        finally:
            with self._lock:
                self._waits.pop(number, None)
                self._release(groups)
        if item.error is not None:
            raise self.raisable(item.error, operation, args)
        return item.value

    def _resolve(self, item: Item) -> None:
        loop, future = self._waits[item.thread]

        def resolve() -> None:
            if not future.done():
                future.set_result(item)

        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
            loop.call_soon_threadsafe(resolve)

    def _start_waiting(self, item: Item) -> None:
        import asyncio

        def done(future: concurrent.futures.Future[Any]) -> None:
            self._tasks.pop(item.thread, None)
            if future.cancelled():
                item.error = asyncio.CancelledError()
            elif (error := future.exception()) is not None:
                item.error = error
            else:
                item.value = future.result()
            self._answer(item)

        coroutine = waiting(str(item.operation), item.target, item.args)
        task = asyncio.run_coroutine_threadsafe(coroutine, self._event_loop())
        self._tasks[item.thread] = task
        task.add_done_callback(done)

    def driver(self, value: Any) -> Any:
        """A coroutine of this side that runs one of the other."""
        number = self._numbers[id(value)]
        if number not in self._drivers:
            self._drivers[number] = self.wait_for("await", value, ())
        return self._drivers[number]
