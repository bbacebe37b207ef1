"""Numbers derived by hand for the preference family: the fixtures of the specification, with the arithmetic in the
tests, and what must hold of single losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from batches import make_batch

from aurify.algorithms.aot import AOT
from aurify.algorithms.cpo import CPO
from aurify.algorithms.dpo import DPO, LOSSES
from aurify.algorithms.kto import KTO, mismatch_completions
from aurify.algorithms.orpo import ORPO, log1mexp, log_odds
from aurify.algorithms.reward_model import RewardModel
from aurify.algorithms.simpo import SimPO
from aurify.errors import UserError
from aurify.types import Datum, Outputs


def spread(sums: list[float], lengths: list[int]) -> Outputs:
    """Sequences whose log-probs add up to `sums`, the same for every token."""
    return Outputs(
        torch.cat([torch.full((length,), value / length) for value, length in zip(sums, lengths, strict=True)])
    )


def value(algorithm: Any, sums: list[float], lengths: list[int], **streams: Any) -> float:
    return float(algorithm.loss(spread(sums, lengths), make_batch(lengths, pairs=True, **streams))[0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.554355),  # log(1 + exp(-.3))
        ({"label_smoothing": 0.1}, 0.584355),  # .554355 + .1 * .3: the two sides differ by the gap
        ({"loss_type": "robust", "label_smoothing": 0.1}, 0.516855),  # (.9 * .554355 - .1 * .854355) / .8
        ({"loss_type": "robust"}, 0.554355),  # without noise it is the sigmoid loss
        ({"loss_type": "hinge"}, 0.7),  # 1 - .3
        ({"loss_type": "ipo"}, 21.16),  # (.2 + .2 - 5)^2
        ({"loss_type": "sigmoid_norm", "beta": 5.0}, 0.126928),  # log(1 + exp(-5 * .4))
        ({"loss_type": "apo_zero"}, 0.925187),  # 1 - s(.2) + s(-.1) = .450166 + .475021
        ({"loss_type": "apo_down"}, 0.975391),  # s(.2) + 1 - s(.3) = .549834 + .425557
        ({"loss_type": "nca"}, 1.319407),  # .598139 + (.798139 + .644397) / 2
        ({"loss_type": "bco"}, 1.242536),  # log(1 + e^-.2) + log(1 + e^-.1) = .598139 + .644397
        ({"loss_type": "sppo"}, 25.0),  # (2 - 5)^2 + (-1 + 5)^2
        ({"loss_type": "exo", "label_smoothing": 0.1}, 0.358383),  # .574443 log(.574443/.9) + .425557 log(.425557/.1)
        ({"loss_type": "discopop"}, 0.740357),  # s(.3 / .05) = .997527 of e^-.3 = .740818, the rest of .554355
        ({"divergence": "forward_kl"}, 0.572316),  # 1 - e^-2 - (1 - e) = 2.582947 for the gap of 3
        ({"divergence": "js"}, 0.635589),  # -log((1 + e^-2) / 2) + log((1 + e) / 2) = 1.186334
        ({"divergence": "alpha"}, 0.573243),  # 2 (1 - e^-1) - 2 (1 - e^.5) = 2.561684
    ],
)
def test_dpo(options, expected):
    """h = (2, -1), n = (10, 5), beta .1: a gap of .3"""
    assert value(DPO(**options), [2.0, -1.0], [10, 5]) == pytest.approx(expected, abs=2e-6)


def test_exo_smooths_by_default():
    """Without any smoothing its target has probability 0 somewhere, and the divergence is infinite."""
    assert DPO(loss_type="exo").smoothing == 1e-3
    assert DPO().smoothing == 0
    assert math.isfinite(value(DPO(loss_type="exo"), [2.0, -1.0], [1, 1]))


def test_discopop_sinks_before_it_climbs():
    """At a gap of 0 the slope by beta h_c is -.25 - .5 + .25 / .05 (1 - log 2) = .784264; with a lead below 0."""
    for lead, rising in ((0.0, True), (2.0, False)):
        out = Outputs(torch.tensor([lead, 0.0], requires_grad=True))
        DPO(loss_type="discopop").loss(out, make_batch([1, 1], pairs=True))[0].backward()
        assert out.logprobs.grad is not None and (out.logprobs.grad[0] > 0) == rising
        assert not rising or float(out.logprobs.grad[0]) == pytest.approx(0.0784264, abs=1e-6)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"discopop"}))
def test_every_loss_prefers_the_chosen_one(name):
    """Where the model equals its reference, the gradient lifts h_c - h_r, and a large lead costs less than none."""
    algorithm, lengths = DPO(loss_type=name), [4, 2]
    out = Outputs(torch.zeros(6, requires_grad=True))
    algorithm.loss(out, make_batch(lengths, pairs=True))[0].backward()
    assert out.logprobs.grad is not None
    by_sequence = [float(part.sum()) for part in out.logprobs.grad.split(lengths)]
    assert by_sequence[0] < by_sequence[1]
    none, lead = (value(algorithm, sums, lengths) for sums in ([0.0, 0.0], [2.0, -2.0]))
    assert lead < none


@pytest.mark.parametrize(("alpha", "gap"), [(1.0, 6 * 0.5 - 2 * -0.25), (0.5, 4 * 0.5 + 0.5), (0.0, 2 * 0.5 + 0.5)])
def test_length_desensitised(alpha, gap):
    """Six tokens of .5 against two of -.25: the last four of the chosen one count alpha."""
    batch = make_batch([6, 2])
    out = Outputs(torch.tensor([0.5] * 6 + [-0.25] * 2))
    loss = float(DPO(beta=1.0, length_alpha=alpha).loss(out, batch)[0])
    assert loss == pytest.approx(math.log1p(math.exp(-gap)), rel=1e-5)


def test_length_desensitised_looks_at_each_pair():
    """The second pair's rejected one is the longer; the first pair has equal lengths, so nothing changes there."""
    out = Outputs(torch.tensor([0.3, 0.1, -0.2, 0.4, 0.6, 0.7, -0.5]))
    batch = make_batch([2, 2, 1, 2])
    first, second = (0.4 - 0.2), (0.6 - (0.7 - 0.5 * 0.1))
    expected = math.log1p(math.exp(-first)) + math.log1p(math.exp(-second))
    assert float(DPO(beta=1.0, length_alpha=0.1).loss(out, batch)[0]) == pytest.approx(expected, rel=1e-5)


def test_sft_term_is_a_mean_over_tokens_and_then_a_sum_over_pairs():
    """Chosen ones of -3 over two tokens and -4 over eight: 1.5 + .5, whatever the rejected ones are."""
    sums, lengths = [-3.0, -7.0, -4.0, -2.0], [2, 3, 8, 1]
    without, with_term = (value(DPO(sft_coef=c), sums, lengths) for c in (0.0, 0.25))
    assert with_term - without == pytest.approx(0.25 * 2.0, rel=1e-5)


def test_simpo():
    """S = (-12, -8), n = (10, 5): a = (-1.2, -1.6); log(1 + exp(-(2.5 * .4 - 1.375))) = log(1 + exp(.375))"""
    assert value(SimPO(), [-12.0, -8.0], [10, 5]) == pytest.approx(0.898123, abs=1e-6)
    assert value(SimPO(sft_coef=0.5), [-12.0, -8.0], [10, 5]) == pytest.approx(0.898123 + 0.6, abs=1e-6)
    # alpha .25: (1 - e^.3) / .25 = -1.399435 and (1 - e^.4) / .25 = -1.967299, 2.5 times their gap 1.419659
    assert value(SimPO(alpha=0.25), [-12.0, -8.0], [10, 5]) == pytest.approx(0.671067, abs=1e-6)
    smoothed = SimPO(alpha=0.25, label_smoothing=0.1)  # .1 * (1.419659 - 1.375) more
    assert value(smoothed, [-12.0, -8.0], [10, 5]) == pytest.approx(0.675533, abs=1e-6)


def test_cpo():
    """beta .1 of -12 + 8: log(1 + exp(.4)) = .913015; smoothing .1 takes .1 * .4 off; NLL 1.2"""
    assert value(CPO(sft_coef=0.0), [-12.0, -8.0], [10, 5]) == pytest.approx(0.913015, abs=1e-6)
    assert value(CPO(), [-12.0, -8.0], [10, 5]) == pytest.approx(0.913015 + 1.2, abs=1e-6)
    assert value(CPO(label_smoothing=0.1), [-12.0, -8.0], [10, 5]) == pytest.approx(0.873015 + 1.2, abs=1e-6)
    assert value(CPO(loss_type="hinge", sft_coef=0.0), [-12.0, -8.0], [10, 5]) == pytest.approx(1.4)  # 1 + .1 * 4
    assert value(CPO(loss_type="ipo", sft_coef=0.0), [-12.0, -8.0], [10, 5]) == pytest.approx(21.16)  # (.4 - 5)^2


def test_orpo():
    """a = (-1.2, -1.6): log odds -1.2 - log(1 - e^-1.2) + 1.6 + log(1 - e^-1.6) = .532865; .1 * log(1 + e^-.532865)"""
    odds = log_odds(torch.tensor([-1.2, -1.6], dtype=torch.float64))
    assert float(odds[0] - odds[1]) == pytest.approx(0.532865, abs=1e-6)
    assert value(ORPO(), [-12.0, -8.0], [10, 5]) == pytest.approx(1.2 + 0.046180, abs=1e-6)


@pytest.mark.parametrize("mean", [-1e-9, 0.0, -1e-4, -0.6931, -0.6932, -200.0])
def test_orpo_stays_finite(mean):
    """T15: a mean log-prob of -1e-9, and of exactly 0, on either side, in value and gradient."""
    for means in ((mean, -1.0), (-1.0, mean)):
        logprobs = torch.tensor(means, requires_grad=True)
        loss, _ = ORPO().loss(Outputs(logprobs), make_batch([1, 1], pairs=True))
        loss.backward()
        assert logprobs.grad is not None
        assert bool(torch.isfinite(loss)) and bool(torch.isfinite(logprobs.grad).all()), means


def test_log1mexp_agrees_with_double_precision():
    values = torch.tensor([-1e-6, -1e-3, -0.5, -0.7, -1.0, -5.0, -15.0])
    expected = [math.log(-math.expm1(float(x))) for x in values]
    assert log1mexp(values).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("h", "label", "weight"), [(2.0, 1.0, 1.0), (-1.0, -1.0, 1.0), (2.0, 1.0, 1.3), (-1, -1, 0.7)])
def test_kto(h, label, weight):
    """kl .5: desirable 1 - s(.1 (2 - .5)), undesirable 1 - s(.1 (.5 + 1)): .462570 both"""
    algorithm = KTO(desirable_weight=weight, undesirable_weight=weight)
    streams = {"label": torch.tensor([label]), "baseline": torch.tensor([0.5])}
    assert value(algorithm, [h], [3], **streams) == pytest.approx(weight * 0.462570, abs=1e-6)


def test_apo_zero_unpaired_knows_no_divergence():
    """Desirable 1 - s(.2) = .450166, undesirable s(-.1) = .475021, whatever the baseline says"""
    streams = {"label": torch.tensor([1.0, -1.0]), "baseline": torch.tensor([0.5, 0.5])}
    loss = value(KTO(loss_type="apo_zero_unpaired"), [2.0, -1.0], [2, 2], **streams)
    assert loss == pytest.approx(0.925187, abs=1e-6)


class Table:
    """A policy that gives every token t log-prob -t, and a reference that gives it -t - shift."""

    def __init__(self, shift: float) -> None:
        self.shift, self.asked = shift, 0

    def logprobs(self, data: Any, *, reference: bool = False, temperature: float = 1.0) -> list[list[float]]:
        self.asked += 1
        shift = self.shift if reference else 0.0
        return [[(-t - shift) if w else 0.0 for t, w in zip(d.tokens, d.weights, strict=True)] for d in data]

    def entropies(self, data: Any, *, temperature: float = 1.0) -> list[list[float]]:
        raise AssertionError("not needed")

    def over_ranks(self, values: Any) -> list[float]:
        return list(values)


ROWS = [
    Datum([1, 2, 11, 12], [0.0, 0.0, 1.0, 1.0]),
    Datum([3, 21], [0.0, 1.0], label=-1.0),
    Datum([4, 5, 6, 31, 32, 33], [0.0, 0.0, 0.0, 1.0, 0.0, 1.0]),
]


def test_kto_rotates_completions():
    """Each prompt gets the completion of the row before, or of the one before that where the prompt is the same; the
    longest row is the limit."""
    assert [(datum.tokens, datum.weights) for datum in mismatch_completions(ROWS)] == [
        ([1, 2, 31, 32, 33], [0.0, 0.0, 1.0, 0.0, 1.0]),
        ([3, 11, 12], [0.0, 1.0, 1.0]),
        ([4, 5, 6, 21], [0.0, 0.0, 0.0, 1.0]),
    ]
    again = Datum([3, 22, 23], [0.0, 1.0, 1.0])
    assert [d.tokens for d in mismatch_completions([ROWS[0], ROWS[1], again])] == [
        [1, 2, 22, 23],
        [3, 11, 12],
        [3, 11, 12],
    ]
    assert [d.tokens for d in mismatch_completions([ROWS[1], again])] == [[3, 22, 23], [3, 21]], (
        "one prompt: no other row to take"
    )
    long = [Datum([1] * 8 + [2], [0.0] * 8 + [1.0]), Datum([3, *[4] * 8], [0.0] + [1.0] * 8)]
    assert [len(datum.tokens) for datum in mismatch_completions(long)] == [9, 2]


@pytest.mark.parametrize(("shift", "expected"), [(0.3, 0.3 * 5 / 3), (-0.3, 0.0)])
def test_kto_divergence(shift, expected):
    """Five trained tokens in three rows, each `shift` likelier than under the reference; never below 0."""
    prepared = KTO().prepare(ROWS, Table(shift), 1.0)
    assert [datum.baseline for datum in prepared] == pytest.approx([expected] * 3)
    assert [datum.tokens for datum in prepared] == [datum.tokens for datum in ROWS]


def test_kto_with_one_row_is_an_error():
    """T15: the rotation would give the row its own completion, and the divergence would be its reward."""
    with pytest.raises(UserError, match="batch_size"):
        KTO().prepare(ROWS[:1], Table(0.1), 1.0)
    policy = Table(0.1)
    assert KTO(loss_type="apo_zero_unpaired").prepare(ROWS[:1], policy, 1.0) == ROWS[:1]
    assert policy.asked == 0


def test_kto_knows_two_labels():
    with pytest.raises(UserError, match=r"0\.0"):
        KTO().prepare([*ROWS, Datum([1, 2], [0.0, 1.0], label=0.0)], Table(0.1), 1.0)


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda: DPO(beta=0.0), "beta"),
        (lambda: DPO(label_smoothing=0.5), "label_smoothing"),
        (lambda: DPO(loss_type="robust", label_smoothing=0.5), "label_smoothing"),
        (lambda: DPO(loss_type="exo", label_smoothing=0.0), "label_smoothing"),
        (lambda: DPO(loss_type="hinge", label_smoothing=0.1), "'hinge' has no label smoothing"),
        (lambda: DPO(loss_type="bco", divergence="js"), "divergence"),
        (lambda: DPO(divergence="alpha", divergence_alpha=1.0), "divergence_alpha"),
        (lambda: CPO(loss_type="ipo", label_smoothing=0.1), "'ipo' has none"),
        (lambda: SimPO(label_smoothing=0.5), "label_smoothing"),
        (lambda: AOT(beta=0.0), "beta"),
        (lambda: DPO(length_alpha=1.5), "length_alpha"),
        (lambda: DPO(sft_coef=-1.0), "sft_coef"),
        (lambda: SimPO(gamma=-0.1), "gamma"),
        (lambda: CPO(label_smoothing=0.6), "label_smoothing"),
        (lambda: ORPO(beta=0.0), "beta"),
        (lambda: KTO(desirable_weight=-1.0), "desirable_weight"),
    ],
)
def test_options_out_of_range(make, place):
    with pytest.raises(UserError, match=place):
        make()


def test_reward_model_counts_longer_completions_that_score_higher():
    """Scores (2, 1), (1, 2), (1, 2), (3, 0) for lengths (5, 3), (5, 3), (2, 4), (1, 1): the longer one wins in the
    first and the third."""
    out = Outputs(torch.zeros(0), scores=torch.tensor([2.0, 1.0, 1.0, 2.0, 1.0, 2.0, 3.0, 0.0]))
    _, metrics = RewardModel().loss(out, make_batch([5, 3, 5, 3, 2, 4, 1, 1]))
    assert metrics["reward/longer"] == 2
