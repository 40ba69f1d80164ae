"""Everything that can be wrong before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fttt.config import RunConfig, build, merge
from fttt.errors import UsageError
from fttt.experiment.adapters import adapter_spec, check_edits, made_for, with_network
from fttt.experiment.cases import cases_file, chosen, found_cases, in_order, without_cases
from fttt.files import file_name, model_label
from fttt.methods import Method, MethodSettings, find_method
from fttt.methods.finetuned import FinetunedSettings
from fttt.tasks import Task, TaskOptions, get_task, load_questions, task_name
from fttt.tasks.benchmark_data import local_data, local_note
from fttt.types import Question

if TYPE_CHECKING:
    from fttt.engine.request import AdapterSpec
    from fttt.models import LoadedModel

__all__ = [
    "Plan",
    "check_fits",
    "check_names",
    "check_vote",
    "check_weights",
    "load_weights",
    "prepare",
    "settle",
    "task_of",
    "weights_label",
    "with_fixed",
    "with_weights",
]


NO_CASES = "none"
"""What stands for no file of correct cases."""


@dataclass(frozen=True)
class Plan:
    """A run that is ready to begin: resolved settings, its method, its questions."""

    config: RunConfig
    method: Method
    settings: MethodSettings
    task: Task
    questions: tuple[Question, ...]
    notes: tuple[str, ...] = ()
    """What was found and not asked for, a sentence each."""

    @property
    def folder_name(self) -> str:
        """The run folder's name but for the time."""
        config = self.config
        parts = (config.method, config.task, weights_label(config), f"s{config.seed}")
        return file_name(*parts)

    @property
    def cases_file(self) -> Path | None:
        """Where the ids of solved questions go, if anywhere."""
        if not self.config.save_correct_cases:
            return None
        return cases_file(weights_label(self.config), self.config.task)

    @property
    def adapter_spec(self) -> AdapterSpec | None:
        """What each question trains, if anything."""
        return adapter_spec(self.settings)


def settle(config: RunConfig) -> tuple[RunConfig, Method, MethodSettings]:
    """Fill in what the method or its trained network fixes, and its settings' defaults.

    Raises:
        UsageError: unknown method, a setting that it does not have, or no such network.
    """
    kind = find_method(config.method)
    settings = build(kind.Settings, config.settings, f"the settings of {config.method!r}")
    settings = with_network(settings)
    config = with_fixed(with_weights(config, settings), kind)
    over = {
        "task": task_name(config.task),
        "settings": settings.model_dump(mode="json", exclude_none=True),
        "save_correct_cases": config.method == "greedy"
        if config.save_correct_cases is None
        else config.save_correct_cases,
    }
    resolved = build(RunConfig, merge(config.to_toml(), over), "the settings")
    return resolved, kind(settings), settings


def with_weights(config: RunConfig, settings: MethodSettings) -> RunConfig:
    """The settings with the checkpoint that the method starts from, and its or the network's model.

    Raises:
        UsageError: a fine-tuned method without a checkpoint, or two that differ.
    """
    checkpoint = config.adapter
    if isinstance(settings, FinetunedSettings):
        if settings.checkpoint is not None and checkpoint not in (None, settings.checkpoint):
            raise UsageError(
                f"The method {config.method!r} starts from one checkpoint, not from --checkpoint "
                f"{settings.checkpoint} and --adapter {checkpoint}; give one of them."
            )
        checkpoint = settings.checkpoint or checkpoint
        if checkpoint is None:
            raise UsageError(
                f"The method {config.method!r} needs --checkpoint DIR, a folder that "
                "`fttt finetune train` wrote."
            )
    over = {} if checkpoint is None else {"adapter": str(checkpoint)}
    if "model" not in config.model_fields_set:
        model = made_for(settings)
        if checkpoint is not None:
            from fttt.finetune.metadata import read_info

            model = read_info(checkpoint).model
        over |= {} if model is None else {"model": model}
    if not over:
        return config
    return build(RunConfig, merge(config.to_toml(), over), "the settings")


def with_fixed(config: RunConfig, method: Method | type[Method]) -> RunConfig:
    """The settings with what a method itself fixes (see :class:`fttt.Method`).

    Raises:
        UsageError: the budget is none that the method can spend.
    """
    for budget in ("token_budget", "time_budget"):
        if method.searches and getattr(config.budget, budget) is not None:
            raise UsageError(
                f"The method {config.method!r} makes one search, as wide as --trials says, before "
                f"its first verdict, so nothing can stop it half way; give --trials instead of "
                f"--{budget.replace('_', '-')}."
            )
    if method.searches and config.sampling.repetition_penalty not in (None, 1):
        raise UsageError(
            f"The method {config.method!r} searches by the model's own probabilities, without "
            f"--repetition-penalty {config.sampling.repetition_penalty}; leave it away."
        )
    over = {
        "budget": {k: v for k, v in method.fixed.items() if k == "trials"},
        "sampling": {k: v for k, v in method.fixed.items() if k == "temperature"},
    }
    return build(RunConfig, merge(config.to_toml(), over), "the settings")


def check_names(config: RunConfig) -> RunConfig:
    """Resolve the settings and refuse unknown methods, tasks and models, without any data.

    Raises:
        UsageError: one of them does not exist.
    """
    resolved, _, settings = settle(config)
    task_of(resolved)
    check_weights(resolved)
    check_edits(settings, resolved.model)
    return resolved


def prepare(
    config: RunConfig, *, only: Sequence[str] | None = None, find_cases: bool = False
) -> Plan:
    """Find method, task, questions and model, without loading weights.

    Data are looked for in ``./datasets`` where no folder is given; where they are found, the plan's
    settings name it and its notes say so.

    Args:
        only: ask exactly these ids in this order, whatever the data section says of a choice; then
            nothing is looked for.
        find_cases: look for a file of correct cases in ``./metadata`` too, where none is given and
            no ids are.

    Raises:
        UsageError: any of them does not exist or does not go with the others.
    """
    resolved, method, settings = settle(config)
    notes: list[str] = []
    task = task_of(resolved)
    check_vote(method, task)
    if only is None and resolved.data.data_dir is None:
        resolved = _with_local_data(resolved, task, notes)
    data = resolved.data
    options = TaskOptions(
        data.data_dir, data.split, data.prompt, data.seed, data.prompt_style or "own"
    )
    questions = load_questions(task, options)
    if not questions:
        raise UsageError(f"The task {resolved.task!r} has no questions in split {data.split!r}.")
    if only is not None:
        left = in_order(questions, only)
    else:
        if find_cases:
            resolved = _with_found_cases(resolved, task, questions, notes)
            data = resolved.data
        left = chosen(questions, data.questions, task)
        if data.skip_cases is not None and str(data.skip_cases) != NO_CASES:
            left = without_cases(questions, left, data.skip_cases, task)
        left = left[: data.limit]
    if not left:
        raise UsageError(
            f"No question of {resolved.task!r} is left to ask: --skip-cases leaves out all of "
            f"{len(questions)}; ask others with --questions or another --split, or all of them "
            f"with --skip-cases {NO_CASES}."
        )
    check_weights(resolved)
    check_edits(settings, resolved.model)
    return Plan(resolved, method, settings, task, tuple(left), tuple(notes))


def _with_local_data(config: RunConfig, task: Task, notes: list[str]) -> RunConfig:
    """The settings with ``./datasets``, where that holds the task's data."""
    folder = local_data(task, config.data.split)
    if folder is None:
        return config
    notes.append(local_note(config.task))
    return build(
        RunConfig, merge(config.to_toml(), {"data": {"data_dir": str(folder)}}), "the settings"
    )


def _with_found_cases(
    config: RunConfig, task: Task, questions: Sequence[Question], notes: list[str]
) -> RunConfig:
    """The settings with the file of correct cases under ``./metadata``, where it is of use.

    ``greedy`` and whatever else writes such a file asks all questions; so does a run that names
    its questions, and one on another split than the one that is tested on.
    """
    data = config.data
    chooses = data.skip_cases is not None or data.questions is not None
    writes = config.method == "greedy" or config.save_correct_cases
    if chooses or writes or data.split != task.splits[0]:
        return config
    path = found_cases(weights_label(config), config.model, config.task)
    if path is None:
        return config
    try:
        skipped = len(questions) - len(without_cases(questions, questions, path, task))
    except UsageError as error:
        notes.append(f"Asking all questions: {error}")
        return config
    if skipped == 0:
        return config
    notes.append(
        f"Leaving out the {skipped} questions that {str(path)!r} lists, which is here; "
        f"--skip-cases {NO_CASES} asks them too."
    )
    return build(
        RunConfig, merge(config.to_toml(), {"data": {"skip_cases": str(path)}}), "the settings"
    )


def task_of(config: RunConfig) -> Task:
    """The config's task with its options.

    Raises:
        UsageError: there is no such task, or it does not take the options.
    """
    return get_task(config.task, **config.data.options)


def check_vote(method: Method, task: Task) -> None:
    """Refuse a vote where the task's verifier says whether, but not what, an answer is.

    Raises:
        UsageError: no completion would have a vote.
    """
    if method.decided_by == "vote" and not getattr(task, "reads_answers", True):
        raise UsageError(
            f"The method {method.name!r} votes over the answers that the verifier reads, and a "
            "function, command or pattern reads none; use another method, the verifier number, "
            "math or code, or from Python fttt.FunctionVerifier(check, extract=...)."
        )


def check_weights(config: RunConfig) -> None:
    """Refuse, without loading weights, a model or a checkpoint of it that cannot be loaded.

    Raises:
        UsageError: it cannot, or they do not belong together.
    """
    if config.adapter is None:
        from fttt.models import check_model  # late: what comes before it answers without torch

        check_model(config.model)
        return
    from fttt.finetune.load import check_checkpoint

    check_checkpoint(config.adapter, config.model)


def load_weights(model: str, adapter: Path | None, *, dtype: str, device: str) -> LoadedModel:
    """Load a model, with the fine-tuned checkpoint that it starts from, if any.

    Raises:
        UsageError: the model, checkpoint, dtype or device does not exist.
        RunError: the model does not fit.
    """
    if adapter is None:
        from fttt.models import load_model

        return load_model(model, dtype=dtype, device=device)
    from fttt.finetune.load import load_finetuned

    return load_finetuned(adapter, model=model, dtype=dtype, device=device)


def check_fits(plan: Plan, loaded: LoadedModel) -> int:
    """The longest sequence of the run, in tokens, once every question is known to fit.

    Raises:
        UsageError: a question and its answer are longer than the model's context.
    """
    new = plan.config.sampling.max_new_tokens
    limit = loaded.max_context
    if plan.config.engine.max_length is not None:
        limit = min(limit, plan.config.engine.max_length)
    longest = 0
    for question in plan.questions:
        length = len(loaded.chat.prompt_ids(question.prompt, question.rendered))
        if length + new > limit:
            raise UsageError(
                f"The question {question.id!r} has {length} tokens, which with --max-new-tokens "
                f"{new} is longer than the context of {limit} tokens; lower --max-new-tokens or "
                "leave the question out."
            )
        longest = max(longest, length)
    needed = sum(
        turn if isinstance(turn, int) else len(loaded.chat.turn_ids(turn))
        for turn in plan.method.conversation(new)
    )
    return min(limit, longest + needed)


def weights_label(config: RunConfig) -> str:
    """The model's name as file names hold it, and that of the checkpoint it starts from."""
    label = model_label(config.model)
    return label if config.adapter is None else f"{label}+{config.adapter.resolve().name}"
