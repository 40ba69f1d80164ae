"""One question of your own, from Python."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fttt.errors import UsageError
from fttt.types import Question, Record, Trial, Usage
from fttt.verifiers.combined import as_verifier
from fttt.verifiers.verifier import Verifier, needs_gold, reads_answers

if TYPE_CHECKING:
    from fttt.experiment.plan import Plan
    from fttt.methods import Method
    from fttt.models import LoadedModel, ReadyModel

__all__ = ["Result", "solve"]


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
    device: str = "auto",
    batch_size: int | None = None,
    concurrency: int | None = None,
    request_timeout: float | None = None,
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
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        batch_size: sequences that run at once, for methods that sample together.
        concurrency: with an endpoint, answers that are written at once.
        request_timeout: with an endpoint, seconds to wait for an answer.

    Raises:
        UsageError: an argument is not allowed, or the question does not fit the model's context.
        RunError: the run failed.
    """
    asked = Question("question", question) if isinstance(question, str) else question
    if not isinstance(asked, Question) or not asked.prompt.strip():
        raise UsageError(f"The question cannot be {question!r}; give its text, or a fttt.Question.")
    values = {
        "method": method if isinstance(method, str) else method.name,
        "model": model if model is None or isinstance(model, str) else model.name,
        "endpoint": endpoint,
        "template_args": dict(template_args or {}),
        "adapter": adapter,
        "task": _Asked.name,
        "seed": seed,
        "save_correct_cases": False,
        "trials": trials,
        "unanswered": unanswered,
        "token_budget": token_budget,
        "time_budget": time_budget,
        "until": until,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "max_new_tokens": max_new_tokens,
        "think_tokens": think_tokens,
        "dtype": dtype,
        "device": device,
        "batch_size": batch_size,
        "concurrency": concurrency,
        "request_timeout": request_timeout,
        "settings": dict(settings or {}),
    }
    from fttt.config import RunConfig, build, in_sections
    from fttt.experiment.plan import Plan, load, settle

    settled = settle(
        build(RunConfig, in_sections(values), "fttt.solve()"),
        method=None if isinstance(method, str) else method,
        task=_Asked(asked, verify),
    )
    config, verifier = settled.config, settled.task.verifier()
    loaded: ReadyModel
    with nullcontext() if config.endpoint is not None else _in_turn():
        if config.endpoint is not None:
            loaded = load(config)
        elif model is None or isinstance(model, str):
            settled.check_model()
            loaded = _load(config.model, config.adapter, dtype, device)
        elif config.adapter is not None:
            raise UsageError(
                f"The model {model.name!r} is loaded already and cannot start from "
                f"{str(config.adapter)!r}; give its name, or load it with that checkpoint."
            )
        else:
            settled.check_model(model)
            loaded = model
        plan, borrowed = Plan(settled, (asked,)), isinstance(verify, Verifier)
        return _anywhere(lambda: asyncio.run(_solve(plan, loaded, verifier, borrowed=borrowed)))


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
    """A task of one question."""

    question: Question
    verify: Verifier | Callable[..., Any] | str
    name: ClassVar[str] = "python"
    splits: ClassVar[tuple[str, ...]] = ("test",)

    def load(self, options: Any) -> list[Question]:
        return [self.question]

    @property
    def reads_answers(self) -> bool:
        """Whether the verifier can say what is voted on."""
        if isinstance(self.verify, str):
            return reads_answers(self.verify)
        return isinstance(self.verify, Verifier)

    def verifier(self) -> Verifier:
        given, gold = self.verify, self.question.gold
        if isinstance(given, str) and needs_gold(given) and gold is None:
            raise UsageError(
                f"The verifier {given!r} needs a gold answer to compare with; give the "
                "question as fttt.Question(id, prompt, gold)."
            )
        return as_verifier(self.verify)


@lru_cache(maxsize=1)
def _load(model: str, adapter: Path | None, dtype: str, device: str) -> LoadedModel:
    from fttt.experiment.plan import load_weights

    return load_weights(model, adapter, dtype=dtype, device=device)


async def _solve(plan: Plan, loaded: ReadyModel, verifier: Verifier, *, borrowed: bool) -> Result:
    from fttt.experiment.executor import OwedQuestion, ask_all, make_context, make_engine
    from fttt.experiment.session import AdapterRoom
    from fttt.progress import Quiet
    from fttt.store import MemoryJournal, solved_within, vote

    journal = MemoryJournal()
    question = plan.questions[0]
    engine, run = make_engine([plan], loaded), None
    try:
        run = make_context(plan, loaded, engine, verifier, journal, Quiet())
        owed = OwedQuestion(question, run, AdapterRoom(engine.adapters))
        await ask_all([owed], workers=1, stop=asyncio.Event())
    finally:
        if run is not None and run.shared is not None:
            await run.shared.close()
        await engine.close()
        if not borrowed:  # the caller's own verifier stays open
            await verifier.close()
    trials = tuple(sorted(journal.trials, key=lambda trial: trial.trial))
    usage = sum((trial.usage for trial in trials), Usage())
    solved = solved_within(trials, decided_by=plan.method.decided_by)
    best = vote(trials) if plan.method.decided_by == "vote" else _first_correct(trials)
    answer = best.completion if solved and best is not None else None
    record = Record(question, trials, usage)
    return Result(question, solved, answer, record.score, record.best, trials, usage)


def _first_correct(trials: tuple[Trial, ...]) -> Trial | None:
    return next((trial for trial in trials if trial.verdict == "correct"), None)


def _anywhere(run: Callable[[], Result]) -> Result:
    """Call ``run``, which starts an event loop, in a thread of its own where one runs already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run()
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(copy_context().run, run).result()
