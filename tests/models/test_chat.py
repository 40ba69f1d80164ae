"""Conversations in token ids, through templates of several shapes."""

import copy
import random
from typing import Any

import pytest
from tokenizers import decoders

from fttt.errors import UsageError
from fttt.models.chat import ChatFormat, check_tokenizer
from fttt.models.token_bytes import TokenBytes
from fttt.testing import tiny_tokenizer
from fttt.types import Completion, user

BRACKETS = (
    "{{ '<|endoftext|>' }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)
"""Bracketed instructions, no header before an answer, a token at the very start."""
TRIMMED = (
    "{% for m in messages %}<|im_start|>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
    "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
"""Another name for the assistant, and contents that lose their outer spaces."""
FORGETFUL = "{% for m in messages[-1:] %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
"""Keeps only the last turn."""


def tokenizer(template: str | None = None) -> Any:
    made = copy.deepcopy(tiny_tokenizer())
    if template is not None:
        made.chat_template = template
    return made


def answer(made: Any, text: str, *, stopped: bool) -> Completion:
    ids = tuple(made(text, add_special_tokens=False)["input_ids"])
    if stopped:
        ids += (made.convert_tokens_to_ids("<|im_end|>"),)
    return Completion(text, ids, "stop" if stopped else "length", 0)


@pytest.mark.parametrize("template", [None, BRACKETS, TRIMMED])
@pytest.mark.parametrize("stopped", [True, False])
def test_a_conversation_is_what_the_template_renders(template: str | None, stopped: bool) -> None:
    made = tokenizer(template)
    chat = ChatFormat(made)
    attempt = answer(made, "It is 5.", stopped=stopped)
    second = answer(made, "It is 4.", stopped=stopped)
    ids = chat.conversation_ids("2 + 2?", (attempt, user("Wrong."), second, user("Again.")))
    messages = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "It is 5."},
        {"role": "user", "content": "Wrong."},
        {"role": "assistant", "content": "It is 4."},
        {"role": "user", "content": "Again."},
    ]
    rendered = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if template is BRACKETS:  # the space before an answer is the model's own to write
        rendered = rendered.replace("[/INST] It", "[/INST]It")
    assert made.decode(ids) == rendered


def test_generated_ids_are_kept_even_where_text_would_tokenise_differently() -> None:
    made = tokenizer()
    odd = Completion("\ufffd", (200, 201, 2), "stop", 0)
    ids = ChatFormat(made).conversation_ids("Hi", (odd, user("Wrong.")))
    assert ids[len(ChatFormat(made).prompt_ids("Hi")) :][:3] == (200, 201, 2)


@pytest.mark.parametrize("template", [None, BRACKETS, TRIMMED])
def test_a_gold_answer_is_what_the_template_renders_up_to_its_end(template: str | None) -> None:
    made = tokenizer(template)
    chat = ChatFormat(made)
    ids = chat.prompt_ids("2 + 2?") + chat.answer_ids("2 + 2?", "First 2.\nThen 4.")
    messages = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "First 2.\nThen 4."},
    ]
    rendered = made.apply_chat_template(messages, tokenize=False)
    assert made.decode(ids) == rendered.removesuffix("\n")
    assert ids[-1] == made.convert_tokens_to_ids("<|im_end|>")


def test_only_the_start_of_a_conversation_has_the_token_of_the_start() -> None:
    made = tokenizer(BRACKETS)
    chat = ChatFormat(made)
    start = made.convert_tokens_to_ids("<|endoftext|>")
    ids = chat.conversation_ids("Hi", (answer(made, "Ho", stopped=True), user("Wrong.")))
    assert ids[0] == start
    assert start not in ids[1:]


def test_the_end_of_a_turn_is_read_from_the_template_not_from_the_tokenizer() -> None:
    made = tokenizer()
    made.eos_token = "<|im_start|>"  # as some converted files claim
    assert ChatFormat(made).end_ids == {made.convert_tokens_to_ids("<|im_end|>")}


def test_a_feedback_turn_ends_with_the_answers_header_or_without() -> None:
    made = tokenizer()
    chat = ChatFormat(made)
    attempt = answer(made, "5", stopped=True)
    with_header = made.decode(chat.turn_ids("Wrong.", attempt))
    without = made.decode(chat.turn_ids("Wrong.", attempt, answer=False))
    assert with_header == "\n<|im_start|>user\nWrong.<|im_end|>\n<|im_start|>assistant\n"
    assert without == "\n<|im_start|>user\nWrong.<|im_end|>\n"


def test_a_turn_that_another_stop_token_ended_is_not_ended_twice() -> None:
    made = tokenizer()
    chat = ChatFormat(made)
    end, other = made.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    stopped = Completion("Yes", (5, 6, other), "stop", 0)
    assert chat.turn_ids("No.")[0] == end
    assert chat.turn_ids("No.", stopped) == chat.turn_ids("No.")[1:]


@pytest.mark.parametrize(("template", "says"), [("", "no chat template"), (FORGETFUL, "several")])
def test_templates_that_cannot_serve_are_refused(template: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ChatFormat(tokenizer(template))


SPACE_FIRST = "{% for m in messages %}{{ m.content }} <|im_end|> {% endfor %}"
"""Writes a space between an answer and its end."""


def test_an_answer_that_ended_is_not_ended_again_after_the_templates_space() -> None:
    made = tokenizer(SPACE_FIRST)
    chat = ChatFormat(made)
    stopped, cut = (answer(made, "5", stopped=stopped) for stopped in (True, False))
    assert made.decode(chat.turn_ids("No.", stopped)) == " No. <|im_end|> "
    assert made.decode(chat.turn_ids("No.", cut)) == " <|im_end|> No. <|im_end|> "


def eats_spaces() -> Any:
    """A tokenizer whose decoder drops the first space, as SentencePiece's do."""
    from tokenizers import decoders

    made = tokenizer()
    made.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]
    )
    return made


@pytest.mark.parametrize("text", ["    return 1", " 5", "5", "", "\n\n    x"])
def test_no_leading_space_of_a_completion_is_lost(text: str) -> None:
    made = eats_spaces()
    ids = tuple(made(text, add_special_tokens=False)["input_ids"])
    assert made.decode(ids) == text.removeprefix(" ")
    assert ChatFormat(made).decode((*ids, 2)) == text
    check_tokenizer(ChatFormat(made), "tiny")


def test_a_tokenizer_that_loses_text_is_refused() -> None:
    from tokenizers import Regex, normalizers

    made = tokenizer()
    made.backend_tokenizer.normalizer = normalizers.Replace(Regex(" +"), " ")
    with pytest.raises(UsageError, match=r"'mine' does not keep text: 'def f\(x\):\\n    if"):
        check_tokenizer(ChatFormat(made), "mine")


def test_a_special_token_that_is_cut_into_pieces_is_refused() -> None:
    made = tokenizer()
    check_tokenizer(ChatFormat(made), "mine")
    check_tokenizer(ChatFormat(tokenizer(BRACKETS)), "mine")  # [INST] is plain text of it
    broken = _without_added_tokens(made)
    with pytest.raises(UsageError, match=r"cuts '<\|im_end\|>'.*tokenizer\.json"):
        check_tokenizer(ChatFormat(broken), "mine")


def _without_added_tokens(made: Any) -> Any:
    """The same vocabulary, in which special tokens are ordinary ones."""
    import json

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    core = json.loads(made.backend_tokenizer.to_str())
    core["added_tokens"] = []
    broken = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(core)))
    broken.chat_template = made.chat_template
    return broken


def test_text_from_a_table_of_bytes_is_that_of_the_library() -> None:
    made = tiny_tokenizer()
    backend = made.backend_tokenizer
    table = TokenBytes.of(backend)
    assert table is not None
    draw = random.Random(0)
    size = backend.get_vocab_size()
    texts = [tuple(draw.randrange(size + 3) for _ in range(draw.randrange(9))) for _ in range(2000)]
    texts.append(made("día 4 → 東京 \U0001f600<|im_end|>")["input_ids"])
    for ids in texts:  # most of them are no UTF-8
        assert table.decode(ids) == backend.decode(ids, skip_special_tokens=True)


def test_a_tokenizer_of_another_kind_has_no_such_table() -> None:
    backend = copy.deepcopy(tiny_tokenizer()).backend_tokenizer
    backend.decoder = decoders.Metaspace()
    assert TokenBytes.of(backend) is None
