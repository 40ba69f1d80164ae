"""Chat formatting through the tokenizer's own template, in token ids."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
from importlib import import_module
from typing import Any

from transformers import PreTrainedTokenizerFast

from fttt.errors import UsageError
from fttt.models.thoughts import find_thoughts
from fttt.models.token_bytes import TokenBytes
from fttt.types import Completion, FinishReason, Text, Turn, Usage

__all__ = ["ChatFormat", "check_tokenizer", "is_user", "without_oldest"]

_QUESTION = "QXQUESTIONXQ"
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
_OWN_VARIABLES = ("messages", "add_generation_prompt", "continue_final_message")
"""Variables of a template that no argument may set."""


class ChatFormat:
    """Turns a conversation into token ids without ever tokenising generated text again.

    The template is rendered once around placeholders; what it writes between an answer and the
    next user's turn is tokenised on its own, so that a completion keeps the ids that were sampled
    and no beginning-of-sequence token appears in mid-sequence. An earlier answer loses its thought
    where the template does not show it any more.
    """

    def __init__(self, tokenizer: Any, arguments: Mapping[str, Any] | None = None) -> None:
        """Read the template of a ``transformers`` tokenizer.

        Args:
            tokenizer: with a chat template.
            arguments: variables of that template, such as ``enable_thinking``.

        Raises:
            UsageError: the tokenizer has no chat template, or that has no such variable.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no chat template; use an "
                "instruction-tuned model, or a folder of this one with a chat_template.jinja in it."
            )
        from jinja2 import TemplateError

        self.tokenizer = tokenizer
        self.arguments = dict(arguments or {})
        try:
            self._check_arguments()
            self._read_template()
        except (TemplateError, TypeError, ValueError) as error:
            raise UsageError(
                f"The chat template of {tokenizer.name_or_path!r} cannot be rendered"
                f"{self._with_arguments}: {error}."
            ) from error
        self.end_ids = self._end_ids()

    def with_arguments(self, arguments: Mapping[str, Any]) -> ChatFormat:
        """The format under these variables of the template.

        Raises:
            UsageError: the template has no such variable, or cannot be rendered with it.
        """
        if arguments == self.arguments:
            return self
        made = self._others.get(key := json.dumps(arguments, sort_keys=True, default=str))
        if made is None:
            made = self._others[key] = ChatFormat(self.tokenizer, arguments)
        return made

    @cached_property
    def _others(self) -> dict[str, ChatFormat]:
        """Those under other arguments, by the arguments."""
        return {}

    @property
    def _with_arguments(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return said and f" with {said}"

    def _check_arguments(self) -> None:
        """Refuse an argument that the template does not name, which would do nothing."""
        if not self.arguments:
            return
        from jinja2 import meta, nodes

        compiler: Any = import_module("transformers.utils.chat_template_utils")
        source = self.tokenizer.get_chat_template()
        tree = compiler._compile_jinja_template(source).environment.parse(source)
        # what a branch sets counts as undeclared too; it is an argument where it has a default
        own = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "store"}
        tests = [t for t in tree.find_all(nodes.Test) if t.name in ("defined", "undefined")]
        own -= {test.node.name for test in tests if isinstance(test.node, nodes.Name)}
        known = meta.find_undeclared_variables(tree) - own
        known -= {*_OWN_VARIABLES, *self.tokenizer.special_tokens_map}
        for name in self.arguments:
            if name not in known:
                named = f"it has {', '.join(sorted(known))}" if known else "it has none"
                raise UsageError(
                    f"The chat template of {self.tokenizer.name_or_path!r} has no argument "
                    f"{name!r}; {named}."
                )

    def _render(self, messages: list[dict[str, str]], header: bool) -> str:
        """What the template writes, with or without the header of the next answer."""
        return str(
            self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=header, **self.arguments
            )
        )

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
            return self._render(messages, True)
        except Exception as error:  # of the template's own, whatever it raises
            if instruction is None:
                raise
            raise UsageError(
                f"The chat template of {self.tokenizer.name_or_path!r} takes no system text "
                f"({error}); put it into the user's turn."
            ) from error

    @lru_cache(maxsize=4096)  # noqa: B019 - one format lives as long as its model
    def prompt_ids(
        self, prompt: str, rendered: str | None = None, past: bool = False
    ) -> tuple[int, ...]:
        """Ids of one user's turn and the header of the assistant's answer.

        Args:
            prompt: of the user.
            rendered: its text with the header, where the template has written it before.
            past: whether the answer is an earlier one, whose header may be another.
        """
        return self._opening(self.rendered(prompt) if rendered is None else rendered, past)

    def _opening(self, text: str, past: bool) -> tuple[int, ...]:
        """Ids of a rendered beginning of a conversation, up to the header of an answer."""
        if past and self._past_header is not None and text.endswith(self._after_feedback):
            text = text.removesuffix(self._after_feedback) + self._past_header
        return self.encode(text)

    def prompt_tokens(self, prompt: str, rendered: str | None = None) -> int:
        """Number of :meth:`prompt_ids`."""
        return len(self.prompt_ids(prompt, rendered))

    def turn_tokens(self, text: str) -> int:
        """Number of :meth:`turn_ids`."""
        return len(self.turn_ids(text))

    def turn_ids(
        self,
        text: str,
        after: Completion | None = None,
        *,
        answer: bool = True,
        past: bool = False,
    ) -> tuple[int, ...]:
        """Ids of a user's turn that follows an answer.

        ``after`` is that answer: where it already ended with the end-of-turn token, the token is
        not written twice. ``answer`` adds the header of the assistant's next answer, which is that
        of an earlier one where ``past``.
        """
        after = after and self.past(after)
        ids = self._turn(text, answer, past)
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
        past: bool = False,
    ) -> tuple[int, ...]:
        """Ids of the question's own turn, with texts around it, and the header of the answer.

        Args:
            prompt: the question.
            rendered: see :meth:`prompt_ids`.
            before: a system's text, and user texts that the turn begins with.
            behind: user texts that the turn ends with.
            past: see :meth:`prompt_ids`.

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
                return self.prompt_ids(prompt, rendered, past)
            if rendered is not None and rendered.count(prompt) == 1:
                return self._opening(rendered.replace(prompt, content), past)
        return self._opening(self.rendered(content, instruction), past)

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

        All answers in it are earlier ones, which the template may show without their thoughts.

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
        ids = self.opening_ids(
            prompt, rendered, before=before, behind=behind, past=own < len(turns)
        )
        after: Completion | None = None
        said: list[str] = []
        for number, turn in enumerate(turns[own:], own + 1):
            if isinstance(turn, Text) and turn.role == "user":
                said.append(turn.content)
                if number == len(turns) or not is_user(turns[number]):
                    last = number == len(turns)
                    ids += self.turn_ids(
                        "\n\n".join(said), after, answer=header or not last, past=not last
                    )
                    said, after = [], None
                continue
            if after is not None or (isinstance(turn, Text) and turn.role == "system"):
                raise ValueError(
                    "after the question, answers and user texts alternate; a system text stands "
                    "before it"
                )
            given = turn if isinstance(turn, Completion) else self.given(prompt, turn.content)
            after = self.past(given)
            ids += after.token_ids
        return ids

    def completion(
        self,
        token_ids: tuple[int, ...],
        finish_reason: FinishReason,
        generation: int,
        usage: Usage = Usage(),  # noqa: B008 - a constant
    ) -> Completion:
        """What the model wrote, its thought apart from its answer."""
        tokens = self._thought_tokens(token_ids)
        text = self.decode(token_ids[tokens:])
        if tokens == 0:
            return Completion(text, token_ids, finish_reason, generation, usage)
        assert self.thoughts is not None
        ended = tokens == len(token_ids) and finish_reason == "stop"
        within = token_ids[: tokens - 1] if ended else token_ids[:tokens]
        thought = self.thoughts.without_marks(self._decode(within, special=True))
        opened = self.thoughts.opened or bool(thought)
        return Completion(
            text.lstrip("\n"),
            token_ids,
            finish_reason,
            generation,
            usage,
            thought=thought if opened or not self.thoughts.always else None,
            thought_tokens=tokens,
        )

    def thought_ids(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Ids of what opens a thought (none where nothing has to), ends it, and closes it early.

        Raises:
            UsageError: the model has no thoughts, or none that can be told by tokens.
        """
        form, name = self.thoughts, self.tokenizer.name_or_path
        if form is None or form.closed:
            off = "" if form is None else " with these arguments"
            raise UsageError(
                f"The chat template of {name!r} has no thoughts{off}, so --think-tokens does "
                "nothing; leave it away."
            )
        if not self._has_tokens(form.mark):
            raise UsageError(
                f"The tokenizer of {name!r} has no token for {form.mark!r}, so --think-tokens "
                "cannot tell where a thought ends; leave it away."
            )
        thinks = form.opened or form.always  # from the first token on
        opening = () if thinks else self.encode_within(form.opening)
        return opening, self.encode_within(form.mark), self.encode_within(form.closing)

    def _thought_tokens(self, token_ids: tuple[int, ...]) -> int:
        """How many tokens come before the answer: the thought, its markers, the space behind."""
        form = self.thoughts
        if form is None:
            return 0
        end = self._find(form.mark, token_ids)
        if end is None:
            thinks = form.opened or form.always or self._find(form.opening, token_ids)
            return len(token_ids) if thinks else 0
        while end < len(token_ids) and token_ids[end] not in self.end_ids:
            behind = self._decode(token_ids[end : end + 1], special=True)
            if not behind or behind.strip("\n"):
                break
            end += 1
        return end

    def _find(self, mark: str, token_ids: tuple[int, ...]) -> int | None:
        """How many tokens there are up to the first ``mark`` and with it; ``None`` without one."""
        ids = self.encode_within(mark)
        if self._has_tokens(mark):
            at = (n for n in range(len(token_ids)) if token_ids[n : n + len(ids)] == ids)
            return next((n + len(ids) for n in at), None)
        if mark not in self._decode(token_ids, special=True):
            return None
        low, high = 0, len(token_ids)  # its text may be cut into tokens in several ways
        while low + 1 < high:
            middle = (low + high) // 2
            found = mark in self._decode(token_ids[:middle], special=True)
            low, high = (low, middle) if found else (middle, high)
        return high

    def _has_tokens(self, mark: str) -> bool:
        """Whether a marker begins and ends with tokens of its own, so that its ids are always the
        same.
        """
        ids, added = self.encode_within(mark), self.tokenizer.added_tokens_decoder
        return ids[0] in added and ids[-1] in added

    def past(self, said: Completion) -> Completion:
        """An answer as the template shows it once the conversation has gone on.

        Its tokens stay as they were sampled, but for a thought that is not shown any more.
        """
        keeps = self._past_header is None and (self.thoughts is None or self.thoughts.keeps)
        if keeps or not (said.thought_tokens or self._past_header):
            return said
        ids, finish = said.token_ids[said.thought_tokens :], said.finish_reason
        if finish == "stop" and (not ids or ids[-1] not in self._turn("", False, False)[:1]):
            ids, finish = ids[:-1], "length"  # the next turn writes the template's own end
        text = self.decode(ids)
        if said.thought_tokens and text.startswith("\n"):
            end = ids[-1:] if finish == "stop" else ()
            ids = self.encode_within(text.lstrip("\n")) + end
        return replace(said, token_ids=ids, finish_reason=finish, thought=None, thought_tokens=0)

    def given(self, prompt: str, answer: str) -> Completion:
        """An answer that somebody else wrote, as if the model had written it."""
        return replace(self.completion(self.answer_ids(prompt, answer), "stop", -1), text=answer)

    def answer_ids(self, prompt: str, answer: str) -> tuple[int, ...]:
        """Ids of an answer that somebody else wrote, as the model would have sampled them.

        They follow ``prompt_ids(prompt)`` and end with the token that ends an answer, whatever the
        template writes after it.
        """
        messages = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
        whole = self.encode(self._render(messages, False))
        before = self.prompt_ids(prompt)
        ids = whole[len(before) :]
        if whole[: len(before)] != before:  # the answer's first token would merge with the header
            form = self.thoughts
            closing = form.closing if form is not None and form.opened else ""
            ids = self.encode_within(closing + answer)
        end = next((n for n in range(len(ids), 0, -1) if ids[n - 1] in self.end_ids), None)
        if end is not None:
            return ids[:end]
        return ids + tuple(sorted(self.end_ids))[:1]

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """Text of generated ids, special tokens left out, every leading space kept.

        SentencePiece's tokenizers drop the first space of whatever they decode, as if it began a
        text; so a letter is decoded before it.
        """
        letter, length = self._letter
        return self._decode(letter + token_ids)[length:]

    def _decode(self, token_ids: tuple[int, ...], *, special: bool = False) -> str:
        if self._bytes is not None and not special:
            return self._bytes.decode(token_ids)
        if self._backend is not None:
            return str(self._backend.decode(token_ids, skip_special_tokens=not special))
        return str(
            self.tokenizer.decode(
                token_ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False
            )
        )

    @cached_property
    def _letter(self) -> tuple[tuple[int, ...], int]:
        """The token of a letter, and how many characters it is decoded to."""
        token = self.encode("a")[-1:]
        return token, len(self._decode(token))

    @cached_property
    def _backend(self) -> Any:
        """The library below the tokenizer, where that adds nothing as it decodes.

        Most of the time of a decoding went into looking at each id for its type.
        """
        own, base = type(self.tokenizer), PreTrainedTokenizerFast
        plain = all(getattr(own, n, None) is getattr(base, n) for n in ("decode", "_decode"))
        return self.tokenizer.backend_tokenizer if plain else None

    @cached_property
    def _bytes(self) -> TokenBytes | None:
        """The bytes of its tokens, where all that it does is to join them."""
        return None if self._backend is None else TokenBytes.of(self._backend)

    @lru_cache(maxsize=64)  # noqa: B019 - one format lives as long as its model
    def _turn(self, text: str, answer: bool, past: bool) -> tuple[int, ...]:
        header = self._past_header if past and self._past_header else self._after_feedback
        body = self._after_attempt + text + (header if answer else self._closing)
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
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": _ATTEMPT},
            {"role": "user", "content": _FEEDBACK},
        ]
        return self._render(messages, answer)

    def _read_template(self) -> None:
        """Take the template apart."""
        with_header = self.render(answer=True)
        if any(with_header.count(text) != 1 for text in (_QUESTION, _ATTEMPT, _FEEDBACK)):
            raise UsageError(
                f"The chat template of {self.tokenizer.name_or_path!r} does not keep a "
                "conversation of several turns; use a model whose template does."
            )
        asked, rest = with_header.split(_ATTEMPT, 1)
        self._after_attempt, self._after_feedback = rest.split(_FEEDBACK, 1)
        self._closing = self.render(answer=False).split(_FEEDBACK, 1)[1]
        past = asked.split(_QUESTION, 1)[1]
        tokens = [str(token) for token in self.tokenizer.added_tokens_decoder.values()]
        sources = [self.tokenizer.get_chat_template(), *tokens]
        self.thoughts = find_thoughts(self._render, past, self._after_feedback, sources)
        """How thoughts are marked; ``None`` for a model that has none."""
        header, form = self._after_feedback, self.thoughts
        other = header.strip() != past.strip()
        known = (
            header.startswith(past.rstrip()) or form is not None
        )  # else sampled, for all we know
        self._past_header = past if other and known and not (form and form.keeps) else None
        """The header of an earlier answer, where it is another than that of the next one."""

    def _end_ids(self) -> frozenset[int]:
        """The special token with which the template ends an answer.

        A tokenizer's own end token is trusted only where the template writes none: some name the
        token that starts a turn. Nor is what ends a thought the end of an answer (harmony), where
        the last answer of a conversation has an end of its own.
        """
        ids = self.encode(self._after_attempt)
        if ids and self.thoughts is not None and ids[0] in self.encode(self.thoughts.closing):
            messages = [
                {"role": "user", "content": _QUESTION},
                {"role": "assistant", "content": _ATTEMPT},
            ]
            ids = self.encode(self._render(messages, False).split(_ATTEMPT, 1)[1])
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        if ids and ids[0] in special:
            return frozenset(ids[:1])
        eos = self.tokenizer.eos_token_id
        return frozenset(() if eos is None else (eos,))


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
