"""The check of a model's outputs finds what the engine would do wrong, and nothing else."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fttt.engine import BatchedEngine, attention, check_outputs, selfcheck
from fttt.engine.adapters.lora import LoRABank
from fttt.engine.batch import Batch, Segment
from fttt.engine.cache import KVCache, read_heads
from fttt.engine.selfcheck import find_difference
from fttt.engine.states import States
from fttt.errors import UsageError
from fttt.testing import tiny_model
from fttt.testing.tiny_models import random_family

FAMILIES = ("llama", "mistral", "qwen", "qwen3", "gemma", "gemma2", "gemma3")


@pytest.fixture(autouse=True)
def _own_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of any model yet."""
    monkeypatch.setenv("FTTT_CACHE", str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_is_run_rightly_passes_and_is_left_as_it_was(
    family: str, dtype: torch.dtype
) -> None:
    model = tiny_model(family, seed=3).model.to(dtype)
    window = getattr(model.config, "sliding_window", None)
    before = model.config._attn_implementation
    assert find_difference(model) is None
    assert model.config._attn_implementation == before
    assert getattr(model.config, "sliding_window", None) == window
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def _windowed(**more: Any) -> Any:
    """A Mistral whose window, as those of real models, is far longer than the check's prompts."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=272, hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3, sliding_window=4096,
        **more,
    )  # fmt: skip
    return MistralForCausalLM(config).eval().requires_grad_(False)


def _no_window(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attention.Reach, "visible", lambda _, key_at, query_at: key_at <= query_at)


def _window_of_one_more(patch: pytest.MonkeyPatch) -> None:
    def visible(self: attention.Reach, key_at: Tensor, query_at: Tensor) -> Tensor:
        assert self.window is not None
        return (key_at <= query_at) & (key_at >= query_at - self.window)

    patch.setattr(attention.Reach, "visible", visible)


def _neighbours_share_a_row(patch: pytest.MonkeyPatch) -> None:
    right = KVCache.write

    def write(self: KVCache, layer: int, row_N: Tensor, *rest: Tensor) -> None:
        right(self, layer, row_N.clamp(max=0), *rest)

    patch.setattr(KVCache, "write", write)


def _no_softcap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        attention,
        "_softmax_attention",
        lambda q, k, v, seen, own: torch.nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=seen.visible.repeat(1, 1, q.shape[2] // seen.visible.shape[2], 1),
            scale=own.scaling,
        ),
    )


def _later_by_one(patch: pytest.MonkeyPatch) -> None:
    right = Batch.pack

    def pack(mode: Any, segments: Any, cache: KVCache) -> Batch:
        batch = right(mode, segments, cache)
        if mode == "decode":
            batch.position_N = batch.position_N + 1
        return batch

    patch.setattr(Batch, "pack", pack)


def _adapters_for_all(patch: pytest.MonkeyPatch) -> None:
    right = LoRABank._gather

    def gather(self: LoRABank, batch: Batch) -> tuple[Tensor, ...]:
        batch.slots = tuple(max(slot, 0) for slot in batch.slots)
        return right(self, batch)

    patch.setattr(LoRABank, "_gather", gather)


def _past_unseen_in_train_passes(patch: pytest.MonkeyPatch) -> None:
    right = attention._train

    def train(q: Tensor, k: Tensor, v: Tensor, own: Any) -> Tensor:
        own.batch.past_B = own.batch.past_B.clamp(max=1)
        return right(q, k, v, own)

    patch.setattr(attention, "_train", train)


def _table_unread(patch: pytest.MonkeyPatch) -> None:
    right = attention._decode_scattered

    def decode(q: Tensor, own: Any) -> Tensor:
        own.batch.row_of_BS = own.batch.row_B[:, None].expand_as(own.batch.row_of_BS)
        return right(q, own)

    patch.setattr(attention, "_decode_scattered", decode)


def _state_of_its_own_row(patch: pytest.MonkeyPatch) -> None:
    right = States.read

    def read(self: States, number: int, row_B: Tensor, begins: Any = ()) -> Any:
        own = torch.arange(len(row_B)) if not begins else row_B  # whatever the table says
        return right(self, number, own, begins)

    patch.setattr(States, "read", read)


def _ends_unseen(patch: pytest.MonkeyPatch) -> None:
    """Sequences laid end to end see the one before."""
    right = attention._train

    def train(q: Tensor, k: Tensor, v: Tensor, own: Any) -> Tensor:
        if max(own.batch.pasts) == 0:
            ids = tuple(own.batch.token_ids_N.tolist())
            whole = Batch.pack("train", [Segment(ids, -1, 0)], own.batch.cache)
            own = replace(own, batch=whole)
        return right(q, k, v, own)

    patch.setattr(attention, "_train", train)


def _low_rank_weights_lost(patch: pytest.MonkeyPatch) -> None:
    """In decode steps beside a row without any."""
    right = Batch.pack

    def pack(mode: Any, segments: Any, cache: KVCache) -> Batch:
        if mode == "decode":
            segments = [replace(segment, slot=-1) for segment in segments]
        return right(mode, segments, cache)

    patch.setattr(Batch, "pack", pack)


def _no_chunk(patch: pytest.MonkeyPatch) -> None:
    """In decode steps: a token that begins a chunk sees the one before."""
    right = attention._decode

    def decode(q: Tensor, own: Any) -> Tensor:
        return right(q, replace(own, reach=replace(own.reach, chunk=None)))

    patch.setattr(attention, "_decode", decode)


@pytest.mark.parametrize(
    ("make", "spoil", "named"),
    [
        (_windowed, _no_window, "prefill of a prompt alone"),
        (_windowed, _window_of_one_more, "prefill of a prompt alone"),
        (lambda: tiny_model("gemma2").model, _no_softcap, "prefill of a prompt alone"),
        (lambda: tiny_model().model, _later_by_one, "decoding after a prompt alone"),
        (lambda: tiny_model().model, _neighbours_share_a_row, "beside a longer one"),
        (lambda: tiny_model().model, _adapters_for_all, "low-rank weights"),
        (lambda: tiny_model().model, _past_unseen_in_train_passes, "a train pass"),
        (lambda: tiny_model().model, _table_unread, "decoding through a table of rows"),
        (lambda: tiny_model("lfm2").model, _state_of_its_own_row, "through a table of rows"),
        (lambda: tiny_model().model, _ends_unseen, "two sequences end to end"),
        (lambda: tiny_model().model, _low_rank_weights_lost, "decoding with low-rank weights"),
        (lambda: random_family("llama4_text"), _no_chunk, "decoding after a prompt alone"),
    ],
)
def test_what_the_engine_does_wrong_is_found_and_named(
    make: Callable[[], Any],
    spoil: Callable[[pytest.MonkeyPatch], None],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make()
    assert find_difference(model) is None
    spoil(monkeypatch)
    fault = find_difference(model)
    assert fault is not None
    assert named in fault


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"s_other": torch.zeros(4)}, "takes 's_other'"),
        ({"is_causal": False}, "not causal"),
        ({"dropout": 0.1}, "dropout .0.1."),
        ({"attention_mask": torch.zeros(1)}, "mask of its own"),
    ],
)
def test_an_argument_that_attention_does_not_know_is_refused(
    asked: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AttentionInterface

    loaded = tiny_model(seed=5)
    own_mask = asked.pop("attention_mask", None)

    def asking(module: Any, q: Any, k: Any, v: Any, mask: Any, **others: Any) -> Any:
        return attention.attend(module, q, k, v, own_mask, **{**others, **asked})

    monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, asking)
    with pytest.raises(UsageError, match=named) as refused:
        BatchedEngine(loaded, max_length=64)
    said = str(refused.value)
    assert "LlamaForCausalLM" in said
    assert said.endswith(".")
    assert ". " not in said  # one sentence
    assert loaded.model.config._attn_implementation == "sdpa"


def test_what_passed_is_noted_and_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []

    def find(model: Any) -> None:
        tried.append(model)

    monkeypatch.setattr(selfcheck, "find_difference", find)
    model = tiny_model().model
    check_outputs(model, "one")
    check_outputs(model, "one")
    check_outputs(tiny_model().model, "the same, loaded again")
    assert tried == [model]
    other = tiny_model(seed=1).model
    check_outputs(other, "other weights")
    check_outputs(tiny_model().model.bfloat16(), "another dtype")
    monkeypatch.setattr(selfcheck, "_own_code", lambda: "another version")
    check_outputs(tiny_model().model, "one")
    assert len(tried) == 4


def test_what_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model().model
    with monkeypatch.context() as patch:
        patch.setattr(selfcheck, "find_difference", lambda _: "decoding gives nonsense")
        for _ in range(2):
            with pytest.raises(
                UsageError, match=r"'one' .* not supported: decoding gives nonsense"
            ):
                check_outputs(model, "one")
    check_outputs(model, "one")


def test_a_cache_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FTTT_CACHE", str(tmp_path / "file"))
    check_outputs(tiny_model().model, "one")


def test_the_check_is_quick() -> None:
    model = tiny_model().model
    read_heads(model)  # a pass over two tokens, once a process
    passes: list[Any] = []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    begun = time.process_time()
    find_difference(model)
    assert time.process_time() - begun < 2
    assert len(passes) == 9  # each costs a reading of all weights


def test_another_choice_of_experts_is_rounding_and_no_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In bfloat16 some prompts of every such model meet one; a fault is met by all of them."""
    model = random_family("llama4_text").to(torch.bfloat16)
    tried: list[int] = []

    def chosen_otherwise(check: Any) -> str | None:
        tried.append(len(tried))
        return "far away" if len(tried) < 3 else None

    monkeypatch.setattr(selfcheck._Check, "run", chosen_otherwise)
    assert find_difference(model) is None
    monkeypatch.setattr(selfcheck._Check, "run", lambda _: "far away")
    assert find_difference(model) == "far away"
    tried.clear()
    monkeypatch.setattr(selfcheck._Check, "run", chosen_otherwise)
    assert find_difference(tiny_model("llama").model.to(torch.bfloat16)) == "far away"
