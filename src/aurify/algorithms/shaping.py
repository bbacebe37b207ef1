"""How much a token counts that the policy of now did not write, by f(x) of a probability or an importance ratio x. No
clipping: what the policy would hardly write is what such tokens are there for.

The gradient of -f(x) A is -A x f'(x) grad log pi. For x / (x + gamma), x f'(x) is 0.0098 at 0.001, 0.25 at gamma = 0.1
and 0.0826 at 1: next to plain importance weighting (x f'(x) = x), rare tokens count about ten times as much, and sure
ones a twelfth."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Shape = Literal["fraction", "none", "log", "linear_log", "power"]

BENT: tuple[Shape, ...] = ("fraction", "linear_log", "power")  # by gamma

MAX_LOG = 20.0


def shaped(log_x: Tensor, shape: Shape, gamma: float) -> Tensor:
    """fraction: x / (x + gamma). none: x. log: log x. linear_log: x + gamma log x. power: x ** gamma."""
    if shape == "log":
        return log_x  # never clamped: it is there for the tokens of which the policy knows least
    x = log_x.clamp(max=MAX_LOG).exp()  # from above alone: small ones have a gradient that vanishes by itself
    if shape == "power":
        return (gamma * log_x.clamp(max=MAX_LOG)).exp()
    if shape == "none":
        return x
    return x / (x + gamma) if shape == "fraction" else x + gamma * log_x
