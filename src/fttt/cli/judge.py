"""``fttt judge serve``: the code judge as a service."""

from __future__ import annotations

from typing import Annotated

import typer

from fttt.errors import UsageError

__all__ = ["judge_app"]

judge_app = typer.Typer(no_args_is_help=True, help="The code judge.")


@judge_app.callback()
def judge() -> None:
    """The code judge."""


@judge_app.command("serve")
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
    from fttt.judge.sandbox import Sandbox
    from fttt.judge.service import serve

    if not 0 <= port <= 65535:
        raise UsageError(f"--port is {port}; a port is a number from 0 to 65535")
    if limit_concurrency < 1:
        raise UsageError(f"--limit-concurrency is {limit_concurrency}; at least 1 is needed")
    sandbox = Sandbox(workers=workers, allow_weaker=allow_weaker_sandbox)
    serve(sandbox, host=host, port=port, limit_concurrency=limit_concurrency, say=typer.echo)
