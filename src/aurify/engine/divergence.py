"""How far a student's next-token distributions are from a teacher's, over the whole vocabulary, without ever holding
all logits (arXiv 2306.13649). With p of the student, q of the teacher, m = beta q + (1 - beta) p:

    forward   KL(q || p)                                    the student covers all that the teacher might say
    reverse   KL(p || q)                                    the student says only what the teacher might
    jsd       beta KL(q || m) + (1 - beta) KL(p || m)       beta -> 0 is beta times forward, beta -> 1 is
                                                            (1 - beta) times reverse

As for log-probs (logprobs.py), both heads run over chunks of positions; backward computes a chunk's logits again or,
with a frozen head, forward keeps each position's derivative. The two models may have any size. Their heads are often
padded to different lengths; then only the rows that both have count."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from aurify.engine.logprobs import Head, HeadGradient, WithDerivative, equal_slices, logit_chunk_rows
from aurify.errors import UserError
from aurify.types import Divergence


class LinearDivergence(torch.autograd.Function):
    """hidden [n, hidden] of the student -> divergence [n] fp32. The teacher gets no gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, taught: Tensor, teacher: Head,
        temperature: float, kind: Divergence, beta: float, chunk: int,
    ) -> Tensor:  # fmt: skip
        result = hidden.new_empty(len(hidden), dtype=torch.float32)
        for rows in equal_slices(len(hidden), chunk):
            log_p = log_probabilities(head.logits(hidden[rows]), temperature)
            log_q = log_probabilities(teacher.logits(taught[rows]), temperature)
            result[rows] = divergence(log_p, log_q, kind, beta)
        ctx.save_for_backward(hidden, weight, bias, taught)
        ctx.head, ctx.teacher, ctx.temperature = head, teacher, temperature
        ctx.kind, ctx.beta, ctx.chunk = kind, beta, chunk
        return result

    @staticmethod
    def backward(ctx: Any, grad_divergence: Tensor) -> Any:
        hidden, _, _, taught = ctx.saved_tensors
        gradient = HeadGradient(ctx.head, hidden, ctx.temperature, ctx.needs_input_grad)
        for rows in equal_slices(len(hidden), ctx.chunk):
            logits = ctx.head.logits(hidden[rows])
            log_p = log_probabilities(logits, ctx.temperature)
            log_q = log_probabilities(ctx.teacher.logits(taught[rows]), ctx.temperature)
            grad = divergence_gradient(log_p, log_q, ctx.kind, ctx.beta).mul_(grad_divergence[rows, None])
            gradient.add(rows, grad, logits)
        return *gradient.results(), None, None, None, None, None, None, None


def frozen_head_divergence(
    hidden: Tensor,
    head: Head,
    taught: Tensor,
    teacher: Head,
    temperature: float,
    kind: Divergence,
    beta: float,
    chunk: int,
) -> Tensor:
    """`LinearDivergence` for a frozen head: three products with the two heads instead of five."""
    frozen = hidden.detach()
    gradient = HeadGradient(head, frozen, temperature, (True, False, False))
    result = frozen.new_empty(len(frozen), dtype=torch.float32)
    with torch.no_grad():  # the teacher's weights may ask for gradients
        for rows in equal_slices(len(frozen), chunk):
            logits = head.logits(frozen[rows])
            log_p = log_probabilities(logits, temperature)
            log_q = log_probabilities(teacher.logits(taught[rows]), temperature)
            result[rows] = divergence(log_p, log_q, kind, beta)
            gradient.add(rows, divergence_gradient(log_p, log_q, kind, beta), logits)
    return WithDerivative.apply(hidden, result, gradient.hidden)


def log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    return (logits if temperature == 1.0 else logits / temperature).log_softmax(dim=1)


def divergence(log_p: Tensor, log_q: Tensor, kind: Divergence, beta: float) -> Tensor:
    """[n, vocabulary] twice -> [n]"""
    if kind == "forward":
        return kl(log_q, log_p)
    if kind == "reverse":
        return kl(log_p, log_q)
    log_m = mixture(log_p, log_q, beta)
    return beta * kl(log_q, log_m) + (1 - beta) * kl(log_p, log_m)


def divergence_gradient(log_p: Tensor, log_q: Tensor, kind: Divergence, beta: float) -> Tensor:
    """The gradient of `divergence` by the logits of p. Overwrites log_p and log_q."""
    if kind == "forward":
        return log_p.exp_().sub_(log_q.exp_())  # p - q
    # the others are p (f - sum p f), with f their derivative by p, up to a constant
    slope = log_p - (log_q if kind == "reverse" else mixture(log_p, log_q, beta))
    p = log_p.exp_()
    slope -= (p * slope).sum(1, keepdim=True)
    return slope.mul_(p) if kind == "reverse" else slope.mul_(p).mul_(1 - beta)


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a - log_b).mul_(log_a.exp()).sum(1)


def mixture(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    return torch.logaddexp(log_p + math.log1p(-beta), log_q + math.log(beta))


def linear_divergence(
    hidden: Tensor,
    head: Head,
    taught: Tensor,
    teacher: Head,
    *,
    temperature: float = 1.0,
    kind: Divergence = "forward",
    beta: float = 0.5,
    chunk: int | None = None,
) -> Tensor:
    """The divergence at each position, of the two distributions at `temperature`. There is no factor temperature^2.

    hidden [n, hidden] of the student, taught [n, hidden] of the teacher -> [n] fp32. chunk: positions whose logits
    exist at the same time, twice."""
    size = min(len(head.weight), len(teacher.weight))
    head, teacher = first_head_rows(head, size), first_head_rows(teacher, size)
    chunk = chunk or logit_chunk_rows(head.weight.shape[0], head.weight.device.type, copies=2)
    rest = taught.detach(), teacher, temperature, kind, beta, chunk
    if hidden.requires_grad and not head.trained:
        return frozen_head_divergence(hidden, head, *rest)
    return LinearDivergence.apply(hidden, head.weight, head.bias, head, *rest)


def first_head_rows(head: Head, size: int) -> Head:
    if len(head.weight) == size:
        return head
    return replace(head, weight=head.weight[:size], bias=None if head.bias is None else head.bias[:size])


def check_teacher_head(
    name: str, tokens: Mapping[str, int], teacher: str, taught: Mapping[str, int], num_rows: int
) -> None:
    """A teacher may have any size. Its tokens must be the student's, except for some that only one of the two has."""
    if not (tokens.items() <= taught.items() or taught.items() <= tokens.items()):
        token = min((token for token, number in tokens.items() if taught.get(token) != number), key=tokens.__getitem__)
        raise UserError(
            f"teacher: {teacher} reads other tokens than {name} ({token!r} is {tokens[token]} here and "
            f"{taught.get(token, 'nothing')} there); choose one with the same tokenizer"
        )
    if max(tokens.values()) >= num_rows:
        raise UserError(f"teacher: {teacher} has {num_rows} rows for the tokens of {name}")
