"""What lengths and a template's arguments go with; said before weights are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fttt.config import RunConfig
from fttt.errors import UsageError
from fttt.methods import Method

if TYPE_CHECKING:
    from fttt.models import ChatFormat

__all__ = ["check_chat", "check_length", "check_thoughts"]

_SHORT = 2048
"""Tokens of an answer up to which no configuration is read in advance: contexts are longer."""


def check_length(config: RunConfig) -> None:
    """Refuse answers as long as the model's context, by its configuration alone.

    Raises:
        UsageError: they are.
    """
    new = config.sampling.max_new_tokens
    if new <= _SHORT:
        return
    from fttt.models import context_of, load_config

    limit = context_of(load_config(config.model))
    if config.engine.max_length is not None:
        limit = min(limit, config.engine.max_length)
    if new >= limit:
        raise UsageError(
            f"--max-new-tokens {new} leaves no room for a question within the context of {limit} "
            f"tokens of {config.model!r}; lower it."
        )


def check_thoughts(config: RunConfig, method: Method) -> None:
    """Refuse a thinking budget that leaves no room for an answer, and one of a beam search.

    Raises:
        UsageError: it is such.
    """
    budget = config.sampling.think_tokens
    if budget is None:
        return
    if method.searches:
        raise UsageError(
            f"The method {config.method!r} searches by the model's own probabilities and closes no "
            f"thought, so leave --think-tokens {budget} away."
        )
    _check_fits(config, budget, 0)


def check_chat(config: RunConfig, chat: ChatFormat) -> None:
    """Refuse arguments that a chat template does not name, and a budget of no thoughts.

    Raises:
        UsageError: they are such.
    """
    budget = config.sampling.think_tokens
    chat = chat.with_arguments(config.template_args)
    if budget is not None:
        _check_fits(config, budget, len(chat.thought_ids()[-1]))


def _check_fits(config: RunConfig, budget: int, closing: int) -> None:
    most = config.sampling.max_new_tokens
    if budget + closing >= most:
        more = f", and {closing} more that close it," if closing else ""
        raise UsageError(
            f"A thought of --think-tokens {budget}{more} leaves no room for an answer within "
            f"--max-new-tokens {most}; lower the one or raise the other."
        )
