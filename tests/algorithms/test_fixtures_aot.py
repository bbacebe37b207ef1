"""AOT: numbers derived by hand, and that measuring each completion against a constant is sorting the whole step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from batches import make_batch

from aurify.algorithms.aot import AOT
from aurify.types import Datum, Outputs


class Known:
    """A policy whose completions of one token, t, have log-prob -t."""

    def logprobs(self, data: Any, *, reference: bool = False, temperature: float = 1.0) -> list[list[float]]:
        return [[0.0, -float(datum.tokens[1])] for datum in data]

    def entropies(self, data: Any, *, temperature: float = 1.0) -> list[list[float]]:
        raise AssertionError("not needed")

    def over_ranks(self, values: Any) -> list[float]:
        return list(values)


def steps(sums: list[int], h: list[float]) -> list[Datum]:
    """Completions of one token each, chosen and rejected in turn, whose log-prob is -sums and whose gain is h."""
    return [
        Datum([1, s], [0.0, 1.0], ref_logprobs=[0.0, -s - gain], unit=k // 2)
        for k, (s, gain) in enumerate(zip(sums, h, strict=True))
    ]


def loss_of(algorithm: AOT, data: list[Datum]) -> tuple[float, list[float]]:
    """The loss of one micro-batch and its gradient by the log-prob of each completion."""
    logprobs = torch.tensor([-float(datum.tokens[1]) for datum in data], requires_grad=True)
    reference = torch.tensor([datum.ref_logprobs[1] for datum in data])  # type: ignore[index]
    baseline = torch.tensor([datum.baseline for datum in data])
    loss, _ = algorithm.loss(Outputs(logprobs), make_batch([1] * len(data), ref_logprobs=reference, baseline=baseline))
    loss.backward()
    assert logprobs.grad is not None
    return float(loss.detach()), logprobs.grad.tolist()


def test_unpaired():
    """h_c = (2, 0), h_r = (-1, 1): by rank 0 meets -1 and 2 meets 1, so twice log(1 + e^-.1), where DPO has gaps of 3
    and -1. The slope is -.1 s(-.1) = -.047502 for chosen ones."""
    data = AOT().prepare(steps([3, 4, 5, 6], [2.0, -1.0, 0.0, 1.0]), Known(), 1.0)
    assert [datum.baseline for datum in data] == [1.0, 0.0, -1.0, 2.0]
    loss, slopes = loss_of(AOT(), data)
    assert loss == pytest.approx(1.288793, abs=1e-6)
    assert slopes == pytest.approx([-0.047502, 0.047502] * 2, abs=1e-6)


def test_paired():
    """Gaps (3, -1) of the policy, (0, 1) of the reference: by rank -1 - 0 and 3 - 1, log(1 + e^.1) + log(1 + e^-.2)"""
    algorithm = AOT(paired=True)
    data = algorithm.prepare(steps([4, 7, 6, 5], [0.0, -3.0, 1.0, 3.0]), Known(), 1.0)
    assert [datum.baseline for datum in data] == [1.0, 1.0, 0.0, 0.0]
    assert loss_of(algorithm, data)[0] == pytest.approx(1.342536, abs=1e-6)


def test_equal_values_share_what_their_ranks_have():
    """h_c = (1, 1, 0) against h_r = (-1, 3, 5): 0 meets -1, each 1 the mean of 3 and 5, and so in any order."""
    data = AOT().prepare(steps([3, 4, 5, 6, 7, 8], [1.0, -1.0, 1.0, 3.0, 0.0, 5.0]), Known(), 1.0)
    assert [datum.baseline for datum in data] == [4.0, 0.0, 4.0, 1.0, -1.0, 1.0]


@pytest.mark.parametrize("paired", [True, False])
def test_it_is_the_sorted_loss_whatever_a_micro_batch_holds(paired):
    """Against the definition, sorted with gradient, on seven pairs; ours in micro-batches of one pair."""
    generator = torch.Generator().manual_seed(0)
    sums = torch.randint(1, 40, (14,), generator=generator)
    h = 3 * torch.randn(14, generator=generator)
    algorithm = AOT(paired=paired, beta=0.5, label_smoothing=0.1)
    logprobs = -sums.float().requires_grad_(True)
    logprobs.retain_grad()
    reference = logprobs.detach() - h
    if paired:
        left, right = (torch.sub(*values.view(-1, 2).unbind(1)) for values in (logprobs, reference))
    else:
        left, right = (logprobs - reference).view(-1, 2).unbind(1)
    delta = 0.5 * (left.sort().values - right.sort().values)
    expected = -(0.9 * F.logsigmoid(delta) + 0.1 * F.logsigmoid(-delta)).sum()
    expected.backward()

    data = algorithm.prepare(steps(sums.tolist(), h.tolist()), Known(), 1.0)
    assert data == [
        replace(d, baseline=p.baseline) for d, p in zip(steps(sums.tolist(), h.tolist()), data, strict=True)
    ]
    parts = [loss_of(algorithm, data[k : k + 2]) for k in range(0, 14, 2)]
    assert sum(loss for loss, _ in parts) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert [s for _, slopes in parts for s in slopes] == pytest.approx(logprobs.grad.tolist(), abs=1e-5)
