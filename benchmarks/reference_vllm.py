"""vLLM's side of ``benchmarks/vllm.py``: cases by ``vllm.LLM``, as its documentation calls it.

It is started with the interpreter that has vLLM, which need not have fttt, and is handed a job: a
JSON file that names the model's folder, the cases and where to write. A process makes one engine,
for the longest and the largest of its cases. Weights are drawn as ``transformers`` draws them, in
place of vLLM's own dummy ones, so that logits and the power that they draw are those of our side.
Written for vLLM 0.24.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import statistics
import sys
import time
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Any

RANK = 8
"""The least that holds adapters of rank 4: vLLM knows powers of two from 8 on, and 1."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 384, 512, 768, 1024)
"""Numbers of sequences whose decode steps are captured, beside the largest case's own."""


def random_prompts(job: dict[str, Any], case: dict[str, Any], seed: int) -> list[list[int]]:
    """Prompts of random tokens; the first few of a vocabulary are often special, and left out."""
    draw, vocabulary = random.Random(seed), job["shape"]["vocab_size"]
    count, length = case["questions"], case["prompt"]
    return [[draw.randrange(3, vocabulary) for _ in range(length)] for _ in range(count)]


def emit(job: dict[str, Any], **fields: Any) -> None:
    """One more line of the results, on disk at once, and of the log."""
    line = json.dumps({"side": job["side"], **fields})
    with Path(job["out"]).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line, flush=True)


def guarded(job: dict[str, Any], case: dict[str, Any], run: Any) -> None:
    """Run a case; its error is a line of the results, and the next case follows."""
    try:
        run()
    except Exception as error:
        traceback.print_exc()
        emit(job, case=case["name"], error=f"{type(error).__name__}: {str(error)[:400]}")


def make_engine(job: dict[str, Any]) -> Any:
    """The engine of all cases of the job, and a line about its start."""
    begun = time.perf_counter()
    from vllm import LLM, SamplingParams, __version__

    cases, cuda = job["cases"], job["device"] == "cuda"
    imported = time.perf_counter() - begun
    sequences = max(case["questions"] * case["samples"] for case in cases)
    adapters = max(case["questions"] * case["adapters"] for case in cases)
    more: dict[str, Any] = {}
    if adapters:
        more |= {
            "enable_lora": True, "max_loras": adapters, "max_cpu_loras": 2 * adapters,
            "max_lora_rank": RANK, "lora_target_modules": ["q_proj", "v_proj"],
        }  # fmt: skip
    if cuda:
        sizes = [size for size in SIZES if size < sequences]
        more["compilation_config"] = {"cudagraph_capture_sizes": [*sizes, sequences]}
        more["gpu_memory_utilization"] = job["utilization"]
    if job["backend"]:
        more["attention_backend"] = job["backend"]
    begun = time.perf_counter()
    engine = LLM(
        model=job["model"], load_format="dummy", skip_tokenizer_init=True, dtype=job["dtype"],
        max_model_len=max(case["prompt"] + case["new"] for case in cases) + 16,
        max_num_seqs=sequences, seed=0, enforce_eager=job["eager"], generation_config="vllm",
        **more,
    )  # fmt: skip
    made = time.perf_counter() - begun
    one = SamplingParams(max_tokens=1, ignore_eos=True, detokenize=False)
    engine.generate([{"prompt_token_ids": [5] * 16}], one, use_tqdm=False)
    first = time.perf_counter() - begun
    config = engine.llm_engine.vllm_config
    facts = {
        "version": __version__,
        "cudagraphs": str(config.compilation_config.cudagraph_mode),
        "asynchronous": bool(config.scheduler_config.async_scheduling),
        "batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "blocks": config.cache_config.num_gpu_blocks,
        "block": config.cache_config.block_size,
        "prefix_caching": bool(config.cache_config.enable_prefix_caching),
        "flashinfer_sampler": os.environ.get("VLLM_USE_FLASHINFER_SAMPLER") == "1",
        "engine_apart": os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1") != "0",
    }
    emit(
        job, event="start", cases=[case["name"] for case in cases], import_seconds=imported,
        start_seconds=made, first_token_seconds=first, facts=facts,
    )  # fmt: skip
    return engine


def in_workers(engine: Any, name: str) -> Any:
    """What a function of this file returns of the model, in whichever process that is.

    A function of the script itself could not be sent to another process by its name.
    """
    return engine.apply_model(getattr(importlib.import_module("reference_vllm"), name))[0]


def draw_weights(model: Any) -> int:
    """Weights as ``transformers`` draws them, in place, under the captured graphs."""
    import torch

    torch.manual_seed(0)
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            if "lora" not in name:
                data = parameter.data
                data.fill_(1.0) if data.dim() == 1 else data.normal_(0.0, 0.02)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return sum(parameter.numel() for parameter in model.parameters())


def held_bytes(model: Any) -> tuple[int, int]:
    """Most bytes of the device that tensors took, and that were taken from the device."""
    import torch

    if not torch.cuda.is_available():
        return 0, 0
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


class Adapters:
    """A folder of low-rank adapters as PEFT writes them, one a question, and their requests."""

    def __init__(self, engine: Any, job: dict[str, Any], count: int) -> None:
        self.engine, self.shape, self.count = engine, job["shape"], count
        self.root = Path(job["adapters"])

    def requests(self, *, again: bool = False) -> list[Any]:
        """What names each adapter; ``again`` where its folder has changed."""
        from vllm.lora.request import LoRARequest

        return [
            LoRARequest(f"q{n}", n + 1, str(self.root / f"q{n}"), load_inplace=again)
            for n in range(self.count)
        ]

    def change(self, version: int) -> tuple[float, float]:
        """Write all adapters anew and load them; the seconds of both."""
        made = [self._tensors(10_000 * version + n) for n in range(self.count)]
        begun = time.perf_counter()
        for n, tensors in enumerate(made):
            self._save(self.root / f"q{n}", tensors)
        wrote = time.perf_counter() - begun
        begun = time.perf_counter()
        for request in self.requests(again=version > 0):
            self.engine.llm_engine.add_lora(request)
        return wrote, time.perf_counter() - begun

    def _tensors(self, seed: int) -> dict[str, Any]:
        import torch

        shape = self.shape
        hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
        width = hidden // heads
        draw = torch.Generator().manual_seed(seed)
        tensors = {}
        for layer in range(shape["num_hidden_layers"]):
            for name, count in (("q_proj", heads), ("v_proj", shape["num_key_value_heads"])):
                at = f"base_model.model.model.layers.{layer}.self_attn.{name}"
                down = torch.randn(4, hidden, generator=draw) * hidden**-0.5
                up = torch.randn(count * width, 4, generator=draw) * 1e-3
                tensors[f"{at}.lora_A.weight"], tensors[f"{at}.lora_B.weight"] = down, up
        return tensors

    def _save(self, folder: Path, tensors: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, str(folder / "adapter_model.safetensors"))
        config = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 16,
            "lora_dropout": 0.0, "bias": "none", "target_modules": ["q_proj", "v_proj"],
            "modules_to_save": None, "base_model_name_or_path": "shape", "inference_mode": True,
            "fan_in_fan_out": False, "use_rslora": False, "use_dora": False,
        }  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(config))


def measure(engine: Any, job: dict[str, Any], case: dict[str, Any]) -> None:
    """Warm up, then time the case as often as asked."""
    from vllm import SamplingParams

    held = Adapters(engine, job, case["questions"]) if case["adapters"] else None
    updates = [sum(held.change(0))] if held else []

    def generate(new: int, seed: int) -> tuple[float, int]:
        prompts = random_prompts(job, case, seed)
        greedy = case["temperature"] == 0
        params = SamplingParams(
            n=case["samples"], temperature=case["temperature"],
            top_p=1.0 if greedy else case["top_p"], max_tokens=new, ignore_eos=True,
            detokenize=False,
        )  # fmt: skip
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        begun = time.perf_counter()
        answers = engine.generate(
            asked, params, use_tqdm=False, lora_request=held.requests() if held else None
        )
        seconds = time.perf_counter() - begun
        return seconds, sum(len(one.token_ids) for answer in answers for one in answer.outputs)

    for seed in (1, 2):
        generate(min(24, case["new"]), 1000 * case["seed"] + seed)
    runs = [generate(case["new"], 1000 * case["seed"] + 10 + n) for n in range(job["repeats"])]
    parts = {}
    if held:
        changed = [held.change(version) for version in range(1, 3)]
        updates += [wrote + loaded for wrote, loaded in changed]
        parts = {"write": changed[-1][0], "load": changed[-1][1]}
    peak, reserved = in_workers(engine, "held_bytes")
    emit(
        job,
        case=case["name"],
        sizes=case,
        seconds=statistics.median(seconds for seconds, _ in runs),
        runs=[seconds for seconds, _ in runs],
        tokens=runs[0][1],
        update_seconds=min(updates[1:], default=None),
        update_parts=parts,
        planned_bytes=int(job["utilization"] * job["memory"]),
        peak_bytes=peak,
        reserved_bytes=reserved,
    )


def main() -> None:
    """Run the cases of a job."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        engine = make_engine(job)
    except Exception as error:
        traceback.print_exc()
        emit(job, event="failed", error=f"{type(error).__name__}: {str(error)[:400]}")
        sys.exit(1)
    try:
        in_workers(engine, "draw_weights")
    except Exception as error:  # its own dummy weights do as well for the time, nearly
        traceback.print_exc()
        emit(job, event="weights", error=f"{type(error).__name__}: {str(error)[:400]}")
    for case in job["cases"]:
        guarded(job, case, lambda case=case: measure(engine, job, case))


if __name__ == "__main__":
    here = Path(__file__).resolve().parent  # which has a module of vLLM's name, so it is the last
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != here]
    sys.path.append(str(here))
    for name, value in {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_USE_DEEP_GEMM": "0",  # of products in eight bits, which there are none of here
        # It takes FlashInfer's sampler for granted, and ends in an ImportError without it.
        "VLLM_USE_FLASHINFER_SAMPLER": str(int(find_spec("flashinfer") is not None)),
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # of functions that apply_model is handed
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }.items():
        os.environ.setdefault(name, value)
    main()
