"""The tokenizer that a GGUF file's metadata describe, as a tokenizer of ``transformers``.

Two kinds are read: byte-level BPE, whose merges the file holds and whose rule to split text into
words it only names (``tokenizer.ggml.pre``); and SentencePiece's BPE, whose merges follow from the
scores of its pieces. The file says of each token whether it is special, so that ``<think>`` is one
token wherever the model has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fttt.errors import UsageError
from fttt.models.gguf.file import GGUFFile

__all__ = ["chat_template", "check_tokenizer_kind", "make_tokenizer", "stop_ids"]

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED = 1, 2, 3, 4, 5
_SPACE = "\u2581"

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = _CASED % (f"{_CONTRACTIONS}?", f"{_CONTRACTIONS}?", "{1,3}")
_TEKKEN = _CASED % ("", "", "")
_SEED = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}"
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_DEEPSEEK_CODER = (
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    r"\p{N}",
)

_GPT2 = "gpt2"
"""GPT-2's rule, which the tokenizers package has built in."""
_DIGITS = "digits"
"""Each digit by itself."""
_FALCON = "falcon"

_WORDS: Mapping[str, tuple[str, ...]] = {
    "bloom": (_BLOOM,),
    "chatglm-bpe": (_LLAMA3,),
    "codeshell": (_DIGITS, _GPT2),
    "command-r": (_DIGITS, _GPT2),
    "dbrx": (_LLAMA3,),
    "deepseek-coder": _DEEPSEEK_CODER,
    "deepseek-r1-qwen": (_QWEN2,),
    "deepseek-v3": _DEEPSEEK3,
    "exaone": (_DIGITS, _GPT2),
    "exaone4": (_GPT2,),
    "falcon": (_FALCON,),
    "falcon-h1": (_LLAMA3,),
    "falcon3": (_LLAMA3,),
    "gigachat": (_GPT2,),
    "glm4": (_LLAMA3,),
    "gpt-2": (_GPT2,),
    "gpt-4o": (_GPT4O,),
    "gpt3-finnish": (_BLOOM,),
    "granite-docling": (_GPT2,),
    "hunyuan": (_QWEN2,),
    "hunyuan-dense": _DEEPSEEK3,
    "jais": (_GPT2,),
    "kanana2": (_GPT4O,),
    "lfm2": (_LLAMA3,),
    "llama-bpe": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama4": (_GPT4O,),
    "megrez": (_QWEN2,),
    "mellum": (_GPT2,),
    "midm-2.0": (_LLAMA3,),
    "minerva-7b": (_DIGITS, _GPT2),
    "minimax-m2": (_GPT4O,),
    "mpt": (_GPT2,),
    "olmo": (_GPT2,),
    "phi-2": (_GPT2,),
    "pixtral": (_LLAMA3,),
    "poro-chat": (_BLOOM,),
    "qwen2": (_QWEN2,),
    "qwen35": (_QWEN35,),
    "refact": (_DIGITS, _GPT2),
    "seed-coder": (_SEED,),
    "smaug-bpe": (_LLAMA3,),
    "smollm": (_DIGITS, _GPT2),
    "stablelm2": (_QWEN2,),
    "starcoder": (_DIGITS, _GPT2),
    "tekken": (_TEKKEN,),
    "trillion": (_GPT2,),
    "viking": (_BLOOM, _DIGITS),
}
"""How text is split into words, by the file's name for the rule."""
_WHOLE_WORDS = frozenset(
    {"falcon-h1", "falcon3", "lfm2", "llama-bpe", "llama-v3", "llama3", "midm-2.0", "pixtral"}
    | {"tekken"}
)
"""Rules under which a word that is in the vocabulary is one token, whatever the merges say."""
_STARTS = _WHOLE_WORDS
"""Rules under which a text starts with the beginning-of-sequence token by default."""
_COMPOSED = frozenset({"command-r", "olmo", "qwen2", "qwen35"})
"""Rules that first normalise text to Unicode's composed form."""

_ENDS = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>"}
    | {"<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>"}
    | {"<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "[e~["}
    | {"<\uff5cend\u2581of\u2581sentence\uff5c>"}  # DeepSeek's
)
"""Special tokens that end an answer in any model that has them."""


def check_tokenizer_kind(file: GGUFFile) -> None:
    """Refuse, from the metadata alone, a tokenizer that cannot be made.

    Raises:
        UsageError: its kind is not supported, or its vocabulary is missing.
    """
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind not in {"gpt2", "llama"}:
        file.refuse(
            f"has a tokenizer of the kind {kind!r}, which is not supported",
            "supported are 'gpt2' (byte-level BPE) and 'llama' (SentencePiece); or use the model "
            "as safetensors",
        )
    lists = ["tokens", "token_type", "merges" if kind == "gpt2" else "scores"]
    for name in lists:
        if f"tokenizer.ggml.{name}" not in file.metadata:
            file.refuse(
                f"has no tokenizer.ggml.{name}", "convert the model again with a current converter"
            )
    if kind == "gpt2":
        words = file.metadata.get("tokenizer.ggml.pre")
        if words not in _WORDS:
            file.refuse(
                f"splits text into words by {words!r} (tokenizer.ggml.pre), which is not supported",
                "convert the model again with a current converter, or use it as safetensors",
            )


def chat_template(file: GGUFFile) -> str | None:
    """The chat template beside a file (``chat_template.jinja``), else that within it.

    Raises:
        UsageError: the one beside it cannot be read.
    """
    beside = file.path.with_name("chat_template.jinja")
    try:
        if beside.is_file():
            return beside.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read the chat template {str(beside)!r}: {error}.") from error
    return file.metadata.get("tokenizer.chat_template")


def make_tokenizer(file: GGUFFile) -> Any:
    """A ``transformers`` tokenizer.

    Raises:
        UsageError: its kind is not supported.
    """
    from tokenizers import AddedToken

    check_tokenizer_kind(file)
    tokens, kinds = _tokens(file)
    pieces = file.metadata["tokenizer.ggml.model"] == "llama"
    try:
        core = _sentencepiece(file, tokens, kinds) if pieces else _bytes(file, tokens)
    except Exception as error:  # the tokenizers package has no class of its own for them
        file.refuse(f"describes no tokenizer ({error})", "check that it was converted whole")
    strips = pieces and file.architecture == "phi3"
    core.add_tokens(
        [
            AddedToken(
                tokens[n],
                special=bool(kinds[n] == _CONTROL),
                normalized=False,
                rstrip=strips and tokens[n] not in {"<unk>", "<s>", "<|endoftext|>"},
            )
            for n in _where(kinds, _CONTROL, _USER)
        ]
    )
    _add_ends(file, core, tokens, starts=pieces or file.metadata["tokenizer.ggml.pre"] in _STARTS)
    named = {
        f"{role}_token": tokens[number]
        for role in ("bos", "eos", "unk", "pad")
        if (number := _special(file, role)) is not None
    }
    transformers: Any = import_module("transformers")
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        clean_up_tokenization_spaces=False,
        **named,
    )
    made.name_or_path = str(file.path)  # given above, its configuration would be asked for
    made.chat_template = chat_template(file)
    return made


def _add_ends(file: GGUFFile, core: Any, tokens: Sequence[str], *, starts: bool) -> None:
    """Add the tokens that the model expects at the start and the end of plain text."""
    from tokenizers import processors

    frame: list[str] = ["$A"]
    used: list[tuple[str, int]] = []
    for role, default in (("bos", starts), ("eos", False)):
        number = _special(file, role)
        if number is not None and file.metadata.get(f"tokenizer.ggml.add_{role}_token", default):
            frame.insert(0 if role == "bos" else len(frame), tokens[number])
            used.append((tokens[number], number))
    if used:
        core.post_processor = processors.TemplateProcessing(single=frame, special_tokens=used)


def stop_ids(file: GGUFFile) -> tuple[int, ...]:
    """Every token that ends an answer: those that the file names, and those known by their text."""
    tokens, kinds = _tokens(file)
    named = {_special(file, role) for role in ("eos", "eot", "eom")}
    known = {
        n
        for n in _where(kinds, _CONTROL, _USER)
        if tokens[n] in _ENDS and (kinds[n] == _CONTROL or tokens[n].startswith("<|"))
    }
    texts = {tokens[n]: n for n in known}
    if {"<|return|>", "<|call|>"} <= texts.keys():  # gpt-oss ends its thoughts by <|end|>
        known -= {texts.get("<|end|>", -1)}
    return tuple(sorted(known | {n for n in named if n is not None}))


def _special(file: GGUFFile, role: str) -> int | None:
    names = {"unk": "unknown", "pad": "padding"}
    number = file.metadata.get(f"tokenizer.ggml.{names.get(role, role)}_token_id")
    if number is None or not 0 <= number < len(file.metadata["tokenizer.ggml.tokens"]):
        return None
    return int(number)


def _tokens(file: GGUFFile) -> tuple[list[str], NDArray[Any]]:
    """The vocabulary and the kind of each token; one that stands in it again gets a name."""
    seen: set[str] = set()
    tokens: list[str] = []
    for number, token in enumerate(file.metadata["tokenizer.ggml.tokens"]):
        own = token if token and token not in seen else f"[TOKEN {number}]"
        seen.add(own)
        tokens.append(own)
    return tokens, file.metadata["tokenizer.ggml.token_type"]


def _where(kinds: NDArray[Any], *wanted: int) -> list[int]:
    """Ids of the tokens of some kinds."""
    return [int(n) for n in np.flatnonzero(np.isin(kinds, wanted))]


def _bytes(file: GGUFFile, tokens: Sequence[str]) -> Any:
    """Byte-level BPE."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    name = file.metadata["tokenizer.ggml.pre"]
    merges = [tuple(m.split(" ", 1)) for m in file.metadata["tokenizer.ggml.merges"]]
    core = Tokenizer(
        models.BPE(
            vocab={token: n for n, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=name in _WHOLE_WORDS,
        )
    )
    if name in _COMPOSED:
        core.normalizer = normalizers.NFC()
    core.pre_tokenizer = _words(_WORDS[name])
    core.decoder = decoders.ByteLevel()
    return core


def _words(steps: Sequence[str]) -> Any:
    """What cuts text into words, each step within the pieces of the one before."""
    from tokenizers import Regex, pre_tokenizers

    made: list[Any] = []
    for step in steps:
        if step == _DIGITS:
            made.append(pre_tokenizers.Digits(individual_digits=True))
        elif step == _FALCON:
            made.append(pre_tokenizers.Punctuation(behavior="contiguous"))
            made.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
            made.append(pre_tokenizers.Digits(individual_digits=False))
            made.append(pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"))
            return pre_tokenizers.Sequence(made)
        elif step != _GPT2:
            made.append(pre_tokenizers.Split(Regex(step), "isolated"))
    own = _GPT2 in steps
    made.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own))
    return pre_tokenizers.Sequence(made)


def _sentencepiece(file: GGUFFile, tokens: Sequence[str], kinds: NDArray[Any]) -> Any:
    """SentencePiece's BPE, with bytes for what no piece spells."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = file.metadata["tokenizer.ggml.scores"]
    unknown = _special(file, "unk")
    core = Tokenizer(
        models.BPE(
            vocab={token: n for n, token in enumerate(tokens)},
            merges=_merges(tokens, kinds, scores),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(file.metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces: list[Any] = [normalizers.Replace(" ", _SPACE)]
    back: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        spaces.insert(0, normalizers.Prepend(_SPACE))
        back.append(decoders.Strip(" ", 1, 0))
    core.normalizer = normalizers.Sequence(spaces)
    core.decoder = decoders.Sequence(back)
    return core


def _merges(
    tokens: Sequence[str], kinds: NDArray[Any], scores: NDArray[Any]
) -> list[tuple[str, str]]:
    """Pairs of pieces that make a piece, the best scored first.

    SentencePiece joins, again and again, the neighbours that make the piece of the highest score.
    """
    place = {tokens[n]: n for n in _where(kinds, _NORMAL)}
    found: list[tuple[str, str]] = []
    whole: list[int] = []
    for token, number in place.items():
        for cut in range(len(token) - 1, 0, -1):  # of equals the leftmost comes first
            if token[:cut] in place and token[cut:] in place:
                found.append((token[:cut], token[cut:]))
                whole.append(number)
    order = np.argsort(-scores[np.array(whole, np.int64)], kind="stable")
    return [found[n] for n in order]
