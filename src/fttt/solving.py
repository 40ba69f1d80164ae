"""Questions of your own, from Python."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from fttt.errors import UsageError
from fttt.types import Quantize, Question, Record, Trial, Usage
from fttt.verifiers.combined import as_verifier
from fttt.verifiers.verifier import Verifier, needs_gold, reads_answers

if TYPE_CHECKING:
    from fttt.experiment.executor import Executor
    from fttt.experiment.plan import Plan
    from fttt.methods import Method
    from fttt.models import LoadedModel

__all__ = ["Result", "solve", "solve_many"]


Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a question."""

    question: Question
    solved: bool
    """Whether an answer was verified as correct (for a method that votes: the winning one)."""
    answer: str | None
    """The completion that was; ``None`` where none was."""
    score: float | None
    """The best score of its trials, where the verifier gives one."""
    best: Trial | None
    """The first trial with that score, which is the result where no answer is right or wrong."""
    trials: tuple[Trial, ...]
    usage: Usage


def solve(
    question: str | Question,
    *,
    verify: Verifier | Callable[..., Any] | str,
    model: str | LoadedModel | None = None,
    endpoint: str | None = None,
    template_args: Mapping[str, Any] | None = None,
    adapter: str | Path | None = None,
    method: str | Method = "fttt",
    trials: int | None = 16,
    seed: int = 42,
    temperature: float | Sequence[float] | str = 0.6,
    top_p: float = 0.95,
    top_k: int | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    max_new_tokens: int = 512,
    think_tokens: int | None = None,
    unanswered: Literal["count", "retry"] = "count",
    token_budget: int | None = None,
    time_budget: float | None = None,
    until: float | None = None,
    settings: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    quantize: Quantize | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    memory_share: float | None = None,
    concurrency: int | None = None,
    request_timeout: float | None = None,
    replicas: int | Literal["auto"] | None = None,
    gpus_per_replica: float = 1,
    ray_address: str | None = None,
) -> Result:
    """Try a question until an answer verifies or the budget is spent.

    Works inside a running event loop too (a notebook, say); it then blocks that loop. Calls from
    several threads take turns, but with ``endpoint``.

    Args:
        question: what the model reads, or a :class:`fttt.Question` with a gold for the verifier.
        verify: a function ``check(completion)`` or ``check(completion, question)`` that returns
            whether the answer is right, or its score, a verifier object, or a text as after
            ``--verifier``, such as ``regex:PATTERN``, ``command:LINE`` or, with a gold, ``number``
            or ``math``. A function runs in a child process under a time limit of 30 seconds;
            :class:`fttt.FunctionVerifier` offers more.
        model: a hub name, a folder, a GGUF file, ``smollm2-135m`` (the default), or a loaded
            model. The model that was used last stays loaded. With ``endpoint``: ``openai:NAME``.
        endpoint: URL of an OpenAI-compatible server that has the model, whose key is read from
            ``OPENAI_API_KEY``; for methods that need no weights.
        template_args: arguments of the model's chat template, ``{"enable_thinking": False}``, say.
        adapter: a folder that ``fttt finetune train`` wrote, to start from; without ``model`` its
            own base model is taken.
        method: the name of a method, or a method object.
        trials: how often to try; ``None`` where a token or time budget is given instead.
        seed: of sampling and of fresh adapter weights.
        temperature: of sampling; 0 is greedy. A list has one for each trial (the last for all that
            follow), a range as ``"0.6..1.2"`` goes from the first trial to the last.
        top_p: the smallest set of tokens of this mass is drawn from.
        top_k: so many of the most probable tokens are drawn from.
        min_p: tokens at least so many times as probable as the most probable one.
        repetition_penalty: on tokens of the prompt and of the answer so far.
        max_new_tokens: the longest answer, its thought included, in tokens.
        think_tokens: a thought of so many tokens is closed, and the answer follows.
        unanswered: whether a trial without an answer spends budget, or is free (``retry``).
        token_budget: no new trial once this many tokens were generated.
        time_budget: no new trial once this many seconds were spent.
        until: the score that solves the question, where ``verify`` returns one.
        settings: settings of the method, such as ``{"lr": 1e-4}``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        quantize: quantise the weights of ``model`` as they are read: ``int8``, ``nf4`` or ``fp4``
            (needs ``fttt[quantized]``).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        batch_size: sequences that run at once, for methods that sample together.
        memory_share: the share of the device's memory that may be held, weights included.
        concurrency: with an endpoint, answers that are written at once.
        request_timeout: with an endpoint, seconds to wait for an answer.
        replicas: processes that ask questions, each with a model on a GPU of its own, or on its
            share of the cores (``auto``: one a GPU). A question is asked by one of them, so they
            are for :func:`fttt.solve_many`.
        gpus_per_replica: part of a GPU that each has; two at 0.5 share one.
        ray_address: HOST:PORT (or ``auto``) of a Ray cluster that they run on.

    Raises:
        UsageError: an argument is not allowed, or the question does not fit the model's context.
        RunError: the run failed.
    """
    given = dict(locals())
    return _ask([given.pop("question")], **given)[0]


def solve_many(
    questions: Sequence[str | Question],
    *,
    verify: Verifier | Callable[..., Any] | str,
    **options: Any,
) -> list[Result]:
    """Try several questions at once, each as :func:`fttt.solve` does with a budget of its own.

    They share the model's batches, and with ``replicas`` are divided over many GPUs or machines;
    their trials are the same either way. Replicas are started for the call, and what they are given
    travels to them: a model by its name, and functions, verifiers and methods that can be pickled.

    Args:
        questions: texts, or :class:`fttt.Question` objects of different ids.
        verify: as for :func:`fttt.solve`.
        options: likewise.

    Returns:
        A result for each question, in their order.

    Raises:
        UsageError: an argument is not allowed, or a question does not fit the model's context.
        RunError: the run failed.
    """
    bound = signature(solve).bind("", verify=verify, **options)
    bound.apply_defaults()
    given = dict(bound.arguments)
    del given["question"]
    return _ask(questions, **given)


def _ask(
    questions: Sequence[str | Question],
    *,
    verify: Verifier | Callable[..., Any] | str,
    model: str | LoadedModel | None,
    method: str | Method,
    template_args: Mapping[str, Any] | None,
    settings: Mapping[str, Any] | None,
    **values: Any,
) -> list[Result]:
    """Ask by the arguments of :func:`solve`."""
    from fttt.config import RunConfig, build, in_sections
    from fttt.experiment.plan import Plan, settle

    asked = _Asked(_named(questions), verify)
    if isinstance(values["replicas"], int) and values["replicas"] > len(asked.questions):
        values["replicas"] = len(asked.questions)
        if len(asked.questions) == 1 and values["ray_address"] is None:
            values["gpus_per_replica"] = 1  # this process asks, beside no other
    values |= {
        "method": method if isinstance(method, str) else method.name,
        "model": model if model is None or isinstance(model, str) else model.name,
        "template_args": dict(template_args or {}),
        "settings": dict(settings or {}),
        "task": _Asked.name,
        "save_correct_cases": False,
    }
    settled = settle(
        build(RunConfig, in_sections(values), "fttt.solve()"),
        method=None if isinstance(method, str) else method,
        task=asked,
    )
    asked.verifier()  # what is wrong with it is said before the model's turn
    try:
        return _anywhere(lambda: _solve(Plan(settled, asked.questions), model))
    finally:
        if not isinstance(verify, Verifier):  # the caller's own stays open
            asked.close()


def _named(given: Sequence[str | Question]) -> tuple[Question, ...]:
    """What is asked; texts are named by their places.

    Raises:
        UsageError: none, something else than a question, or two of one id.
    """
    questions: list[Question] = []
    for number, one in enumerate(given):
        name = "question" if len(given) == 1 else f"question/{number}"
        asked = Question(name, one) if isinstance(one, str) else one
        if not isinstance(asked, Question) or not asked.prompt.strip():
            raise UsageError(f"The question cannot be {one!r}; give its text, or a fttt.Question.")
        questions.append(asked)
    if not questions:
        raise UsageError("There is no question to solve; give one, as its text or fttt.Question.")
    ids = [question.id for question in questions]
    twice = next((one for number, one in enumerate(ids) if one in ids[:number]), None)
    if twice is not None:
        raise UsageError(f"Two questions have the id {twice!r}; give each one of its own.")
    return tuple(questions)


_TURN = threading.Lock()
_HAS_TURN = ContextVar("has_turn", default=False)


@contextmanager
def _in_turn() -> Iterator[None]:
    """Wait for other threads: two engines in one model at once would read each other's batches.

    A verifier that asks in its turn, while its question waits, does so at once.
    """
    if _HAS_TURN.get():
        yield
        return
    with _TURN:
        token = _HAS_TURN.set(True)
        try:
            yield
        finally:
            _HAS_TURN.reset(token)


@dataclass(frozen=True)
class _Asked:
    """A task of the questions that were given."""

    questions: tuple[Question, ...]
    verify: Verifier | Callable[..., Any] | str
    made: list[Verifier] = field(default_factory=list, repr=False, compare=False)
    """Its verifier, once there is one."""
    name: ClassVar[str] = "python"
    splits: ClassVar[tuple[str, ...]] = ("test",)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.questions, self.verify)  # a replica makes a verifier of its own

    def load(self, options: Any) -> list[Question]:
        return list(self.questions)

    @property
    def reads_answers(self) -> bool:
        """Whether the verifier can say what is voted on."""
        if isinstance(self.verify, str):
            return reads_answers(self.verify)
        return isinstance(self.verify, Verifier)

    def verifier(self) -> Verifier:
        given = self.verify
        without = any(question.gold is None for question in self.questions)
        if isinstance(given, str) and without and needs_gold(given):
            raise UsageError(
                f"The verifier {given!r} needs a gold answer to compare with; give the "
                "question as fttt.Question(id, prompt, gold)."
            )
        if not self.made:
            self.made.append(as_verifier(given))
        return self.made[0]

    def close(self) -> None:
        """Close the verifier."""

        async def close() -> None:
            for verifier in self.made:
                await verifier.close()

        _anywhere(lambda: asyncio.run(close()))


@lru_cache(maxsize=1)
def _load(
    model: str, adapter: Path | None, dtype: str, device: str, quantize: Quantize | None
) -> LoadedModel:
    from fttt.experiment.plan import load_weights

    return load_weights(model, adapter, dtype=dtype, device=device, quantize=quantize)


def _solve(plan: Plan, model: str | LoadedModel | None) -> list[Result]:
    """Ask where the settings say."""
    from fttt.experiment import cluster
    from fttt.experiment.executor import LocalExecutor
    from fttt.experiment.plan import load

    config, settled = plan.config, plan.settled
    if config.endpoint is not None:
        return _ask_by(LocalExecutor(load(config), keeps_verifiers=True), plan)
    if not cluster.asks_here(config.engine):
        if model is not None and not isinstance(model, str):
            raise UsageError(
                f"The model {model.name!r} is loaded in this process, and replicas load their own; "
                "give its name."
            )
        settled.check_model()
        with cluster.executors(config.engine, _note) as start:
            cluster.check_sendable(config.engine, settled.objects)
            return _ask_by(start(config), plan)
    with _in_turn():
        if model is None or isinstance(model, str):
            settled.check_model()
            engine = config.engine
            how = engine.dtype, engine.device, engine.quantize
            loaded = _load(config.model, config.adapter, *how)
        elif config.adapter is not None:
            raise UsageError(
                f"The model {model.name!r} is loaded already and cannot start from "
                f"{str(config.adapter)!r}; give its name, or load it with that checkpoint."
            )
        else:
            settled.check_model(model)
            loaded = model
        return _ask_by(LocalExecutor(loaded, keeps_verifiers=True), plan)


def _note(line: str) -> None:
    print(line, file=sys.stderr)


def _ask_by(executor: Executor, plan: Plan) -> list[Result]:
    """Ask the questions of a plan by an executor."""
    from fttt.experiment.executor import Owed
    from fttt.progress import Quiet
    from fttt.store import MemoryJournal

    journal = MemoryJournal()
    owed = [Owed(0, question) for question in plan.questions]

    async def ask() -> None:
        try:
            await executor.ask(owed, [journal], Quiet(), asyncio.Event())
        finally:
            await executor.release()

    executor.check_fits(plan)
    try:
        executor.prepare([plan])
    except BaseException:
        asyncio.run(executor.release())
        raise
    asyncio.run(ask())
    return [_result(plan, question, journal.trials) for question in plan.questions]


def _result(plan: Plan, question: Question, written: Sequence[Trial]) -> Result:
    from fttt.store import solved_within, vote

    own = (trial for trial in written if trial.question_id == question.id)
    trials = tuple(sorted(own, key=lambda trial: trial.trial))
    usage = sum((trial.usage for trial in trials), Usage())
    solved = solved_within(trials, decided_by=plan.method.decided_by)
    best = vote(trials) if plan.method.decided_by == "vote" else _first_correct(trials)
    answer = best.completion if solved and best is not None else None
    record = Record(question, trials, usage)
    return Result(question, solved, answer, record.score, record.best, trials, usage)


def _first_correct(trials: tuple[Trial, ...]) -> Trial | None:
    return next((trial for trial in trials if trial.verdict == "correct"), None)


def _anywhere(run: Callable[[], Answer]) -> Answer:
    """Call ``run``, which starts event loops, in a thread of its own where one runs already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run()
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(copy_context().run, run).result()
