"""What a run on replicas can be, known before anything is loaded."""

from __future__ import annotations

from fttt.config import RunConfig
from fttt.errors import UsageError
from fttt.methods import Method

__all__ = ["check_replicas"]

_BYTES = {"float32": 4}
"""Of a parameter, by the dtype; two of the others."""
_ROOM = 1.25
"""Times its weights that a model needs at least, with the cache of a few sequences."""


def check_replicas(config: RunConfig, method: Method) -> None:
    """Refuse replicas that the run cannot be divided over.

    Raises:
        UsageError: it is such.
    """
    engine = config.engine
    if engine.gpus_per_replica > 1:
        raise UsageError(
            f"--gpus-per-replica {engine.gpus_per_replica:g} is not possible, since the engine "
            f"runs a model on one GPU: {_what_fits(config)}."
        )
    several = engine.replicas not in (None, 1)
    if config.endpoint is not None and (several or engine.ray_address is not None):
        raise UsageError(
            "Replicas hold a model each, and --endpoint names a server that has one already; leave "
            "--replicas and --ray-address away (--concurrency says how many answers are written at "
            "once)."
        )
    if not several:
        if engine.gpus_per_replica < 1 and engine.ray_address is None:
            raise UsageError(
                f"--gpus-per-replica {engine.gpus_per_replica:g} divides a GPU among replicas, and "
                "one process asks this run; give --replicas auto, or --gpus-per-replica 1."
            )
        return
    if engine.device.startswith("cuda:"):
        raise UsageError(
            f"--replicas {engine.replicas} takes a GPU each and --device {engine.device} names one "
            "of them; use --device cuda or auto."
        )
    if method.shared:
        raise UsageError(
            f"The method {config.method!r} with one adapter for all questions learns from all of "
            f"them in one process; leave --replicas {engine.replicas} away."
        )


def _what_fits(config: RunConfig) -> str:
    """What a GPU must have for the model; where its files are not here, what one of 80 GB holds."""
    from fttt.models.locate import parameter_count  # late: most runs need no look at the files

    count = parameter_count(config.model)
    if count is None:
        return "one of 80 GB holds some 30B parameters in bfloat16; choose a model that fits"
    engine = config.engine
    dtype = "bfloat16" if engine.dtype == "auto" else engine.dtype
    held = count * _BYTES.get(dtype, 2) / 1e9
    smaller = "--dtype bfloat16 halves them, " if dtype == "float32" else ""
    smaller += "--quantize nf4 takes some 30 % of bfloat16's" if engine.quantize is None else ""
    return (
        f"the weights of {config.model!r} take {held:.1f} GB in {dtype}, so one of "
        f"{max(1, round(held * _ROOM))} GB or more holds it"
        + (f" ({smaller.removesuffix(', ')})" if smaller else "")
        + "; leave --gpus-per-replica away, or choose a smaller model"
    )
