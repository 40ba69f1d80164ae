"""Handing something to whoever waits for it, who may have gone in the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

__all__ = ["handed_over"]

T = TypeVar("T")


async def handed_over(future: asyncio.Future[T], give_back: Callable[[T], None]) -> T:
    """Wait for a future; ``give_back`` takes what it holds where the wait is cancelled.

    A future that is cancelled never holds anything. But a task that is cancelled after its future
    was filled, and before its own next turn, never sees what it was given.
    """
    try:
        return await future
    except asyncio.CancelledError:
        if future.done() and not future.cancelled() and future.exception() is None:
            give_back(future.result())
        raise
