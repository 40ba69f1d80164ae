"""Methods through the whole of `fttt run`, beside the engine alone with the same samples.

The methods run as from the command line: conversations, verdicts, ledger, journal and records
included. The engine then writes the same samples, from the same noise, with nothing around it; the
tokens a second of both are compared. Each side makes its own engine and captures its own graphs.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from fttt.config import resolve
from fttt.engine import BatchedEngine, GenerateRequest, derive_key
from fttt.experiment.executor import LocalExecutor
from fttt.experiment.plan import Plan, check_fits, plan_run, settle
from fttt.experiment.runner import Cell, run_cells
from fttt.models import LoadedModel, load_model
from fttt.progress import Quiet
from fttt.store import Run


def plan_for(method: str, options: argparse.Namespace) -> Plan:
    """A run of so many questions."""
    return plan_run(
        settle(
            resolve(
                {
                    "method": method,
                    "task": options.task,
                    "model": options.model,
                    "data": {"limit": options.questions, "data_dir": options.data_dir},
                    "budget": {"trials": options.samples},
                    "sampling": {"max_new_tokens": options.new_tokens},
                    "engine": {"batch_size": options.batch_size},
                }
            )
        )
    )


def plain(loaded: LoadedModel, plan: Plan, samples: dict[str, int]) -> tuple[float, int]:
    """Seconds and tokens of so many samples of each question, all asked for at once."""
    sampling = plan.config.sampling

    async def main() -> int:
        engine = BatchedEngine(
            loaded,
            max_length=check_fits(plan, loaded),
            batch_size=plan.config.engine.batch_size,
            concurrency=sum(samples.values()),
        )
        try:
            await asyncio.gather(
                *(
                    engine.generate(
                        GenerateRequest(
                            loaded.chat.prompt_ids(question.prompt),
                            sampling.max_new_tokens,
                            sampling.temperature,
                            sampling.top_p,
                            derive_key("generation", plan.config.seed, question.id, number),
                            loaded.stop_ids,
                        )
                    )
                    for question in plan.questions
                    for number in range(samples[question.id])
                )
            )
            return engine.generated_tokens
        finally:
            await engine.close()

    start = time.perf_counter()
    tokens = asyncio.run(main())
    return time.perf_counter() - start, tokens


def through_the_stack(loaded: LoadedModel, plan: Plan) -> tuple[float, Run]:
    """Seconds of a run, and the run."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        (run,) = run_cells([Cell(plan, Path(folder) / "run")], LocalExecutor(loaded), Quiet())
        return time.perf_counter() - start, run


def main() -> None:
    """Run both sides of each method and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--methods", nargs="+", default=["self-consistency", "best-of-n"])
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=320)
    parser.add_argument("--batch-size", type=int)
    options = parser.parse_args()
    loaded = load_model(options.model)
    first = plan_for(options.methods[0], options)
    # compiles the kernels of all batch sizes, which the first of the two sides would pay for
    plain(loaded, first, dict.fromkeys((q.id for q in first.questions), options.samples))
    for method in options.methods:
        plan = plan_for(method, options)
        seconds, run = through_the_stack(loaded, plan)
        tokens = sum(trial.usage.generated_tokens for trial in run.trials)
        rate = tokens / seconds
        samples = {r.question.id: len(r.trials) for r in run.records}
        alone, plain_tokens = plain(loaded, plan, samples)
        print(
            f"{method}: {len(run.trials)} samples of {len(samples)} questions, {tokens} tokens in "
            f"{seconds:.2f} s, {rate:.0f} tokens/s; the engine alone {plain_tokens} tokens in "
            f"{alone:.2f} s, {plain_tokens / alone:.0f} tokens/s: "
            f"{100 * rate * alone / plain_tokens:.0f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
