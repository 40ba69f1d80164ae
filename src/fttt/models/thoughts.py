"""How a chat template marks a thought, found by rendering it.

Two conventions are in use. Tags stand around the thought, ``<think>`` and ``</think>`` (DeepSeek
R1, Qwen 3 and most others); the template may open the first one in the header of an answer, or open
and close it there, so that nothing is thought. Or the answer itself is opened by a marker, that of
a channel, and whatever comes before it is no answer (the harmony format of gpt-oss).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Render", "ThoughtFormat", "find_thoughts"]

Render = Callable[[list[dict[str, str]], bool], str]
"""Renders messages, with or without the header of the next answer."""

_QUESTION, _THOUGHT, _ANSWER, _LATER = "QXASKEDXQ", "QXTHOUGHTXQ", "QXANSWERXQ", "QXLATERXQ"
_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Where a message of a template holds its thought."""
_NAME = r"[\w:]*(?:think|thought|reason)\w*"
_TAG = re.compile(rf"<{_NAME}>|\[{_NAME}\]|◁{_NAME}▷", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ThoughtFormat:
    """The markers of a thought, as text of which special tokens are a part."""

    opening: str
    """What the model writes before a thought, without the space around it."""
    mark: str
    """With what a thought has ended and the answer begins."""
    closing: str
    """All that stands between a thought and its answer."""
    opened: bool
    """Whether the header of an answer has opened the thought already."""
    closed: bool
    """Whether it has closed it, opened or not: nothing is thought."""
    always: bool
    """Whether every answer begins with ``mark``, so that what lacks it holds no answer."""
    keeps: bool
    """Whether the template shows the thoughts of earlier turns."""

    def without_marks(self, text: str) -> str:
        """The thought in what was written up to and with ``mark``."""
        before, opening, after = text.partition(self.opening)
        if opening and not before.strip():
            text = after
        return text.strip().removesuffix(self.closing.strip()).removesuffix(self.mark).strip()


def find_thoughts(
    render: Render, past: str, header: str, sources: Sequence[str]
) -> ThoughtFormat | None:
    """The format of a template's thoughts; ``None`` where it has none.

    Args:
        render: the template.
        past: what stands between a question and an earlier answer.
        header: what stands between a question and the answer that is to be written.
        sources: the template's text and the special tokens, in which tags are looked for.
    """
    begins = past if header.startswith(past) else header
    more = past.removeprefix(header).strip() if past.startswith(header) else ""
    for opening, closing, field in _candidates(render, begins, sources):
        always = "" if opening in more else more  # some show that an earlier thought is empty
        mark = always or closing.strip()
        last_open, last_mark = header.rfind(opening), header.rfind(mark)
        return ThoughtFormat(
            opening=opening,
            mark=mark,
            closing=closing,
            opened=last_open > last_mark,
            closed=last_mark > last_open,
            always=bool(always),
            keeps=_keeps(render, opening, closing, field),
        )
    return None


def _candidates(
    render: Render, begins: str, sources: Sequence[str]
) -> Iterator[tuple[str, str, str | None]]:
    """Opening, closing and the message's field, the surest first."""
    for field in _FIELDS:
        said = {"role": "assistant", "content": _ANSWER, field: _THOUGHT}
        found = _tried(render, [{"role": "user", "content": _QUESTION}, said], header=False)
        start, thought, rest = found.rpartition(_QUESTION)[2].partition(_THOUGHT)
        closing, answer, _ = rest.partition(_ANSWER)
        tags = _TAG.findall(start)
        opening = tags[-1] if tags else start.removeprefix(begins).strip()
        if thought and answer and opening and closing.strip():
            yield opening, closing, field
    for source in sources:
        for tag in _TAG.findall(source):
            end = f"{tag[0]}/{tag[1:]}"
            if any(end in other for other in sources):
                yield tag, f"\n{end}\n\n", None


def _keeps(render: Render, opening: str, closing: str, field: str | None) -> bool:
    """Whether the thought of an earlier turn is shown."""
    whole = f"{opening}\n{_THOUGHT}{closing}{_ANSWER}"
    said: Mapping[str, str] = (
        {"content": whole} if field is None else {"content": _ANSWER, field: _THOUGHT}
    )
    messages = [
        {"role": "user", "content": _QUESTION},
        {"role": "assistant", **said},
        {"role": "user", "content": _LATER},
    ]
    return _THOUGHT in _tried(render, messages, header=True)


def _tried(render: Render, messages: list[dict[str, Any]], *, header: bool) -> str:
    """What the template writes; nothing where it refuses such messages, whatever it raises."""
    try:
        return render(messages, header)
    except Exception:
        return ""
