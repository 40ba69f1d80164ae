"""Thoughts of published templates' structure: found, told apart, and dropped from earlier turns."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fttt.errors import UsageError
from fttt.models.chat import ChatFormat
from fttt.testing import tiny_tokenizer
from fttt.types import Completion, user

THINKING = ("qwen3", "deepseek-r1", "harmony")
TAGGED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{# <thinking> and </thinking> stay where they are #}"
)
"""Shows what was thought in earlier turns, and has no tokens for its tags."""


EMPTIED = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>"
    "{% else %}<|im_start|>{% set content = m.content %}{% set thought = '' %}"
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in content %}{% set content = content.split('</think>')[-1].strip() %}"
    "{% endif %}{% if loop.last and thought %}{{ '\n<think>' + thought + '</think>' }}"
    "{% else %}{{ '\n<think></think>' }}{% endif %}{{ '\n' + content }}<|im_end|>"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>"
    "{{- '\n<think></think>' if enable_thinking is defined and not enable_thinking else '' }}"
    "{% endif %}"
)
"""As GLM 4.6 has it: the thoughts of earlier turns are shown as empty ones."""


SWITCHED = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}<|im_end|>"
    "{% else %}</think>{{ m.content.split('</think>')[-1] }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<think>' if thinking else '</think>' }}{% endif %}"
)
"""As DeepSeek V3.1 has it: an answer follows an end of a thought, whether there was one or not."""


def write(
    chat: ChatFormat, thought: str | None, answer: str, *, stopped: bool = True
) -> Completion:
    """What a model writes that thinks as its template says; without an answer it is cut off."""
    form, end = chat.thoughts, chat.tokenizer.eos_token
    assert form is not None
    text = answer
    if thought is not None:
        opening = "" if form.opened else f"{form.opening}\n"
        closing = form.closing if form.always else "\n</think>\n\n"
        text = opening + thought + (closing + answer if answer else "")
    elif form.always:
        text = form.mark + answer
    stopped = stopped and bool(answer)
    return chat.completion(
        chat.encode(text + (end if stopped else "")), "stop" if stopped else "length", 0
    )


@pytest.mark.parametrize("template", THINKING)
def test_a_thought_is_kept_apart_from_its_answer(template: str) -> None:
    chat = ChatFormat(tiny_tokenizer(template))
    said = write(chat, "Two and two\n</b> is 4?", "It is 4.")
    assert (said.text, said.thought) == ("It is 4.", "Two and two\n</b> is 4?")
    assert chat.decode(said.token_ids[said.thought_tokens :]) == "It is 4."
    cut = write(chat, "Two and \\boxed{4}", "")
    assert (cut.text, cut.thought) == ("", "Two and \\boxed{4}")
    assert cut.thought_tokens == len(cut.token_ids)
    if template != "deepseek-r1":  # whose template has opened a thought
        plain = write(chat, None, "It is 4.")
        assert (plain.text, plain.thought) == ("It is 4.", None)


@pytest.mark.parametrize("template", THINKING)
@pytest.mark.parametrize("stopped", [True, False])
def test_earlier_turns_are_what_the_template_renders(template: str, stopped: bool) -> None:
    made = tiny_tokenizer(template)
    chat = ChatFormat(made)
    attempt, second = (
        write(chat, "Hm.", "It is 5.", stopped=stopped),
        write(chat, "Hm", "", stopped=stopped),
    )
    ids = chat.conversation_ids("2 + 2?", (attempt, user("Wrong."), second, user("Again.")))
    messages = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "It is 5."},
        {"role": "user", "content": "Wrong."},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "Again."},
    ]
    assert made.decode(ids) == made.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )


def test_arguments_reach_every_text_that_the_template_writes() -> None:
    made = tiny_tokenizer("qwen3")
    plain = ChatFormat(made)
    chat = plain.with_arguments({"enable_thinking": False})
    assert chat is plain.with_arguments({"enable_thinking": False})
    assert plain is plain.with_arguments({})
    attempt = chat.completion(chat.encode("It is 5.<|im_end|>"), "stop", 0)
    assert attempt.thought is None
    messages = [{"role": "user", "content": "2 + 2?"}]
    expected = made.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert made.decode(chat.prompt_ids("2 + 2?")) == expected
    assert expected.endswith("<think>\n\n</think>\n\n")
    messages += [
        {"role": "assistant", "content": "It is 5."},
        {"role": "user", "content": "Wrong."},
    ]
    assert made.decode(
        chat.conversation_ids("2 + 2?", (attempt, user("Wrong.")))
    ) == made.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    low = ChatFormat(tiny_tokenizer("harmony"), {"reasoning_effort": "low"})
    assert "Reasoning: low" in low.rendered("Hi")


@pytest.mark.parametrize(
    ("template", "argument", "says"),
    [
        ("qwen3", "enable_thinkin", "no argument 'enable_thinkin'; it has enable_thinking"),
        ("qwen3", "content", "it has enable_thinking"),
        ("harmony", "messages", "it has reasoning_effort"),
        ("chatml", "enable_thinking", "it has none"),
    ],
)
def test_an_argument_that_does_nothing_is_refused(template: str, argument: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ChatFormat(tiny_tokenizer(template), {argument: False})


def test_an_argument_that_the_template_cannot_use_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be rendered with reasoning_effort=3"):
        ChatFormat(tiny_tokenizer("harmony"), {"reasoning_effort": 3})


def test_the_end_of_a_thought_does_not_end_an_answer() -> None:
    chat = ChatFormat(tiny_tokenizer("harmony"))
    assert [chat.tokenizer.decode([i]) for i in chat.end_ids] == ["<|return|>"]


def test_tags_without_tokens_and_thoughts_that_stay() -> None:
    made = copy.deepcopy(tiny_tokenizer())
    made.chat_template = TAGGED
    chat = ChatFormat(made)
    assert chat.thoughts is not None
    assert chat.thoughts.keeps
    ids = chat.encode("<thinking>Hm.</thinking>\n\nIt is 5.<|im_end|>")
    said = chat.completion(ids, "stop", 0)
    assert (said.text, said.thought) == ("It is 5.", "Hm.")
    whole = chat.conversation_ids("Q", (said, user("Wrong.")))
    assert whole[len(chat.prompt_ids("Q")) :][: len(ids)] == ids
    with pytest.raises(UsageError, match="no token for '</thinking>'"):
        chat.thought_ids()


@pytest.mark.parametrize(
    ("template", "arguments"), [("chatml", {}), ("qwen3", {"enable_thinking": False})]
)
def test_a_budget_of_no_thoughts_is_refused(template: str, arguments: dict[str, Any]) -> None:
    chat = ChatFormat(tiny_tokenizer(template), arguments)
    with pytest.raises(UsageError, match=r"has no thoughts.*leave it away"):
        chat.thought_ids()


def test_a_gold_answer_closes_the_thought_that_the_template_has_opened() -> None:
    made = tiny_tokenizer("deepseek-r1")
    chat = ChatFormat(made)
    assert made.decode(chat.answer_ids("Q", "4")) == f"\n</think>\n\n4{made.eos_token}"
    assert (chat.given("Q", "4").text, chat.given("Q", "4").thought) == ("4", "")


@pytest.mark.parametrize("thinks", [True, False])
def test_an_earlier_thought_may_be_shown_as_an_empty_one(thinks: bool) -> None:
    made = copy.deepcopy(tiny_tokenizer("qwen3"))
    made.chat_template = EMPTIED
    chat = ChatFormat(made, {} if thinks else {"enable_thinking": False})
    assert chat.thoughts is not None
    assert (chat.thoughts.opening, chat.thoughts.mark) == ("<think>", "</think>")
    assert (chat.thoughts.always, chat.thoughts.closed) == (False, not thinks)
    text = "\n<think>Hm.</think>\nIt is 5.<|im_end|>" if thinks else "\nIt is 5.<|im_end|>"
    said = chat.completion(chat.encode(text), "stop", 0)
    assert said.thought == ("Hm." if thinks else None)
    assert said.text.strip() == "It is 5."
    messages = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "It is 5."},
        {"role": "user", "content": "Wrong."},
    ]
    rendered = made.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **chat.arguments
    )
    found = made.decode(chat.conversation_ids("2 + 2?", (said, user("Wrong."))))
    assert found == rendered


@pytest.mark.parametrize("thinks", [True, False])
def test_an_end_without_a_beginning_says_that_nothing_is_thought(thinks: bool) -> None:
    made = copy.deepcopy(tiny_tokenizer("qwen3"))
    made.chat_template = SWITCHED
    chat = ChatFormat(made, {"thinking": thinks})
    assert chat.thoughts is not None
    assert (chat.thoughts.opened, chat.thoughts.closed) == (thinks, not thinks)
    text = "Hm.</think>It is 5.<|im_end|>" if thinks else "It is 5.<|im_end|>"
    said = chat.completion(chat.encode(text), "stop", 0)
    assert (said.text, said.thought) == ("It is 5.", "Hm." if thinks else None)
    found = made.decode(chat.conversation_ids("2 + 2?", (said, user("Wrong."))))
    assert found == (
        "<|im_start|>2 + 2?<|im_end|></think>It is 5.<|im_end|><|im_start|>Wrong.<|im_end|>"
        + ("<think>" if thinks else "</think>")
    )
