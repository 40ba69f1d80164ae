"""The judge that ``benchmarks/judge.py`` measures ours beside: ``exec`` in a process of its own.

Written in the style of the judges published for this kind of work, and served as they are, by
``uvicorn --workers 8``: a child process runs the program and leaves its result in a list of a
``multiprocessing.Manager`` that is started for the request. Under uvicorn's workers both start as
fresh interpreters, since such a worker's own children start the way it was started. ``pipe_app``
is the same without the manager. It trusts what it runs, and is here for its speed only.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

from fastapi import FastAPI

TIMEOUT = 10.0


def run_program(program: str, result: Any) -> None:
    """The child: the program is executed beside the code that judges it."""
    try:
        exec(program, {})
        result.append("passed")
    except BaseException as error:
        result.append(f"failed: {error}")


def run_program_to_pipe(program: str, end: Connection) -> None:
    """The child without a manager."""
    result: list[str] = []
    run_program(program, result)
    end.send(result[0])


def judge_with_manager(program: str) -> bool:
    """As published: the result comes through a manager of its own."""
    with multiprocessing.Manager() as manager:
        result = manager.list()
        child = multiprocessing.Process(target=run_program, args=(program, result))
        child.start()
        child.join(timeout=TIMEOUT)
        if child.is_alive():
            child.kill()
        return bool(result) and result[0] == "passed"


def judge_with_pipe(program: str) -> bool:
    """With the manager's start removed."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.Process(target=run_program_to_pipe, args=(program, theirs))
    child.start()
    passed = ours.poll(TIMEOUT) and ours.recv() == "passed"
    if child.is_alive():
        child.kill()
    child.join()
    return bool(passed)


def _app(judge: Any) -> FastAPI:
    app = FastAPI()

    @app.post("/")
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        problem = body["problem"]
        program = (
            f"{problem['prompt']}{body['completion']}\n{problem['test']}\n"
            f"check({problem['entry_point']})"
        )
        passed = judge(program)
        return {"passed": passed, "status": "passed" if passed else "failed"}

    return app


def manager_app() -> FastAPI:
    """The service as published."""
    return _app(judge_with_manager)


def pipe_app() -> FastAPI:
    """The service with the manager's start removed."""
    return _app(judge_with_pipe)
