"""Random numbers of fresh adapters, drawn in threads while the engine runs its passes.

A low-rank adapter of an 8B model begins with a million numbers of a sequential generator, several
milliseconds of one processor. Hundreds of questions that begin together would hold up the engine's
loop for seconds; a draw releases Python's lock, so that threads take them off it.

The threads never call CUDA, whose calls from other threads would spoil a graph's capture: rows are
pinned, uploaded and taken back by the loop's own thread.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Drawing", "DrawnRow", "RowDraws"]

_MOST_THREADS = 8
_ROW_BYTES = 2**28
"""Of all rows that are in memory at once, unless two are larger."""
_MOST_ROWS = 64
"""So many that a turn of the engine finds enough drawn for a prefill pass."""
_LOOK_SECONDS = 0.002
"""Between two looks whether a row has reached the GPU, where all are on their way."""


@dataclass(eq=False, slots=True)
class DrawnRow:
    """Memory for the numbers of one adapter."""

    numbers: Tensor
    """``[P]``, float32; pinned where they go to a GPU."""
    uploaded: torch.cuda.Event | None = None
    """What tells that the numbers are on the GPU, once they are on their way."""

    @property
    def free(self) -> bool:
        """Whether other numbers may be drawn into it."""
        return self.uploaded is None or self.uploaded.query()


class Drawing:
    """A row that was asked for."""

    def __init__(self, draws: RowDraws, seed: int) -> None:
        self.seed = seed
        self.future: asyncio.Future[DrawnRow] = asyncio.get_running_loop().create_future()
        self._draws = draws

    async def row(self) -> DrawnRow:
        """Wait for it; whoever reads it gives it back by :meth:`RowDraws.give`.

        Raises:
            Exception: what :meth:`RowDraws.fail` was given before it was drawn.
        """
        try:
            return await self.future
        except asyncio.CancelledError:
            self.drop()
            raise

    def drop(self) -> None:
        """Need it no more."""
        if not self.future.done():
            self.future.cancel()  # whose row is free when its thread is done
        elif not self.future.cancelled() and self.future.exception() is None:
            self._draws.give(self.future.result())


class RowDraws:
    """Draws rows in the order of their asking; few of them are in memory at once."""

    def __init__(
        self, draw: Callable[[int, Tensor], None], size: int, slots: int, device: torch.device
    ) -> None:
        """Prepare to draw; threads and memory are taken when they are needed.

        Args:
            draw: fills a row by a seed, and knows nothing of the bank, whose memory it would hold.
            size: numbers of a row.
            slots: of the bank, which never needs more rows.
            device: where the rows go.
        """
        self._draw, self._size, self._device = draw, size, device
        self._most = max(2, min(slots, _MOST_ROWS, _ROW_BYTES // (4 * size)))
        self._made = 0
        self._free: deque[DrawnRow] = deque()
        self._waiting: deque[Drawing] = deque()
        self._unanswered: set[Drawing] = set()
        self._looking = False
        threads = max(1, min(_MOST_THREADS, (os.cpu_count() or 1) // 2))
        self._threads = ThreadPoolExecutor(threads, "fttt-draw")

    def ask(self, seed: int) -> Drawing:
        """Ask for a row of a seed, which is drawn as soon as there is memory for it."""
        drawing = Drawing(self, seed)
        self._waiting.append(drawing)
        self._unanswered.add(drawing)
        drawing.future.add_done_callback(lambda _: self._unanswered.discard(drawing))
        self._begin()
        return drawing

    def give(self, row: DrawnRow) -> None:
        """Take a row back whose numbers were read, or are on their way to the GPU."""
        self._free.append(row)
        self._begin()

    def upload(self, row: DrawnRow, target: Tensor) -> None:
        """Copy a row's numbers, to a GPU behind what is already queued there, and take it back."""
        target.copy_(row.numbers, non_blocking=True)
        if self._device.type == "cuda":
            row.uploaded = torch.cuda.Event()
            row.uploaded.record(torch.cuda.current_stream(self._device))
        self.give(row)

    def fail(self, error: BaseException) -> None:
        """Answer all that was asked for with an error."""
        self._waiting.clear()
        for drawing in list(self._unanswered):
            if not drawing.future.done():
                drawing.future.set_exception(error)

    def close(self) -> None:
        """End the threads, each after its present row."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _begin(self) -> None:
        """Draw what waits, as far as there is memory."""
        while self._waiting:
            if self._waiting[0].future.done():  # nobody needs it any more
                self._waiting.popleft()
                continue
            row = self._take()
            if row is None:
                return
            self._threads.submit(self._run, self._waiting.popleft(), row)

    def _take(self) -> DrawnRow | None:
        if self._free and self._free[0].free:
            return self._free.popleft()
        if self._made < self._most:
            self._made += 1
            pinned = self._device.type == "cuda"
            return DrawnRow(torch.empty(self._size, dtype=torch.float32, pin_memory=pinned))
        if self._free and not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)
        return None

    def _look(self) -> None:
        self._looking = False
        self._begin()

    def _run(self, drawing: Drawing, row: DrawnRow) -> None:
        """Draw a row, in a thread."""
        error = None
        try:
            self._draw(drawing.seed, row.numbers)
        except Exception as failure:
            error = failure
        try:
            loop = drawing.future.get_loop()
            loop.call_soon_threadsafe(self._answer, drawing, row, error)
        except RuntimeError:  # the loop was closed meanwhile
            self._free.append(row)

    def _answer(self, drawing: Drawing, row: DrawnRow, error: Exception | None) -> None:
        if not drawing.future.done() and error is None:
            drawing.future.set_result(row)
            return
        if not drawing.future.done():
            assert error is not None
            drawing.future.set_exception(error)
        self.give(row)
