"""What a reasoning model says once it has thought."""

from __future__ import annotations

import re

__all__ = ["after_thought"]

_NAMES = r"(?:(?:seed:)?think(?:ing)?|thoughts?|reason(?:ing)?|scratch_?pad|reflection)"
_OPENED = re.compile(
    rf"(?<![\"'`(])(?:<{_NAMES}>|<\|begin_of_thought\|>|\[THINK\]|◁think▷)"
    r"(?![\"')]|`(?!``)|\s*(?:tags?|blocks?|tokens?|elements?|sections?)\b|\s+(?:and|or)\s+\W*<)",
    re.IGNORECASE,
)
_CLOSED = re.compile(
    rf"(?:</{_NAMES}>|<\|end_of_thought\|>|\[/THINK\]|◁/think▷)"
    r"(?![\"']|`(?!``))",  # a quoted one is spoken of
    re.IGNORECASE,
)


def after_thought(completion: str) -> str | None:
    """The text behind the last thought; ``None`` where a thought is not closed.

    A template may open the thought in the prompt, so a closing tag alone ends one too. A tag
    that is quoted, or called one ("the <think> tag"), is spoken of and opens nothing.
    """
    *_, said = _CLOSED.split(completion)
    return None if _OPENED.search(said) else said
