"""``fttt judge`` and ``fttt bench``: the code judge as a service, and this machine's speed."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from typing import Annotated, get_args

import typer

from fttt.cli.flags import AsJSON, examples, print_json
from fttt.config.run_config import QUANTIZE
from fttt.errors import UsageError
from fttt.types import Quantize

__all__ = ["bench_app", "judge_app"]

judge_app = typer.Typer(no_args_is_help=True, help="The code judge.")


@judge_app.callback()
def judge() -> None:
    """The code judge."""


@judge_app.command(
    "serve",
    epilog=examples(
        "fttt judge serve",
        "fttt judge serve --port 0 --workers 8 --limit-concurrency 64",
    ),
)
def serve_judge(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes a free one.")] = 9999,
    workers: Annotated[
        int | None,
        typer.Option(help="Boxes that run at once; by default one per processor, at most 16."),
    ] = None,
    limit_concurrency: Annotated[
        int, typer.Option(help="Requests that run or wait; more are answered 503.")
    ] = 256,
    allow_weaker_sandbox: Annotated[
        bool,
        typer.Option(
            "--allow-weaker-sandbox",
            help="Start even where layers of the sandbox are missing on this machine.",
        ),
    ] = False,
) -> None:
    """Serve the judge until interrupted; a client finds it by OJ_API or --judge-url."""
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if find_spec(package) is None:
            raise UsageError(
                f"`fttt judge serve` needs the package {package!r}, which is not installed; "
                "run: pip install 'fttt[judge]'"
            )
    from fttt.judge.sandbox import Sandbox
    from fttt.judge.service import serve

    if not 0 <= port <= 65535:
        raise UsageError(f"--port is {port}; a port is a number from 0 to 65535")
    if limit_concurrency < 1:
        raise UsageError(f"--limit-concurrency is {limit_concurrency}; at least 1 is needed")
    sandbox = Sandbox(workers=workers, allow_weaker=allow_weaker_sandbox)
    serve(sandbox, host=host, port=port, limit_concurrency=limit_concurrency, say=typer.echo)


bench_app = typer.Typer(
    help="Measure the engine or the judge on this machine.", no_args_is_help=True
)

QUESTION = "A farmer has {} boxes with {} apples each and gives {} apples away. How many are left?"
FEEDBACK = "Your answer is incorrect."


@bench_app.command(
    "engine",
    epilog=examples(
        "fttt bench engine",
        "fttt bench engine --model Qwen/Qwen2.5-0.5B-Instruct --questions 64 --json",
    ),
)
def engine_command(
    model: Annotated[str, typer.Option(help="hub name, folder, GGUF file or embedded name")] = (
        "smollm2-135m"
    ),
    questions: Annotated[int, typer.Option(min=1, help="questions tried at once")] = 16,
    trials: Annotated[int, typer.Option(min=1, help="trials of each question")] = 2,
    new_tokens: Annotated[int, typer.Option(min=2, help="tokens of each trial")] = 64,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="sequences at once; default: what fits")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")] = "auto",
    quantize: Annotated[
        str | None, typer.Option(help=QUANTIZE, metavar="|".join(get_args(Quantize)))
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    as_json: AsJSON = False,
) -> None:
    """Trials a second without and with an update after each, and the time that memory bounds."""
    from rich.console import Console
    from rich.table import Table

    from fttt.engine.workload import Workload, bandwidth, decode_floor, run_workload
    from fttt.models import check_model, load_model

    check_model(model, quantize)
    loaded = load_model(model, dtype=dtype, device=device, quantize=quantize)
    prompts = tuple(
        loaded.chat.prompt_ids(QUESTION.format(n + 3, n + 8, n // 2)) for n in range(questions)
    )
    feedback = loaded.chat.turn_ids(FEEDBACK, answer=False)
    copy = bandwidth(loaded.device)
    filled = sum(map(len, prompts)) / questions + new_tokens / 2
    floor = decode_floor(loaded, min(questions, batch_size or questions), filled, copy)
    table = Table(box=None, pad_edge=False)
    for heading in ("job", "trials/s", "tokens/s", "step ms", "floor ms", "times", "peak GiB"):
        table.add_column(heading, justify="left" if heading == "job" else "right")
    measured = []
    for name, train in (("generate", False), ("generate and train", True)):
        workload = Workload(prompts, feedback, trials, new_tokens, train=train)
        result = run_workload(loaded, workload, batch_size=batch_size)
        measured.append({"job": name, **asdict(result), "floor_seconds": floor})
        table.add_row(
            name,
            f"{result.trials_per_second:.2f}",
            f"{result.tokens_per_second:,.0f}",
            f"{result.step_seconds * 1e3:.2f}",
            f"{floor * 1e3:.2f}",
            f"{result.step_seconds / floor:.2f}",
            f"{result.peak_bytes / 2**30:.2f}" if result.peak_bytes else "-",
        )
    if as_json:
        facts = {"model": loaded.name, "dtype": loaded.dtype, "quantized": loaded.quantized}
        facts["device"] = loaded.device
        print_json({**facts, "copy_bytes_per_second": copy, "jobs": measured})
        return
    console = Console()
    kept = "" if loaded.quantized is None else f" over {loaded.quantized}"
    console.print(
        f"{loaded.name}, {loaded.dtype}{kept}, {loaded.device}; copy {copy / 1e9:,.0f} GB/s",
        style="bold",
    )
    console.print(f"Plan: {result.plan}")
    console.print(table)
    console.print(
        "Floor: the time that reading all weights and the filled cache takes at the copy's speed."
    )


@bench_app.command("judge", epilog=examples("fttt bench judge --clients 1,16 --seconds 2"))
def judge_command(
    clients: Annotated[str, typer.Option(help="numbers of concurrent submissions")] = "1,8,16",
    seconds: Annotated[float, typer.Option(min=0.1, help="seconds of each measurement")] = 5.0,
    workers: Annotated[int | None, typer.Option(min=1, help="boxes that run at once")] = None,
    as_json: AsJSON = False,
) -> None:
    """Verdicts a second of the embedded judge, for several numbers of clients."""
    import asyncio

    from rich.console import Console
    from rich.table import Table

    from fttt.errors import UsageError
    from fttt.judge.rehearsal import measure
    from fttt.judge.sandbox import Sandbox

    counts = clients.split(",")
    if not all(count.strip().isdecimal() and int(count) > 0 for count in counts):
        raise UsageError(f"--clients cannot be {clients!r}; give numbers from 1, as in 1,8,16.")
    table = Table(box=None, pad_edge=False)
    for heading in ("clients", "verdicts/s", "p50 ms", "p99 ms", "wrong"):
        table.add_column(heading, justify="right")
    rates = []

    async def run() -> None:
        sandbox = Sandbox(workers=workers)
        try:
            await sandbox.start()
            await measure(sandbox.judge, 2, 0.2)
            for count in map(int, counts):
                rate = await measure(sandbox.judge, count, seconds)
                rates.append(asdict(rate))
                table.add_row(
                    str(rate.clients),
                    f"{rate.per_second:.1f}",
                    f"{rate.p50_ms:.1f}",
                    f"{rate.p99_ms:.1f}",
                    str(rate.wrong),
                )
        finally:
            await sandbox.close()

    asyncio.run(run())
    if as_json:
        print_json(rates)
    else:
        Console().print(table)
