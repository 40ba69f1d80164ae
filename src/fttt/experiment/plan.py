"""The settings of a run, settled once, and everything that can be wrong before a model is loaded.

``run``, ``resume``, ``sweep``, ``evaluate`` and :func:`fttt.solve` all begin here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fttt.config import RunConfig, build, merge
from fttt.config.run_config import NO_CASES
from fttt.errors import UsageError
from fttt.experiment.cases import cases_file, chosen, found_cases, in_order, without_cases
from fttt.experiment.endpoint_rules import check_endpoint, with_judge_server
from fttt.experiment.replica_rules import check_replicas
from fttt.experiment.thought_rules import check_chat, check_length, check_thoughts
from fttt.files import file_name, model_label
from fttt.methods import METHODS, Method, MethodSettings, find_method
from fttt.store import Run, fingerprint
from fttt.tasks import Task, TaskOptions, get_task, load_questions, task_name
from fttt.tasks.benchmark_data import local_data, local_note
from fttt.types import Question

if TYPE_CHECKING:
    from fttt.engine.request import AdapterSpec
    from fttt.models import ChatFormat, LoadedModel, MessageFormat, ReadyModel

__all__ = [
    "MAY_DIFFER",
    "Plan",
    "Settled",
    "check_fits",
    "leaves",
    "load",
    "load_weights",
    "plan_resume",
    "plan_run",
    "settle",
    "task_of",
]

MAY_DIFFER = frozenset(
    {"endpoint"}
    | {f"engine.{name}" for name in ("batch_size", "device", "concurrency", "request_timeout")}
    | {f"engine.{name}" for name in ("replicas", "gpus_per_replica", "ray_address", "memory_share")}
)
"""Settings that change no draw, so that another machine, or one with less memory free, may finish a
run."""


@dataclass(frozen=True)
class Settled:
    """Settings with all defaults filled in, and what they name; no data, no weights."""

    config: RunConfig
    method: Method
    settings: MethodSettings
    task: Task
    objects: Mapping[str, Any] = field(default_factory=dict)
    """The method and the task that were given as such, which the settings cannot name."""

    def check_model(self, model: LoadedModel | None = None) -> None:
        """Refuse a model that cannot be loaded, or that the method's settings do not go with.

        Args:
            model: one that is loaded already; else the one that the settings name.

        Raises:
            UsageError: it is such.
        """
        if model is not None:
            self.settings.check_model(model.model)
            check_chat(self.config, model.chat)
            return
        if self.config.endpoint is not None:
            load(self.config)
            return
        quantize = self.config.engine.quantize
        if self.config.adapter is None:
            from fttt.models import check_model  # late: what comes before it answers without torch

            check_model(self.config.model, quantize)
        else:
            from fttt.finetune.load import check_checkpoint

            check_checkpoint(self.config.adapter, self.config.model, quantize)
        self.settings.check_model(self.config.model)
        check_length(self.config)
        if self.config.template_args or self.config.sampling.think_tokens is not None:
            from fttt.models import read_chat

            check_chat(self.config, read_chat(self.config.model))


@dataclass(frozen=True)
class Plan:
    """A run that is ready to begin: settled settings and its questions."""

    settled: Settled
    questions: tuple[Question, ...]
    notes: tuple[str, ...] = ()
    """What was found and not asked for, a sentence each."""

    @property
    def config(self) -> RunConfig:
        """The settings."""
        return self.settled.config

    @property
    def method(self) -> Method:
        """Who tries the questions."""
        return self.settled.method

    @property
    def task(self) -> Task:
        """What the questions and the verifier come from."""
        return self.settled.task

    @property
    def folder_name(self) -> str:
        """The run folder's name but for the time."""
        config = self.config
        if config.name is not None:
            return file_name(config.name)
        parts = (config.method, config.task, weights_label(config), f"s{config.seed}")
        return file_name(*parts)

    @property
    def cases_file(self) -> Path | None:
        """Where the ids of solved questions go, if anywhere."""
        if not self.config.save_correct_cases:
            return None
        return cases_file(weights_label(self.config), self.config.task)

    def chat(self, loaded: ReadyModel) -> ChatFormat | MessageFormat:
        """The model's chat format under the run's arguments of its template."""
        return loaded.chat.with_arguments(self.config.template_args)

    @property
    def adapter_spec(self) -> AdapterSpec | None:
        """The adapters that the method opens, if any."""
        return self.settled.settings.adapter()


def settle(config: RunConfig, *, method: Method | None = None, task: Task | None = None) -> Settled:
    """Fill in the defaults, what the method fixes, and what its network or checkpoint fixes.

    Args:
        config: the settings as they were asked for.
        method: an object, in place of the class that the settings name.
        task: likewise.

    Raises:
        UsageError: unknown method or task, a setting that it does not have, no such network or
            checkpoint, or a budget that the method cannot spend.
    """
    given_objects = {"method": method, "task": task}
    config = with_judge_server(config)
    check_endpoint(config, find_method(config.method) if method is None else type(method))
    if method is None:
        kind = find_method(config.method)
        settings = build(kind.Settings, config.settings, f"the settings of {config.method!r}")
        settings = settings.settled()
        method = kind(settings)
        shown: dict[str, Any] = {"settings": settings.model_dump(mode="json", exclude_none=True)}
    else:
        given = getattr(method, "settings", None) or MethodSettings()
        settings, shown = given.settled(), {}
        if settings != given:
            method = type(method)(settings)
    config = _with_fixed(_with_weights(config, method, settings), method)
    settings.check_budget(config.budget.trials)
    _check_temperature(config)
    check_replicas(config, method)
    check_thoughts(config, method)
    if task is None:
        task = task_of(config)
        shown["task"] = task_name(config.task)
    over = {
        **shown,
        "save_correct_cases": config.method == "greedy"
        if config.save_correct_cases is None
        else config.save_correct_cases,
    }
    _check_vote(method, task)
    _check_ablation(config, method)
    resolved = build(RunConfig, merge(config.to_toml(), over), "the settings")
    objects = {name: given for name, given in given_objects.items() if given is not None}
    return Settled(resolved, method, settings, task, objects)


def plan_run(
    settled: Settled,
    *,
    only: Sequence[str] | None = None,
    find_cases: bool = False,
    owes: bool = True,
) -> Plan:
    """Find the questions and the model, without loading weights.

    Data are looked for in ``./datasets`` where no folder is given; where they are found, the plan's
    settings name it and its notes say so.

    Args:
        settled: the settings.
        only: ask exactly these ids in this order, whatever the data section says of a choice; then
            nothing is looked for.
        find_cases: look for a file of correct cases in ``./metadata`` too, where none is given and
            no ids are.
        owes: whether any question is to be asked, so that the model has to be there.

    Raises:
        UsageError: any of them does not exist or does not go with the others.
    """
    config, task = settled.config, settled.task
    notes: list[str] = list(getattr(task, "cautions", ()))
    if only is None and config.data.data_dir is None:
        config = _with_local_data(config, task, notes)
    data = config.data
    options = TaskOptions(
        data.data_dir, data.split, data.prompt, data.seed, data.prompt_style or "own"
    )
    questions = load_questions(task, options)
    if not questions:
        raise UsageError(f"The task {config.task!r} has no questions in split {data.split!r}.")
    if only is not None:
        left = in_order(questions, only)
    else:
        if find_cases:
            config = _with_found_cases(config, task, questions, notes)
            data = config.data
        left = chosen(questions, data.questions, task)
        if data.skip_cases is not None and str(data.skip_cases) != NO_CASES:
            left = without_cases(questions, left, data.skip_cases, task)
        left = left[: data.limit]
    if not left:
        raise UsageError(
            f"No question of {config.task!r} is left to ask: --skip-cases leaves out all of "
            f"{len(questions)}; ask others with --questions or another --split, or all of them "
            f"with --skip-cases {NO_CASES}."
        )
    if config.ablate == "shuffle" and len(left) < 2:
        raise UsageError(
            "The ablation 'shuffle' takes attempts at another question, and the run asks one; ask "
            "two or more, or use --ablate constant."
        )
    settled = replace(settled, config=config)
    if owes:
        settled.check_model()
    return Plan(settled, tuple(left), tuple(notes))


def plan_resume(run: Run, values: Mapping[str, Any]) -> Plan:
    """The plan of a folder's run, under ``values``: its own settings with flags laid over them.

    Raises:
        UsageError: a setting contradicts the folder's, or the data have changed since.
    """
    values = merge(_found(run), values)
    settled = settle(build(RunConfig, values, "the settings"))
    own = dict(leaves(build(RunConfig, run.config, f"{run.path}/config.toml").to_toml()))
    asked = dict(leaves(settled.config.to_toml()))
    unknown_then = _defaults(settled.settings) - own.keys()
    for name in sorted({*own, *asked} - unknown_then, key=lambda name: (name.count("."), name)):
        if own.get(name) != asked.get(name) and name not in MAY_DIFFER:
            raise UsageError(
                f"The run in {str(run.path)!r} was made with {name} = {own.get(name)!r} and cannot "
                f"be resumed with {asked.get(name)!r}; leave that setting away, or start a new run."
            )
    _check_same_weights(run, settled.config)
    if settled.settings.fingerprint() != run.environment.get("network"):
        raise UsageError(
            f"The network in {settled.config.settings['checkpoint']!r} has changed since the run "
            f"in {str(run.path)!r} began; bring the old one back, or start a new run."
        )
    ids, owes = [question.id for question in run.questions], not run.finished or bool(run.lost)
    plan = plan_run(settled, only=ids, owes=owes)
    questions = []
    for old, new in zip(run.questions, plan.questions, strict=True):
        if fingerprint(old) != fingerprint(new):
            raise UsageError(
                f"The question {old.id!r} has changed since the run in {str(run.path)!r} began; "
                "bring the old data back, or start a new run."
            )
        questions.append(replace(new, rendered=old.rendered))
    return replace(plan, questions=tuple(questions))


def _defaults(settings: MethodSettings) -> set[str]:
    """The settings that have their default values; a folder of an older version may lack them."""
    return {
        f"settings.{name}"
        for name, field in type(settings).model_fields.items()
        if getattr(settings, name) == field.get_default(call_default_factory=True)
    }


def _found(run: Run) -> dict[str, Any]:
    """Where the run's data were: they may have been found without having been asked for."""
    folder = run.config.get("data", {}).get("data_dir")
    return {} if folder is None else {"data": {"data_dir": folder}}


def _check_same_weights(run: Run, config: RunConfig) -> None:
    """Refuse a model or a checkpoint whose files have changed since the run began."""
    from fttt.models.locate import model_content

    then = run.environment.get("model_content")
    if then is not None and model_content(config.model) not in (None, then):
        raise UsageError(
            f"The model {config.model!r} has changed since the run in {str(run.path)!r} began; "
            "bring the old one back, or start a new run."
        )
    if config.adapter is None:
        return
    from fttt.finetune.load import describe_checkpoint

    then = run.environment.get("adapter", {}).get("fingerprint")
    if describe_checkpoint(config.adapter)["fingerprint"] != then:
        raise UsageError(
            f"The checkpoint {str(config.adapter)!r} has changed since the run in "
            f"{str(run.path)!r} began; bring the old one back, or start a new run."
        )


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


def _check_vote(method: Method, task: Task) -> None:
    """Refuse a vote where the task's verifier says whether, but not what, an answer is.

    Raises:
        UsageError: no completion would have a vote.
    """
    if method.decided_by == "vote" and not getattr(task, "reads_answers", True):
        raise UsageError(
            f"The method {method.name!r} votes over the answers that the verifier reads, and a "
            "function, command, pattern or model reads none; use another method, the verifier "
            "number, math or code, or from Python fttt.FunctionVerifier(check, extract=...)."
        )


def _check_temperature(config: RunConfig) -> None:
    """Refuse a range of temperatures where no number of trials says how long it is.

    Raises:
        UsageError: it is such.
    """
    temperature = config.sampling.temperature
    if isinstance(temperature, str) and config.budget.trials is None:
        raise UsageError(
            f"The temperature {temperature} goes from the first trial to the last, and the budget "
            "has no number of trials; give --trials too, or a list such as 0.6,0.8,1.0."
        )


def _check_ablation(config: RunConfig, method: Method) -> None:
    """Refuse an ablation of a method that does not have it.

    Raises:
        UsageError: it is such.
    """
    if config.ablate is None or config.ablate in method.ablations:
        return
    if method.ablations:
        advice = f"its ablations are {', '.join(method.ablations)}"
    else:
        learners = (name for name, kind in METHODS.items() if kind.ablations)
        advice = f"it has no ablation, as {', '.join(learners)} have, so leave --ablate away"
    raise UsageError(
        f"The method {config.method!r} cannot be run with --ablate {config.ablate}; {advice}."
    )


def _with_weights(config: RunConfig, method: Method, settings: MethodSettings) -> RunConfig:
    """The settings with the checkpoint that the method starts from, and its or the network's model.

    Raises:
        UsageError: a fine-tuned method without a checkpoint, or two that differ.
    """
    checkpoint = config.adapter
    own = settings.starts_from
    if own is not None and checkpoint not in (None, own):
        raise UsageError(
            f"The method {config.method!r} starts from one checkpoint, not from --checkpoint "
            f"{own} and --adapter {checkpoint}; give one of them."
        )
    checkpoint = own or checkpoint
    if method.needs_checkpoint and checkpoint is None:
        raise UsageError(
            f"The method {config.method!r} needs --checkpoint DIR, a folder that "
            "`fttt finetune train` wrote."
        )
    over: dict[str, Any] = {} if checkpoint is None else {"adapter": str(checkpoint)}
    model = settings.base_model
    if checkpoint is not None:
        from fttt.finetune.metadata import read_info

        model = (info := read_info(checkpoint)).model
        over["engine"] = {"quantize": config.engine.quantize or info.quantize}
    if "model" not in config.model_fields_set and model is not None:
        over["model"] = model
    if not over:
        return config
    return build(RunConfig, merge(config.to_toml(), over), "the settings")


def _with_fixed(config: RunConfig, method: Method) -> RunConfig:
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


def load(config: RunConfig) -> ReadyModel:
    """The model of a config: its weights, or a server that has it.

    Raises:
        UsageError: there is no such model.
        RunError: it does not fit.
    """
    if config.endpoint is not None:
        from fttt.models.served import find_served

        return find_served(config.model, config.endpoint, config.engine.request_timeout)
    engine = config.engine
    how = {"dtype": engine.dtype, "device": engine.device}
    return load_weights(config.model, config.adapter, **how, quantize=engine.quantize)


def load_weights(
    model: str, adapter: Path | None, *, dtype: str, device: str, quantize: str | None = None
) -> LoadedModel:
    """Load a model, with the fine-tuned checkpoint that it starts from, if any.

    Raises:
        UsageError: the model, checkpoint, dtype or device does not exist.
        RunError: the model does not fit.
    """
    if adapter is None:
        from fttt.models import load_model

        return load_model(model, dtype=dtype, device=device, quantize=quantize)
    from fttt.finetune.load import load_finetuned

    return load_finetuned(adapter, model=model, dtype=dtype, device=device, quantize=quantize)


def check_fits(plan: Plan, loaded: ReadyModel) -> int:
    """The longest sequence of the run, in tokens, once every question is known to fit.

    Raises:
        UsageError: a question and its answer are longer than the model's context.
    """
    new = plan.config.sampling.max_new_tokens
    limit, chat = loaded.max_context, plan.chat(loaded)
    if plan.config.engine.max_length is not None:
        limit = min(limit, plan.config.engine.max_length)
    longest = 0
    for question in plan.questions:
        length, told = _prompt_tokens(question, chat, max(0, limit - new))
        if length + new > limit:
            raise UsageError(
                f"The question {question.id!r} has {told} tokens, which with --max-new-tokens "
                f"{new} is longer than the context of {limit} tokens; lower --max-new-tokens or "
                "leave the question out."
            )
        longest = max(longest, length)
    needed = sum(
        turn if isinstance(turn, int) else chat.turn_tokens(turn)
        for turn in plan.method.conversation(new)
    )
    return min(limit, longest + needed)


_TOKEN = 16
"""Characters of a token, more than any text has on average."""


def _prompt_tokens(
    question: Question, chat: ChatFormat | MessageFormat, most: int
) -> tuple[int, str]:
    """The tokens of a question's prompt, and how many to speak of.

    Of a text far longer than ``most`` tokens only a beginning is tokenized: megabytes take minutes.
    """
    text, enough = question.rendered or question.prompt, _TOKEN * (most + 1)
    if len(text) > enough:
        beginning = chat.prompt_tokens(text[:enough], text[:enough])
        if beginning > most + 1:  # of which the last may be a part of a token
            return beginning, f"more than {beginning - 1}"
    length = chat.prompt_tokens(question.prompt, question.rendered)
    return length, str(length)


def weights_label(config: RunConfig) -> str:
    """The model's name as file names hold it, its quantisation, and the checkpoint's name."""
    packed = "" if config.engine.quantize in (None, "none") else f"-{config.engine.quantize}"
    label = model_label(config.model) + packed
    return label if config.adapter is None else f"{label}+{config.adapter.resolve().name}"


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of nested tables, by their names as ``section.field``."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
