"""Chat formatting through the tokenizer's own template, in token ids."""

from __future__ import annotations

import re
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

from fttt.errors import RunError, UsageError
from fttt.types import Completion, Text, Turn

__all__ = ["ChatFormat", "MessageFormat", "check_tokenizer", "in_ids", "is_user", "without_oldest"]

_ATTEMPT = "QXATTEMPTXQ"
_FEEDBACK = "QXFEEDBACKXQ"
_MARKER = re.compile(r"<[^<>\s]{1,60}>|\[[^\[\]\s]{1,60}\]")
"""What special tokens of chat templates look like: ``<|im_start|>``, ``<start_of_turn>``,
``[INST]``."""
_TEXTS = (
    "def f(x):\n    if x > 0:\n        return 10 * x + 7  # ok\n",
    "    Four spaces, a\ttab,  two spaces.\n\n\n",
    'So \\boxed{\\frac{3}{4}} is 75%: don\'t "guess", (1,234) it.',
)
"""What a tokenizer has to give back as it was: indentation, spaces, signs."""
_BYTES_A_TOKEN = 4
"""Of English text, about; what a tokenizer that is elsewhere makes of it is not known."""


class ChatFormat:
    """Turns a conversation into token ids without ever tokenising generated text again.

    The template is rendered once around placeholders; what it writes between an answer and the
    next user's turn is tokenised on its own, so that a completion keeps the ids that were sampled
    and no beginning-of-sequence token appears in mid-sequence.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Read the template of a ``transformers`` tokenizer.

        Raises:
            UsageError: the tokenizer has no chat template.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no chat template; use an "
                "instruction-tuned model, or a folder of this one with a chat_template.jinja in it."
            )
        from jinja2 import TemplateError

        self.tokenizer = tokenizer
        try:
            self._after_attempt, self._after_feedback, self._closing = self._read_template()
        except TemplateError as error:
            raise UsageError(
                f"The chat template of {tokenizer.name_or_path!r} cannot be rendered: {error}."
            ) from error
        self.end_ids = self._end_ids()

    def rendered(self, prompt: str, instruction: str | None = None) -> str:
        """Text of one user's turn and the header of the assistant's answer.

        Args:
            prompt: of the user.
            instruction: the system's turn before it; without one, the template's own.

        Raises:
            UsageError: the template knows no system's turn.
        """
        messages = [{"role": "user", "content": prompt}]
        if instruction is not None:
            messages.insert(0, {"role": "system", "content": instruction})
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # of the template's own, whatever it raises
            if instruction is None:
                raise
            raise UsageError(
                f"The chat template of {self.tokenizer.name_or_path!r} takes no system text "
                f"({error}); put it into the user's turn."
            ) from error
        return str(text)

    @lru_cache(maxsize=4096)  # noqa: B019 - one format lives as long as its model
    def prompt_ids(self, prompt: str, rendered: str | None = None) -> tuple[int, ...]:
        """Ids of one user's turn and the header of the assistant's answer.

        Args:
            prompt: of the user.
            rendered: its text with the header, where the template has written it before.
        """
        return self.encode(self.rendered(prompt) if rendered is None else rendered)

    def prompt_tokens(self, prompt: str, rendered: str | None = None) -> int:
        """Number of :meth:`prompt_ids`."""
        return len(self.prompt_ids(prompt, rendered))

    def turn_tokens(self, text: str) -> int:
        """Number of :meth:`turn_ids`."""
        return len(self.turn_ids(text))

    def turn_ids(
        self, text: str, after: Completion | None = None, *, answer: bool = True
    ) -> tuple[int, ...]:
        """Ids of a user's turn that follows an answer.

        ``after`` is that answer: where it already ended with the end-of-turn token, the token is
        not written twice. ``answer`` adds the header of the assistant's next answer.
        """
        ids = self._turn(text, answer)
        if after is not None and after.token_ids and ids[:1] == (after.token_ids[-1],):
            return ids[1:]
        if after is not None and after.finish_reason == "stop":
            # whichever stop token it was, and whatever space the template puts before its own
            end = next((n for n, i in enumerate(ids) if i in self.end_ids), None)
            if end is not None and not self.decode(ids[:end]).strip():
                return ids[end + 1 :]
        return ids

    def opening_ids(
        self,
        prompt: str,
        rendered: str | None = None,
        *,
        before: tuple[Text, ...] = (),
        behind: tuple[Text, ...] = (),
    ) -> tuple[int, ...]:
        """Ids of the question's own turn, with texts around it, and the header of the answer.

        Args:
            prompt: the question.
            rendered: see :meth:`prompt_ids`.
            before: a system's text, and user texts that the turn begins with.
            behind: user texts that the turn ends with.

        Raises:
            ValueError: a system's text that is not the first.
        """
        instruction = before[0].content if before and before[0].role == "system" else None
        said = before if instruction is None else before[1:]
        if any(text.role != "user" for text in (*said, *behind)):
            raise ValueError(
                "around a question stand one system text, the first, and user texts; "
                "answers follow the question"
            )
        contents = [text.content for text in said] + [prompt] + [text.content for text in behind]
        content = "\n\n".join(contents)
        if instruction is None:
            if content == prompt:
                return self.prompt_ids(prompt, rendered)
            if rendered is not None and rendered.count(prompt) == 1:
                return self.encode(rendered.replace(prompt, content))
        return self.encode(self.rendered(content, instruction))

    def conversation_ids(
        self,
        prompt: str,
        turns: tuple[Turn, ...],
        rendered: str | None = None,
        *,
        before: tuple[Text, ...] = (),
        header: bool = True,
    ) -> tuple[int, ...]:
        """Ids of a whole conversation, up to the header of the next answer if that follows.

        Args:
            prompt: the question.
            turns: that follow it: user texts that belong to its own turn, then answers and user
                texts in turn.
            rendered: see :meth:`prompt_ids`.
            before: see :meth:`opening_ids`.
            header: whether the last turn, if it is a user's, ends with that header.

        Raises:
            ValueError: two answers in a row, or a system's text after the question.
        """
        own = next((n for n, turn in enumerate(turns) if not is_user(turn)), len(turns))
        behind = tuple(turn for turn in turns[:own] if isinstance(turn, Text))
        ids = self.opening_ids(prompt, rendered, before=before, behind=behind)
        after: Completion | None = None
        said: list[str] = []
        for number, turn in enumerate(turns[own:], own + 1):
            if isinstance(turn, Text) and turn.role == "user":
                said.append(turn.content)
                if number == len(turns) or not is_user(turns[number]):
                    last = number == len(turns)
                    ids += self.turn_ids("\n\n".join(said), after, answer=header or not last)
                    said, after = [], None
                continue
            if after is not None or (isinstance(turn, Text) and turn.role == "system"):
                raise ValueError(
                    "after the question, answers and user texts alternate; a system text stands "
                    "before it"
                )
            after = turn if isinstance(turn, Completion) else self.given(prompt, turn.content)
            ids += after.token_ids
        return ids

    def given(self, prompt: str, answer: str) -> Completion:
        """An answer that somebody else wrote, as if the model had written it."""
        return Completion(answer, self.answer_ids(prompt, answer), "stop", generation=-1)

    def answer_ids(self, prompt: str, answer: str) -> tuple[int, ...]:
        """Ids of an answer that somebody else wrote, as the model would have sampled them.

        They follow ``prompt_ids(prompt)`` and end with the token that ends an answer, whatever the
        template writes after it.
        """
        messages = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
        whole = self.encode(self.tokenizer.apply_chat_template(messages, tokenize=False))
        before = self.prompt_ids(prompt)
        ids = whole[len(before) :]
        if whole[: len(before)] != before:  # the answer's first token would merge with the header
            ids = self.encode_within(answer)
        end = next((n for n in range(len(ids), 0, -1) if ids[n - 1] in self.end_ids), None)
        if end is not None:
            return ids[:end]
        return ids + tuple(sorted(self.end_ids))[:1]

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """Text of generated ids, special tokens left out, every leading space kept.

        SentencePiece's tokenizers drop the first space of whatever they decode, as if it began a
        text; so a letter is decoded before it.
        """
        letter = self.encode("a")[-1:]
        return self._decode(letter + token_ids)[len(self._decode(letter)) :]

    def _decode(self, token_ids: tuple[int, ...]) -> str:
        return str(
            self.tokenizer.decode(
                token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    @lru_cache(maxsize=64)  # noqa: B019 - one format lives as long as its model
    def _turn(self, text: str, answer: bool) -> tuple[int, ...]:
        body = self._after_attempt + text + (self._after_feedback if answer else self._closing)
        return self.encode_within(body)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of text in which special tokens may stand; none is added."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_within(self, text: str) -> tuple[int, ...]:
        """The same of text that something stands before, where SentencePiece adds no space."""
        if self._spaces:
            before, whole = self.encode("\n"), self.encode("\n" + text)
            if whole[: len(before)] == before:
                return whole[len(before) :]
        return self.encode(text)

    @cached_property
    def _spaces(self) -> bool:
        """Whether the tokenizer begins each text with a space of its own."""
        first = self.tokenizer.convert_ids_to_tokens(self.encode("a")[0])
        return str(first).startswith("\u2581")

    def render(self, *, answer: bool) -> str:
        """Text of a conversation of three turns, with or without the header of a fourth."""
        messages = [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": _ATTEMPT},
            {"role": "user", "content": _FEEDBACK},
        ]
        return str(
            self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answer
            )
        )

    def _read_template(self) -> tuple[str, str, str]:
        with_header = self.render(answer=True)
        if with_header.count(_ATTEMPT) != 1 or with_header.count(_FEEDBACK) != 1:
            raise UsageError(
                f"The chat template of {self.tokenizer.name_or_path!r} does not keep a "
                "conversation of several turns; use a model whose template does."
            )
        rest = with_header.split(_ATTEMPT, 1)[1]
        before, after = rest.split(_FEEDBACK, 1)
        closing = self.render(answer=False).split(_FEEDBACK, 1)[1]
        return before, after, closing

    def _end_ids(self) -> frozenset[int]:
        """The special token with which the template ends an answer.

        A tokenizer's own end token is trusted only where the template writes none: some name the
        token that starts a turn.
        """
        ids = self.encode(self._after_attempt)
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        if ids and ids[0] in special:
            return frozenset(ids[:1])
        eos = self.tokenizer.eos_token_id
        return frozenset(() if eos is None else (eos,))


class MessageFormat:
    """Turns a conversation into messages, for a model whose template and tokenizer a server has.

    Lengths are estimates, but for those of answers, which the server has counted.
    """

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
        RunError: a server has the tokenizer.
    """
    if isinstance(chat, MessageFormat):
        raise RunError(
            "The method scores or trains, and a served model gives answers only; run it on the "
            "model's weights, without --endpoint."
        )
    return chat


def is_user(turn: Turn) -> bool:
    """Whether a turn is a text of the user's."""
    return isinstance(turn, Text) and turn.role == "user"


def without_oldest(turns: tuple[Turn, ...]) -> tuple[Turn, ...] | None:
    """The turns after a question without the oldest answer and what was said of it.

    ``None`` where nothing can be left out.
    """
    if len(turns) < 2 and not any(map(is_user, turns)):
        return None
    return turns[1 if is_user(turns[0]) else 2 :]


def check_tokenizer(chat: ChatFormat, name: str) -> None:
    """Refuse a tokenizer that loses text or takes special tokens for text.

    Args:
        chat: the format that uses it.
        name: of the model, as the user calls it.

    Raises:
        UsageError: some text does not come back as it was, or a special token of the chat template
            is cut into pieces.
    """
    for text in _TEXTS:
        back = chat.decode(chat.encode_within(text))
        if back != text:
            raise UsageError(
                f"The tokenizer of {name!r} does not keep text: {text!r} comes back as {back!r}; "
                "use a model whose tokenizer does."
            )
    rendered = chat.render(answer=True)
    vocabulary: Any = chat.tokenizer.get_vocab()
    for marker in sorted({m for m in _MARKER.findall(rendered) if m in vocabulary}):
        pieces = chat.tokenizer.convert_ids_to_tokens(chat.encode(marker))
        if pieces != [marker]:
            raise UsageError(
                f"The tokenizer of {name!r} cuts {marker!r} of its chat template into {pieces}, "
                "although it is a token; put the model's own tokenizer.json beside its weights."
            )
