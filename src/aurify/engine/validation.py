"""What a call of `forward_backward`, and a teacher, must fulfil."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aurify.errors import UserError
from aurify.models.embeddings import check_token_ids
from aurify.types import Algorithm, Datum


def select_trained(
    data: Sequence[Datum], algorithm: Algorithm, *, max_context: int, vocabulary: int, has_score: bool
) -> list[Datum]:
    """Checks ids and lengths, and leaves out sequences that have nothing to train."""
    name = type(algorithm).__name__
    for index, datum in enumerate(data):
        if len(datum.tokens) > max_context:
            raise UserError(
                f"sequence {index} has {len(datum.tokens)} tokens; the model's context is {max_context}: shorten it"
            )
        if not datum.tokens:
            raise UserError(f"sequence {index} is empty")
        check_token_ids(datum.tokens, vocabulary, f"sequence {index}")
        for need in ("ref_logprobs", "advantages", "logprobs", "old_logprobs"):
            if need in algorithm.needs and getattr(datum, need) is None:
                raise ValueError(f"{name} needs {need}; sequence {index} has none")
    if "scores" in algorithm.needs and not has_score:
        raise UserError("a reward model needs a scalar head; load the model with scalar_head=True")
    if "scores" not in algorithm.needs and has_score:
        raise UserError(f"{name} trains a language model; this one has a scalar head (a reward model)")
    pairs = algorithm.per == "unit" and algorithm.learns_from != "rollouts"
    if has_score or pairs:  # scores are of whole sequences, and a pair stays whole
        return list(data)
    return [datum for datum in data if any(datum.weights)]


def check_teacher(name: str, tokens: Mapping[str, int], teacher: str, taught: Mapping[str, int], num_rows: int) -> None:
    """A teacher may have any size. Its tokens must be the student's, except for some that only one of the two has."""
    if not (tokens.items() <= taught.items() or taught.items() <= tokens.items()):
        token = next(token for token, number in tokens.items() if taught.get(token) != number)
        raise UserError(
            f"teacher: {teacher} reads other tokens than {name} ({token!r} is {tokens[token]} here and "
            f"{taught.get(token, 'nothing')} there); choose one with the same tokenizer"
        )
    if max(tokens.values()) >= num_rows:
        raise UserError(f"teacher: {teacher} has {num_rows} rows for the tokens of {name}")
