"""The engine beside the published algorithm: one question at a time, batch size 1.

    python benchmarks/engine.py --shape llama-8b            # one GPU of 80 GB, random weights
    python benchmarks/engine.py --model smollm2-135m        # real weights, any device

Both sides run the same prompts, numbers of tokens and updates in one process: each question is
tried `--trials` times, and after each trial one AdamW step is taken on the feedback's mean
cross-entropy given the attempt's cached keys and values. The reference is that loop written
plainly with `transformers` and PEFT; since it is slow, it runs on the first `--reference`
questions, `--reference-trials` times each, and its trials per second are compared.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from shapes import random_loaded

from fttt.engine.batch import cache_keyword
from fttt.engine.workload import Workload, bandwidth, decode_floor, run_workload
from fttt.models import LoadedModel, load_model

QUESTION = "A farmer has {} boxes with {} apples each and gives {} apples away. How many are left?"
FEEDBACK = "Your answer is incorrect."


def reference(loaded: LoadedModel, workload: Workload, questions: int, trials: int) -> float:
    """Trials a second of the published loop: PEFT, `generate` at batch size 1, torch's AdamW."""
    from peft import LoraConfig, get_peft_model
    from transformers import GenerationConfig

    config = LoraConfig(r=4, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
    settings = GenerationConfig(
        do_sample=True, temperature=workload.temperature, top_p=workload.top_p, top_k=0,
        max_new_tokens=workload.new_tokens, min_new_tokens=workload.new_tokens,
        return_dict_in_generate=True, pad_token_id=0, eos_token_id=-1,
    )  # fmt: skip
    feedback = torch.tensor([workload.feedback], device=loaded.device)
    seconds, done = 0.0, 0
    name = cache_keyword(loaded.model.forward)
    for n in range(-1, questions):  # question -1 warms up
        model: Any = get_peft_model(loaded.model, config)
        weights = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1e-5, weight_decay=0.0)
        prompt = torch.tensor([workload.prompts[max(n, 0)]], device=loaded.device)
        synchronize(loaded)
        start = time.perf_counter()
        for _ in range(trials if n >= 0 else 1):
            model.eval()
            out = model.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=settings
            )
            model.train()
            ids = torch.cat([out.sequences[:, -1:], feedback], dim=1)
            logits = model(ids[:, :-1], **{name: out[name]}).logits
            loss = torch.nn.functional.cross_entropy(logits[0].float(), ids[0, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        synchronize(loaded)
        if n >= 0:
            seconds += time.perf_counter() - start
            done += trials
        model.unload()
        loaded.model.eval().requires_grad_(False)
    return done / seconds


def synchronize(loaded: LoadedModel) -> None:
    """Wait for the device."""
    if loaded.device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> None:
    """Run both sides and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--shape", choices=["llama-8b"], help="random weights of this shape instead"
    )
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=150)
    parser.add_argument("--reference", type=int, default=2, help="questions of the reference")
    parser.add_argument("--reference-trials", type=int, help="of each of them (--trials)")
    options = parser.parse_args()
    if options.shape:
        loaded = random_loaded(
            "llama-8b", torch.bfloat16, "cuda" if torch.cuda.is_available() else "cpu"
        )
    else:
        loaded = load_model(options.model)
    numbers = range(3, 3 + options.questions)
    prompts = [loaded.chat.prompt_ids(QUESTION.format(n, n + 5, n // 2)) for n in numbers]
    workload = Workload(
        tuple(prompts),
        loaded.chat.turn_ids(FEEDBACK, answer=False),
        trials=options.trials,
        new_tokens=options.new_tokens,
    )
    copy = bandwidth(loaded.device)
    name = torch.cuda.get_device_name() if loaded.device.startswith("cuda") else "CPU"
    print(
        f"{loaded.name} {loaded.dtype} on {name}, copy {copy / 1e12:.3f} TB/s, "
        f"torch {torch.__version__}"
    )
    ours = run_workload(loaded, workload, batch_size=options.batch_size)
    filled = sum(map(len, prompts)) / len(prompts) + workload.new_tokens / 2
    floor = decode_floor(loaded, min(options.batch_size, options.questions), filled, copy)
    print(f"plan: {ours.plan}")
    print(f"peak: {ours.peak_bytes / 2**30:.2f} GiB")
    print(
        f"ours: {ours.trials} trials in {ours.seconds:.2f} s, "
        f"{ours.trials_per_second:.3f} trials/s, "
        f"{ours.tokens_per_second:.0f} tokens/s; busy "
        + ", ".join(f"{k} {v:.2f} s" for k, v in ours.busy.items())
    )
    print(
        f"decode step: {ours.step_seconds * 1e3:.2f} ms at {options.batch_size} rows; "
        f"memory traffic needs {floor * 1e3:.2f} ms; {ours.step_seconds / floor:.2f} times"
    )
    if options.reference:
        trials = options.reference_trials or options.trials
        rate = reference(loaded, workload, options.reference, trials)
        print(
            f"reference: {rate:.4f} trials/s, {rate * options.new_tokens:.1f} tokens/s; "
            f"ours is {ours.trials_per_second / rate:.0f} times as fast"
        )


if __name__ == "__main__":
    main()
