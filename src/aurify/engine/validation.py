"""What a call of `forward_backward` may be given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aurify.errors import UserError
from aurify.types import Algorithm, Datum

if TYPE_CHECKING:
    from aurify.engine.engine import Engine


def select_trained(engine: Engine, data: Sequence[Datum], algorithm: Algorithm) -> list[Datum]:
    """Checks ids and lengths, and leaves out sequences that have nothing to train."""
    limit, vocabulary = engine.max_context, engine.vocabulary
    if "teacher_divergence" in algorithm.needs:
        limit = min(limit, engine.followed().max_context)
    for index, datum in enumerate(data):
        if len(datum.tokens) > limit:
            raise UserError(
                f"sequence {index} has {len(datum.tokens)} tokens; the model's context is {limit}: shorten it"
            )
        if not datum.tokens or not 0 <= min(datum.tokens) <= max(datum.tokens) < vocabulary:
            raise UserError(f"sequence {index} is empty or has token ids outside 0..{vocabulary - 1}")
        for need in ("ref_logprobs", "advantages", "logprobs", "old_logprobs"):
            if need in algorithm.needs and getattr(datum, need) is None:
                raise ValueError(f"{type(algorithm).__name__} needs {need}; sequence {index} has none")
    if "scores" in algorithm.needs:
        if engine.score is None:
            raise UserError("a reward model needs a scalar head; load the model with scalar_head=True")
        return list(data)
    if engine.head is None:
        raise UserError(
            f"{type(algorithm).__name__} trains a language model; this one has a scalar head (a reward model)"
        )
    if algorithm.per == "unit":  # a pair stays whole
        return list(data)
    return [datum for datum in data if any(datum.weights)]
