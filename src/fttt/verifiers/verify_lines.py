"""Verdicts on JSON lines: a stream of verdicts in the order of the lines."""

from __future__ import annotations

import asyncio
import json
import os
import select
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import IO, Literal

from fttt.errors import UsageError
from fttt.types import Question, Verdict
from fttt.verifiers.verifier import Verifier, verify_completion

__all__ = ["GoldKind", "verify_lines"]

GoldKind = Literal["number", "math", "choice", "code"]
"""The kind of the gold answers: text or numbers, or a judge's problem object."""

_LOOK_SECONDS = 0.2
"""Interval at which the reader of a silent pipe checks for the end."""
_CUT = ("length", "max_tokens")
"""Names of servers for the end of a completion at its length limit."""
_AHEAD = 64
"""Lines that are judged concurrently."""


async def verify_lines(
    verifier: Verifier, kind: GoldKind, lines: IO[bytes], source: str
) -> AsyncIterator[Verdict]:
    """Judge lines ``{"gold", "completion"}``, and close the verifier at the end.

    A line may have a ``finish_reason``, which tells whether the completion was truncated, and a
    ``prompt``, whose repetition is no answer and whose options a choice is from.

    Args:
        verifier: the judge of the completions.
        kind: the kind of the gold answers.
        lines: a file or a pipe.
        source: its name, for an error.

    Raises:
        UsageError: a malformed line, after the verdicts of the lines before it.
        RunError: judging is impossible (the judge is down).
    """
    ended = threading.Event()
    asked = _questions(kind, _arriving(lines, ended), source)
    try:
        async for verdict in _verdicts(verifier, asked):
            yield verdict
    finally:
        ended.set()  # the reading thread must not wait for a writer that waits for this end
        await verifier.close()


async def _verdicts(
    verifier: Verifier, asked: Iterator[tuple[Question, str, bool]]
) -> AsyncIterator[Verdict]:
    """Verdicts in order; the error of a malformed line follows the verdicts of earlier lines."""
    queue: asyncio.Queue[asyncio.Task[Verdict] | UsageError | None] = asyncio.Queue(_AHEAD)

    async def read() -> None:
        try:
            # A thread waits for the next line, which may arrive late, while verdicts are returned.
            while (following := await asyncio.to_thread(next, asked, None)) is not None:
                question, completion, cut = following
                verdict = verify_completion(verifier, question, completion, cut=cut)
                await queue.put(asyncio.create_task(verdict))
            await queue.put(None)
        except UsageError as error:
            await queue.put(error)

    reader = asyncio.create_task(read())
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, UsageError):
                raise item
            yield await item
    finally:
        reader.cancel()


def _arriving(file: IO[bytes], ended: threading.Event) -> Iterator[bytes]:
    """The lines of a file as they arrive, until its end or until ``ended`` is set."""
    try:
        handle = file.fileno()
    except OSError:  # a file in memory
        yield from file
        return
    begun: list[bytes] = []
    while not ended.is_set():
        if not select.select([handle], [], [], _LOOK_SECONDS)[0]:
            continue
        data = os.read(handle, 1 << 16)
        if not data:
            break
        *whole, rest = data.split(b"\n")
        for line in whole:
            yield b"".join((*begun, line))
            begun = []
        begun.append(rest)
    if any(begun):
        yield b"".join(begun)


def _questions(
    kind: GoldKind, lines: Iterable[bytes], source: str
) -> Iterator[tuple[Question, str, bool]]:
    """Questions, completions, and whether they were truncated."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"Line {number} of {source}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where} is no JSON: {error}; correct or remove it.") from None
        if not isinstance(row, dict) or "gold" not in row or "completion" not in row:
            raise UsageError(f'{where} is no JSON object with "gold" and "completion"; add them.')
        gold, completion = row["gold"], row["completion"]
        if not isinstance(completion, str):
            raise UsageError(f"{where} has a completion that is no text: {completion!r:.80}.")
        if kind == "code":
            if not isinstance(gold, dict):
                raise UsageError(
                    f"{where} has a gold that is no problem object; it needs prompt, test and "
                    "entry_point, or inputs and outputs."
                )
        elif isinstance(gold, bool) or not isinstance(gold, str | int | float):
            raise UsageError(f"{where} has a gold that is neither text nor a number: {gold!r:.80}.")
        prompt = row.get("prompt", "")
        if not isinstance(prompt, str):
            raise UsageError(f"{where} has a prompt that is no text: {prompt!r:.80}.")
        reason = row.get("finish_reason")
        if reason is not None and not isinstance(reason, str):
            raise UsageError(
                f"{where} has a finish_reason that is no text: {reason!r:.80}; write "
                '"stop" or "length", or leave it out.'
            )
        yield Question(str(number), prompt, gold), completion, reason in _CUT
