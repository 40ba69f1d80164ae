"""The precisions that a model can be trained in."""

from __future__ import annotations

from fttt.errors import UsageError

__all__ = ["refuse_float16"]


def refuse_float16(dtype: str) -> None:
    """Refuse the one precision of inference that training does not have.

    Raises:
        UsageError: it is float16.
    """
    if dtype == "float16":
        raise UsageError(
            "Training in float16 needs its losses scaled, which is not supported; "
            "use --dtype bfloat16 or float32."
        )
