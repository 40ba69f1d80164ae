"""Tokenizers out of GGUF metadata."""

import string
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fttt.errors import UsageError
from fttt.models.chat import ChatFormat, check_tokenizer
from fttt.models.gguf.file import GGUFFile, open_gguf
from fttt.models.gguf.model import check_gguf, read_tokenizer
from fttt.models.gguf.tokenizer import make_tokenizer, stop_ids

SPACE = "\u2581"
TEMPLATE = (
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def pieces(tokenizer: Any, text: str) -> list[str]:
    found: list[str] = tokenizer.convert_ids_to_tokens(ids(tokenizer, text))
    return found


def byte_level(workshop: Any, extra: dict[str, int], **more: Any) -> Any:
    """A file whose vocabulary holds further tokens, each of its kind."""
    made = workshop.file().tokenizer(**more)
    tokens = made.writer.kv_data[0]["tokenizer.ggml.tokens"].value
    kinds = made.writer.kv_data[0]["tokenizer.ggml.token_type"].value
    for number, (token, kind) in enumerate(extra.items()):
        tokens[259 + number], kinds[259 + number] = token, kind
    return made.write()


def sentencepiece(
    workshop: Any,
    scored: dict[str, float],
    *,
    special: dict[str, int] | None = None,
    architecture: str = "llama",
    **more: Any,
) -> Any:
    """A file with pieces of given scores, bytes, and special tokens."""
    tokens = ["<unk>", *(special or {}), *(f"<0x{n:02X}>" for n in range(256)), *scored]
    kinds = [2, *(special or {}).values(), *[6] * 256, *[1] * len(scored)]
    scores = [0.0] * (len(tokens) - len(scored)) + list(scored.values())
    made = workshop.file(architecture)
    return made.tokenizer(
        TEMPLATE,
        model="llama",
        pre="default",
        tokens=tokens,
        token_type=kinds,
        scores=scores,
        merges=None,
        unknown_token_id=0,
        **more,
    ).write()


def test_special_tokens_are_what_the_file_says_of_each(workshop: Any) -> None:
    path = byte_level(workshop, {"<think>": 4, "<|tool|>": 3})
    tokenizer = read_tokenizer(path)
    text = "<think>\n 1 + 1</think><|tool|><|im_end|>"
    assert pieces(tokenizer, text)[0] == "<think>"
    assert pieces(tokenizer, text)[-2:] == ["<|tool|>", "<|im_end|>"]
    assert "</think>" not in pieces(tokenizer, text)  # no token of this file
    assert ChatFormat(tokenizer).decode(tuple(ids(tokenizer, text))) == "<think>\n 1 + 1</think>"


def test_every_token_that_ends_an_answer_is_known(workshop: Any) -> None:
    extra = {"<|eot_id|>": 3, "<end_of_turn>": 1, "</s>": 4, "<stop>": 3, "<|end|>": 4}
    path = byte_level(workshop, extra, eos_token_id=262, eot_token_id=1)
    # the file's own end, its end of a turn, what the vocabulary marks as one: no ordinary text
    assert stop_ids(open_gguf(path)) == (0, 1, 2, 259, 262, 263)


def test_a_thought_of_gpt_oss_ends_no_answer(workshop: Any) -> None:
    path = byte_level(workshop, {"<|return|>": 3, "<|call|>": 3, "<|end|>": 3})
    assert 261 not in stop_ids(open_gguf(path))


@pytest.mark.parametrize(
    ("words", "cut"),
    [
        ("gpt-2", ["x", " 12345", "'", "S", "\n ", " a"]),
        ("smollm", ["x", " ", "1", "2", "3", "4", "5", "'", "S", "\n ", " a"]),
        ("llama-bpe", ["x", " ", "123", "45", "'S", "\n", " ", " a"]),
        ("qwen2", ["x", " ", "1", "2", "3", "4", "5", "'S", "\n", " ", " a"]),
        ("tekken", ["x", " ", "1", "2", "3", "4", "5", "'S", "\n", " ", " a"]),
        ("deepseek-v3", ["x", " ", "123", "45", "'S", "\n", " ", " a"]),
    ],
)
def test_text_is_cut_into_words_by_the_rule_that_the_file_names(
    workshop: Any, words: str, cut: list[str]
) -> None:
    core = read_tokenizer(byte_level(workshop, {}, pre=words)).backend_tokenizer
    found = core.pre_tokenizer.pre_tokenize_str("x 12345'S\n  a")
    back = str.maketrans({"\u0120": " ", "\u010a": "\n"})
    assert [word.translate(back) for word, _ in found] == cut


def test_a_word_that_is_a_token_needs_no_merges_where_the_rule_says_so(workshop: Any) -> None:
    whole = read_tokenizer(byte_level(workshop, {"zebra": 1}, pre="llama-bpe"))
    assert pieces(whole, "zebra") == ["zebra"]


def test_merges_of_unknown_tokens_are_refused(workshop: Any) -> None:
    with pytest.raises(UsageError, match=r"no tokenizer \(.*`ac` out of vocabulary\)"):
        read_tokenizer(workshop.llama(merges=["a c"]))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"pre": "mystery"}, "'mystery'"),
        ({"pre": None}, "None"),
        ({"model": "bert"}, "'bert'.*'gpt2'"),
        ({"merges": None}, "no tokenizer.ggml.merges"),
        ({"model": "llama"}, "no tokenizer.ggml.scores"),
    ],
)
def test_a_tokenizer_that_cannot_be_made_is_refused_by_the_metadata(
    workshop: Any, more: dict[str, Any], says: str
) -> None:
    path = workshop.llama(**more)
    with pytest.raises(UsageError, match=says):
        check_gguf(path)


def joined(text: str, scored: dict[str, float]) -> list[str]:
    """SentencePiece's own way: join the best scored neighbours, the leftmost of equals first."""
    parts = list(text)
    while True:
        best = max(
            ((scored[a + b], -n) for n, (a, b) in enumerate(pairwise(parts)) if a + b in scored),
            default=None,
        )
        if best is None:
            return parts
        n = -best[1]
        parts[n : n + 2] = [parts[n] + parts[n + 1]]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_pieces_are_joined_as_sentencepiece_joins_them(data: st.DataObject) -> None:
    letters = "abc" + SPACE
    longer = data.draw(st.lists(st.text(letters, min_size=2, max_size=4), unique=True, max_size=12))
    scored = {letter: -100.0 - n for n, letter in enumerate(letters)}
    scored |= {piece: -float(n) for n, piece in enumerate(longer)}
    tokens = ["<unk>", *scored]
    file = GGUFFile(
        Path("made.gguf"),
        {
            "general.architecture": "llama",
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": np.array([2] + [1] * len(scored)),
            "tokenizer.ggml.scores": np.array([0.0, *scored.values()], np.float32),
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.add_space_prefix": False,
        },
        {},
    )
    text = data.draw(st.text("abc ", max_size=12))
    found = pieces(make_tokenizer(file), text)
    expected = joined(text.replace(" ", SPACE), scored)
    assert "".join(found) == "".join(expected)
    assert found == expected


WORDS = {letter: -50.0 - n for n, letter in enumerate(string.ascii_letters + string.punctuation)}
WORDS |= {digit: -200.0 - n for n, digit in enumerate(string.digits)}
WORDS |= {SPACE: -40.0, SPACE * 2: -1.0, SPACE * 4: -0.5, "ab": -2.0, SPACE + "ab": -3.0}
TURNS = {"<start_of_turn>": 3, "<end_of_turn>": 3}


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_tokenizer_keeps_text_and_special_tokens(
    workshop: Any, prefix: bool
) -> None:
    special = TURNS if prefix else {**TURNS, "\n\n": 4}
    path = sentencepiece(workshop, WORDS, special=special, add_space_prefix=prefix, eos_token_id=2)
    tokenizer = read_tokenizer(path)
    chat = ChatFormat(tokenizer)
    check_tokenizer(chat, "tiny")
    assert pieces(tokenizer, "ab") == ([SPACE + "ab"] if prefix else ["ab"])
    assert ("\n\n" in pieces(tokenizer, "<start_of_turn>\n\n")) is not prefix
    assert chat.end_ids == {2}
    for text in ["    return ab", " ab", "ab", "", "\n  é 日"]:
        assert chat.decode(chat.encode_within(text)) == text
    assert len(chat.encode("    ")) == (2 if prefix else 1)


def test_tokens_of_phi_3_take_the_space_behind_them(workshop: Any) -> None:
    special = {"<|user|>": 4, "<|end|>": 3, "<s>": 3}
    path = sentencepiece(workshop, WORDS, special=special, architecture="phi3")
    tokenizer = read_tokenizer(path)
    assert pieces(tokenizer, "<|user|>\nab<|end|>\n") == ["<|user|>", SPACE + "ab", "<|end|>"]
    assert pieces(tokenizer, "<s>\n")[-1] == "<0x0A>"


def test_text_begins_with_the_token_for_that_where_the_file_says_so(workshop: Any) -> None:
    plain = read_tokenizer(byte_level(workshop, {}, bos_token_id=1))
    framed = read_tokenizer(byte_level(workshop, {}, bos_token_id=1, add_bos_token=True, name=None))
    assert plain("a")["input_ids"] == ids(plain, "a")
    assert framed("a")["input_ids"] == [1, *ids(framed, "a")]


def test_a_large_vocabulary_is_read_out_of_reach_of_the_hub(
    workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``transformers`` would look for a configuration at the place that a tokenizer is named by."""
    made = workshop.file().tokenizer()
    tokens = made.writer.kv_data[0]["tokenizer.ggml.tokens"].value
    kinds = made.writer.kv_data[0]["tokenizer.ggml.token_type"].value
    tokens += [f"<piece {n}>" for n in range(100_001)]
    kinds += [1] * 100_001
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    file = open_gguf(made.write())
    read = make_tokenizer(file)
    assert len(read) > 100_000
    assert read.name_or_path == str(file.path)
    assert read.decode(ids(read, "two words")) == "two words"
