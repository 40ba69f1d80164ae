"""What goes with a model on a server, and what does not; said before anything is asked."""

from __future__ import annotations

from fttt.config import RunConfig, build, merge
from fttt.errors import UsageError
from fttt.files import SERVED
from fttt.methods import METHODS, Method, MethodSettings
from fttt.verifiers.verifier import with_server

__all__ = ["check_endpoint", "with_judge_server"]


def check_endpoint(config: RunConfig, kind: type[Method]) -> None:
    """Refuse what does not go with a served model, or only with one.

    Raises:
        UsageError: it is such.
    """
    url, model, engine = config.endpoint, config.model, config.engine
    if url is None:
        if model.startswith(SERVED):
            raise UsageError(
                f"The model {model!r} is a server's; say where with --endpoint URL, such as "
                "http://localhost:8000/v1."
            )
        for name in ("concurrency", "request_timeout"):
            if getattr(engine, name) is not None:
                raise UsageError(
                    f"--{name.replace('_', '-')} {getattr(engine, name):g} is of requests to a "
                    "server and has no meaning without --endpoint; leave it away."
                )
        return
    from fttt.models.served import KEY, check_address

    check_address(url, "--endpoint", KEY)
    if not model.removeprefix(SERVED) or not model.startswith(SERVED):
        raise UsageError(
            f"--endpoint goes with --model {SERVED}NAME, as the server calls it, not with "
            f"{model!r}; leave --endpoint away to run a model here."
        )
    _check_answers_only(config, kind)
    if config.sampling.think_tokens is not None:
        raise UsageError(
            f"--think-tokens {config.sampling.think_tokens} closes thoughts by their tokens, which "
            "a server keeps to itself; leave it away, or give its template an argument for it by "
            "--template-arg."
        )
    for name in ("dtype", "quantize", "device", "batch_size", "memory_share"):
        if getattr(engine, name) not in (None, "auto"):
            raise UsageError(
                f"--{name.replace('_', '-')} {getattr(engine, name)} is of a model that runs here, "
                "not of one behind --endpoint; leave it away (--concurrency says how many answers "
                "are written at once)."
            )


def _check_answers_only(config: RunConfig, kind: type[Method]) -> None:
    """Refuse a method or a checkpoint that needs weights, for a model that only answers."""
    if config.adapter is None and not _needs_weights(kind):
        return
    name = config.model.removeprefix(SERVED)
    command = f"fttt run {config.method} --model {name if '/' in name else 'MODEL'}"
    if config.adapter is not None:
        command += f" --adapter {config.adapter}"
        what = f"The checkpoint {str(config.adapter)!r}"
    else:
        what = f"The method {config.method!r}"
    able = ", ".join(name for name, kind in METHODS.items() if not _needs_weights(kind))
    raise UsageError(
        f"{what} needs the model's weights, and a server only answers; run it where they are "
        f"(`{command} --task {config.task}`), or another method at the endpoint: {able}."
    )


def _needs_weights(kind: type[Method]) -> bool:
    """Whether a method searches, trains or starts from a checkpoint."""
    trains = kind.Settings.adapter is not MethodSettings.adapter
    return kind.searches or kind.needs_checkpoint or trains


def with_judge_server(config: RunConfig) -> RunConfig:
    """The settings with ``--endpoint`` as the server of judging models that name none.

    Where the model that answers runs here, that is all that the endpoint is for.
    """
    choice = config.data.options.get("verifier")
    if config.endpoint is None or not isinstance(choice, str):
        return config
    asked = with_server(choice, config.endpoint)
    if asked == choice:
        return config
    values = merge(config.to_toml(), {"data": {"options": {"verifier": asked}}})
    if not config.model.startswith(SERVED):
        del values["endpoint"]
    return build(RunConfig, values, "the settings")
