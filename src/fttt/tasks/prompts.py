"""Prompt templates: a text with one place for the question."""

from __future__ import annotations

from fttt.errors import UsageError

__all__ = ["PLACE", "fenced", "fill_prompt"]

PLACE = "{question}"


def fill_prompt(template: str, question: str) -> str:
    """Put a question into a template.

    Only ``{question}`` is replaced, so that templates may hold other braces (LaTeX, code).

    Raises:
        UsageError: the template has no place for the question.
    """
    if PLACE not in template:
        shown = template if len(template) <= 60 else template[:60] + "…"
        raise UsageError(
            f"The prompt template {shown!r} has no place for the question; "
            f"write {PLACE} where it belongs."
        )
    return template.replace(PLACE, question)


def fenced(code: str) -> str:
    """``code`` as a fenced block of Python."""
    return f"```python\n{code.strip(chr(10))}\n```"
