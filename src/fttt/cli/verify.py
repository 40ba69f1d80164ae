"""``fttt verify``: verdicts on JSON lines."""

from __future__ import annotations

import asyncio
import json
import os
import select
import sys
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from fttt.errors import UsageError
from fttt.types import Question, Verdict
from fttt.verifiers.verifier import Verifier, choose_verifier, verify_completion

__all__ = ["Kind", "verify_command"]

_LOOK_SECONDS = 0.2
"""How long an end may wait for a line that does not come."""
_CUT = ("length", "max_tokens")
"""How servers name the end of a completion at its length limit."""
_AHEAD = 64
"""Lines that are judged at once; verdicts come out in the order of the lines."""


class Kind(StrEnum):
    """What the gold answers are."""

    NUMBER = "number"
    MATH = "math"
    CODE = "code"


class MathRule(StrEnum):
    """How answers of mathematics are compared."""

    EQUIVALENCE = "equivalence"
    STRICT = "strict"


class NumberRule(StrEnum):
    """Where numbers are looked for."""

    VALUE = "value"
    STRICT = "strict"


def verify_command(
    kind: Annotated[Kind, typer.Argument(help="What the gold answers are.")],
    file: Annotated[
        Path | None, typer.Argument(help="JSON lines; by default standard input.")
    ] = None,
    math_rule: Annotated[
        MathRule, typer.Option(help="How answers of mathematics are compared.")
    ] = MathRule.EQUIVALENCE,
    number_rule: Annotated[
        NumberRule,
        typer.Option(help='Where numbers are looked for; strict: behind "The final answer is".'),
    ] = NumberRule.VALUE,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds for one comparison of mathematics.", min=0.01)
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="For code: a served judge; else an embedded one.")
    ] = None,
) -> None:
    """Judge lines {"gold", "completion"}; print {"verdict", "extracted", "detail"} for each.

    A line may have a "finish_reason": "length" says that the completion was cut off at its limit.

    The order is that of the lines, and each verdict is printed as soon as those before it are.
    """
    rules = {Kind.MATH: math_rule.value, Kind.NUMBER: number_rule.value}
    choice = f"{kind.value}-strict" if rules.get(kind) == "strict" else kind.value
    verifier = choose_verifier(choice, time_limit=time_limit, judge_url=judge_url)
    with _opened(file) as lines:
        asyncio.run(_verify(verifier, kind, lines, str(file) if file else "standard input"))


def _opened(file: Path | None) -> Any:
    if file is None or str(file) == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return file.open("rb")
    except OSError as error:
        raise UsageError(f"The file {str(file)!r} cannot be read: {error.strerror}.") from None


async def _verify(verifier: Verifier, kind: Kind, lines: IO[bytes], source: str) -> None:
    ended = threading.Event()
    asked = _questions(kind, _arriving(lines, ended), source)
    try:
        async for verdict in _verdicts(verifier, asked):
            line = {
                "verdict": verdict.outcome,
                "extracted": verdict.extracted,
                "detail": verdict.detail,
            }
            typer.echo(json.dumps(line))
    finally:
        ended.set()  # or whoever waits for this end before the next line would wait for ever
        await verifier.close()


async def _verdicts(
    verifier: Verifier, asked: Iterator[tuple[Question, str, bool]]
) -> AsyncIterator[Verdict]:
    """Verdicts in order; a malformed line is raised behind the verdicts of those before it."""
    queue: asyncio.Queue[asyncio.Task[Verdict] | UsageError | None] = asyncio.Queue(_AHEAD)

    async def read() -> None:
        try:
            # A thread waits for the next line, which may come late, while verdicts go out.
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
    """The lines of a file as they come, until there are no more or ``ended`` is set."""
    try:
        handle = file.fileno()
    except OSError:  # it lies in memory
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
    kind: Kind, lines: Iterable[bytes], source: str
) -> Iterator[tuple[Question, str, bool]]:
    """Questions, completions, and whether they were cut off."""
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
        if kind is Kind.CODE:
            if not isinstance(gold, dict):
                raise UsageError(
                    f"{where} has a gold that is no problem object; it needs prompt, test and "
                    "entry_point."
                )
        elif isinstance(gold, bool) or not isinstance(gold, str | int | float):
            raise UsageError(f"{where} has a gold that is neither text nor a number: {gold!r:.80}.")
        reason = row.get("finish_reason")
        if reason is not None and not isinstance(reason, str):
            raise UsageError(
                f"{where} has a finish_reason that is no text: {reason!r:.80}; write "
                '"stop" or "length", or leave it out.'
            )
        yield Question(str(number), "", gold), completion, reason in _CUT
