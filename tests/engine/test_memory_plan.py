"""The plan of the memory."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fttt.engine import BatchedEngine, LoRASpec
from fttt.engine.adapters.lora import LoRABank, target_layers
from fttt.engine.cache import KVCache, read_heads
from fttt.engine.memory_plan import plan_memory
from fttt.engine.selfcheck import check_outputs
from fttt.errors import RunError, UsageError
from fttt.testing import tiny_model


def plan(device: str = "cpu", **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "max_length": 200, "batch_size": None, "concurrency": 50, "adapter": LoRASpec(),
    }  # fmt: skip
    loaded = replace(tiny_model(), device=device)
    return plan_memory(loaded, **{**settings, **changes})


def test_the_plan_follows_the_questions_in_progress() -> None:
    assert plan(adapter=None).rows == plan(adapter=None).batch_size == 16
    assert plan().rows == 32  # as many again wait for a train step
    assert plan().slots == 50
    assert plan(concurrency=3).rows == plan(concurrency=3).batch_size == 3
    assert plan(batch_size=40).batch_size == 40
    assert plan().capacity >= 200


def test_the_plan_counts_what_is_allocated() -> None:
    made = plan()
    held = KVCache(
        rows=made.rows, capacity=made.capacity, heads=read_heads(tiny_model().model),
        dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip
    parts = [*held.keys.values(), *held.values.values(), held.table_RP]
    assert made.cache_bytes == sum(part.nbytes for part in parts)
    layers = target_layers(tiny_model().model, LoRASpec()).values()
    parameters = sum(4 * (layer.in_features + layer.out_features) for layer in layers)
    assert made.adapter_bytes == 50 * parameters * 4 * 4  # weights, two moments, and a copy
    assert "50 adapters" in made.describe()


def test_what_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fttt.engine.memory_plan.free_bytes", lambda device: 2**29)
    small = plan(concurrency=10**6)
    assert small.batch_size == 16
    assert small.slots < 10**6  # questions wait for a slot rather than fail
    assert small.total_bytes - small.weight_bytes <= 2**29
    sentence = r"lower --batch-size to (\d+), which fits, or lower --max-new-tokens"
    with pytest.raises(UsageError, match=sentence) as refused:
        plan(batch_size=10**6, concurrency=10**6)
    found = re.search(sentence, str(refused.value))
    assert found is not None
    largest = int(found[1])
    assert plan(batch_size=largest, concurrency=10**6).batch_size == largest
    with pytest.raises(UsageError, match=f"--batch-size to {largest}, which fits"):
        plan(batch_size=largest + 1, concurrency=10**6)
    with pytest.raises(UsageError, match=r"lower --trials to \d+, which fits"):
        plan(batch_size=10**5, beams=10**5, adapter=None, concurrency=1)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("[x.cpp] can't allocate memory: no")]
)
def test_memory_that_another_process_takes_meanwhile_is_told(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    loaded = tiny_model()
    check_outputs(loaded.model, loaded.name)  # which would fail likewise
    monkeypatch.setattr(KVCache, "of", fails)
    with pytest.raises(RunError, match=r"^cpu ran out of memory as the engine was made; lower --b"):
        BatchedEngine(loaded, max_length=64)
    error.args = ("something else",)
    if not isinstance(error, torch.OutOfMemoryError):
        with pytest.raises(RuntimeError, match="something else"):
            BatchedEngine(loaded, max_length=64)


def test_rows_that_do_not_fit_at_full_length_share_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"max_length": 1000, "concurrency": 16, "adapter": None}
    whole = plan(**asked)
    assert (whole.page, whole.pages, whole.longest) == (whole.capacity, 16, 16)
    assert f"16 rows of {whole.capacity} tokens" in whole.describe()
    free = whole.total_bytes - whole.weight_bytes - whole.cache_bytes // 2
    monkeypatch.setattr("fttt.engine.memory_plan.free_bytes", lambda device: free)
    for batch_size in (None, 16):
        made = plan(**asked, batch_size=batch_size)
        assert (made.batch_size, made.page) == (16, 64)
        assert 6 <= made.longest <= 8
        assert made.total_bytes - made.weight_bytes <= free
        each = made.pages * 64 // 16
        assert f"{each} tokens each, or {made.longest} of {made.capacity}" in made.describe()
    monkeypatch.setattr(
        "fttt.engine.memory_plan.free_bytes", lambda device: whole.working_bytes + 16 * 2**15
    )
    with pytest.raises(UsageError, match="64 sequences of 1000 tokens"):
        plan(**{**asked, "concurrency": 64}, batch_size=64)
    few = plan(**asked, batch_size=None)
    assert few.batch_size < 16
    assert few.longest >= 1


def test_the_last_row_for_a_finished_sequence_is_given_up_before_a_batch_size_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    least = plan(batch_size=4, concurrency=4)
    free = least.total_bytes - least.weight_bytes
    monkeypatch.setattr("fttt.engine.memory_plan.free_bytes", lambda device: free)
    assert plan(batch_size=4, concurrency=5, adapters=4) == least


def test_one_question_learns_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    alone: dict[str, Any] = {"max_length": 64, "batch_size": 1, "concurrency": 1}
    usual = plan(**alone)
    assert usual.train_tokens == 1024
    free = usual.total_bytes - usual.weight_bytes
    monkeypatch.setattr("fttt.engine.memory_plan.free_bytes", lambda device: free - 1)
    small = plan(**alone)
    assert (small.train_tokens, small.rows, small.slots) == (64, 1, 1)
    assert small.total_bytes < usual.total_bytes
    monkeypatch.setattr("fttt.engine.memory_plan.free_bytes", lambda device: 2**20)
    with pytest.raises(UsageError, match=r"^1 sequence of 64 tokens and 1 adapter of .* free some"):
        plan(**alone)


def test_passes_of_a_gpu_that_others_use_are_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda device: SimpleNamespace(total_memory=2**30)
    )
    free, sizes = 2**30, []
    monkeypatch.setattr("fttt.engine.memory_plan.free_bytes", lambda device: free)
    for _ in range(3):
        made = plan("cuda", max_length=64, batch_size=4, concurrency=4)
        needed = made.total_bytes - made.weight_bytes
        assert needed <= free
        sizes.append((made.batch_size, made.train_tokens, made.prefill_tokens))
        free = needed
    assert [size[0] for size in sizes] == [4, 4, 4]
    assert sizes[0][1] > 1024 > sizes[2][1] == 64
    assert sizes[0][2] > sizes[1][2] > sizes[2][2] == 2048


def test_half_of_a_gpus_lanes_at_most_are_given_up_for_larger_train_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where that is not enough for them, all lanes run beside the smallest passes."""
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda device: SimpleNamespace(total_memory=2**30)
    )
    monkeypatch.setattr("fttt.engine.adapters.lora.can_capture", lambda model: True)
    free = 2**30
    monkeypatch.setattr("fttt.engine.memory_plan.free_bytes", lambda device: free)

    def sizes(batch_size: int | None) -> list[tuple[int, int]]:
        """Lanes and tokens of a train pass, with less and less memory."""
        nonlocal free
        free, found = 2**30, []
        with suppress(UsageError):
            while True:
                made = plan("cuda", max_length=1000, concurrency=1024, batch_size=batch_size)
                found.append((made.batch_size, made.train_tokens))
                free = (made.total_bytes - made.weight_bytes) * 99 // 100
        return found

    chosen, asked = sizes(None), sizes(1024)
    least = min(tokens for _, tokens in chosen)
    larger = [lanes for lanes, tokens in chosen if tokens > least]
    assert max(larger) == 1024
    assert 1024 * 7 // 16 <= min(larger) < 1024
    assert max(lanes for lanes, tokens in chosen if tokens == least) > min(larger)
    assert {lanes for lanes, _ in asked} == {1024}
    assert min(tokens for _, tokens in asked) == least


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_share_of_the_memory_holds_the_weights_and_all_that_is_planned(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what else the process has there; another run may take the rest."""
    total, held = 2**30, 2**28
    where = "fttt.engine.memory_plan"
    monkeypatch.setattr(f"{where}.free_bytes", lambda device: total - held)
    monkeypatch.setattr(f"{where}.total_bytes", lambda device: total)
    monkeypatch.setattr(f"{where}.held_here", lambda device: held)
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda device: SimpleNamespace(total_memory=total)
    )
    asked: dict[str, Any] = {"max_length": 2000, "concurrency": 2000, "batch_size": 400}

    def needed(share: float | None) -> int:
        made = plan(device, **asked, share=share)
        return int(made.total_bytes - made.weight_bytes)

    all_of_it = needed(None)
    assert needed(1) == all_of_it
    for share in (0.9, 0.7):
        assert needed(share) <= share * total - held < all_of_it
    monkeypatch.setattr(f"{where}.free_bytes", lambda device: total // 2)  # others have the rest
    assert needed(0.9) <= total // 2
    with pytest.raises(UsageError, match=rf"0\.5 GiB are free on {device}; lower --batch-size to"):
        plan(device, **{**asked, "concurrency": 10**6, "batch_size": 10**6}, share=0.9)
    said = r"of the --memory-share of 0.25 are left on .*; raise --memory-share or lower --max-new"
    with pytest.raises(UsageError, match=f"and 0.0 GiB {said}"):
        plan(device, **asked, share=0.25)
    said = r"--memory-share of 0.6 are left .*; raise --memory-share, lower --batch-size to \d+, wh"
    with pytest.raises(UsageError, match=said):
        plan(device, **{**asked, "concurrency": 10**6, "batch_size": 10**6}, share=0.6)
    monkeypatch.setattr(f"{where}.held_here", lambda device: 0)  # weights are not read yet
    weights = plan(device, **asked).weight_bytes
    with pytest.raises(UsageError, match=r"0.0 GiB of the --memory-share .* --max-new-tokens\.$"):
        plan(device, **asked, share=weights / total)


def test_adapters_are_as_many_as_are_wanted_or_fit_and_never_fewer_than_the_least(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert plan(adapters=3).slots == 3
    assert plan(adapters=100).slots == 100
    assert plan(adapters=3, least_adapters=4).slots == 4
    assert plan(adapter=None, adapters=3).slots == 0
    usual = plan(concurrency=8, adapters=8)
    free = usual.total_bytes - usual.weight_bytes
    monkeypatch.setattr("fttt.engine.memory_plan.free_bytes", lambda device: free)
    assert plan(concurrency=8, adapters=8 * 10**4, least_adapters=9).slots < 8 * 10**4
    with pytest.raises(UsageError, match=r"80000 adapters of .* lower rank or on fewer layers"):
        plan(concurrency=8, adapters=8 * 10**4, least_adapters=8 * 10**4)


def test_a_plan_counts_what_the_target_layers_are_given() -> None:
    few, many = (
        plan(adapter=LoRASpec(targets=targets)) for targets in [("q_proj",), ("all-linear",)]
    )
    model = tiny_model().model
    inputs = [
        sum(layer.in_features for layer in target_layers(model, made).values())
        for made in (LoRASpec(targets=("q_proj",)), LoRASpec(targets=("all-linear",)))
    ]
    more = 1.25 * 8 * (inputs[1] - inputs[0]) * few.train_tokens
    assert many.working_bytes - few.working_bytes > 0.99 * more
    heads = [n for n in target_layers(model, LoRASpec(targets=("all-linear",))) if "head" in n]
    assert heads == []


def test_a_gpu_holds_the_inputs_of_target_layers_in_their_own_dtype(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, spec = tiny_model().model, LoRASpec()
    inputs = sum(layer.in_features for layer in target_layers(model, spec).values())
    on_cpu = LoRABank.needs(model, spec, 1000)
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    on_gpu = LoRABank.needs(model, spec, 1000)
    assert on_cpu.token - on_gpu.token == (8 - 4) * inputs
    assert on_gpu.long_token < on_cpu.long_token


def test_an_unknown_projection_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"No linear layer 'query'.*q_proj"):
        target_layers(tiny_model().model, LoRASpec(targets=("query",)))
