"""Conversations as messages, for a model whose chat template and tokenizer a server has."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from fttt.errors import UsageError
from fttt.models.chat import ChatFormat, is_user, without_oldest
from fttt.types import Completion, Text, Turn

__all__ = ["MessageFormat", "in_ids"]

_BYTES_A_TOKEN = 4
"""Of English text, about; what a tokenizer that is elsewhere makes of it is not known."""


class MessageFormat:
    """Turns a conversation into messages, for a model whose template and tokenizer a server has.

    Lengths are estimates, but for those of answers, which the server has counted. Thoughts are
    no part of an answer's message.
    """

    def __init__(self, arguments: Mapping[str, Any] | None = None) -> None:
        """Take the arguments of the template, which the server is given."""
        self.arguments = dict(arguments or {})

    def with_arguments(self, arguments: Mapping[str, Any]) -> MessageFormat:
        """The format under these arguments of the template."""
        return MessageFormat(arguments)

    def rendered(self, prompt: str) -> None:
        """No text: the server's template writes it."""

    def prompt_tokens(self, prompt: str, rendered: str | None = None) -> int:
        """About how many tokens a question has."""
        return len(prompt.encode("utf-8", "replace")) // _BYTES_A_TOKEN

    def turn_tokens(self, text: str) -> int:
        """About how many tokens a user's turn has."""
        return self.prompt_tokens(text)

    def given(self, prompt: str, answer: str) -> Completion:
        """An answer that somebody else wrote, as if the model had written it."""
        return Completion(answer, (), "stop", generation=-1)

    def conversation(
        self, prompt: str, turns: tuple[Turn, ...], before: tuple[Text, ...], room: int
    ) -> tuple[Text, ...]:
        """The messages of a conversation; user texts in a row are one message.

        Args:
            prompt: the question.
            turns: that follow it.
            before: a system's text, and user texts that the question's turn begins with.
            room: tokens; the oldest turns are left out until about as many are left.

        Raises:
            ValueError: two answers in a row, or a system's text that is not the first.
        """
        while self._tokens(prompt, turns, before) > room:
            fewer = without_oldest(turns)
            if fewer is None:
                break
            turns = fewer
        found: list[Text] = []
        for turn in (*before, Text(prompt), *turns):
            said = turn if isinstance(turn, Text) else Text(turn.text, "assistant")
            if found and is_user(said) and is_user(found[-1]):
                said = Text(f"{found.pop().content}\n\n{said.content}")
            found.append(said)
        roles = [said.role for said in found]
        own = roles[1:] if roles[0] == "system" else roles
        if own[0] != "user" or "system" in own or any(a == b for a, b in pairwise(own)):
            raise ValueError(
                "after the question, answers and user texts alternate; a system text stands "
                "before it"
            )
        return tuple(found)

    def _tokens(self, prompt: str, turns: tuple[Turn, ...], before: tuple[Text, ...]) -> int:
        counted = sum(turn.usage.generated_tokens for turn in turns if isinstance(turn, Completion))
        texts = (*before, Text(prompt), *(turn for turn in turns if isinstance(turn, Text)))
        return counted + sum(self.turn_tokens(text.content) for text in texts)


def in_ids(chat: ChatFormat | MessageFormat) -> ChatFormat:
    """The format, for what needs token ids.

    Raises:
        UsageError: a server has the tokenizer.
    """
    if isinstance(chat, MessageFormat):
        raise UsageError(
            "The method scores or trains, and a served model gives answers only; run it on the "
            "model's weights, without --endpoint."
        )
    return chat
