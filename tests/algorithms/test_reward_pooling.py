"""T16: the score of a sequence is read off its last real token, whatever the padding. transformers' own model, padded
on either side, is the oracle where it can tell padding from text; where the end token is the padding token too, it
cannot, and the hidden state at the last place is."""

from __future__ import annotations

import pytest
import torch
from models import random_model
from torch.nn.utils.rnn import pad_sequence

from aurify.algorithms.reward_model import RewardModel
from aurify.engine.engine import Engine
from aurify.models.model import LoadedModel
from aurify.types import Datum

END = 2
TEXTS = [[5, 17, 9, 30, 12], [5, 17], [40, 41, END, 42], [7]]


def engine_of(model: LoadedModel, packs: bool) -> Engine:
    engine = Engine(model, packing=packs)  # without: plain padded rows, as for an architecture that cannot pack
    assert engine.body.packs == packs
    return engine


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side(side, packs):
    model = random_model(scalar_head=True, pad_token_id=END, eos_token_id=END)
    tokens = pad_sequence(
        [torch.tensor(text) for text in TEXTS], batch_first=True, padding_value=END, padding_side=side
    )
    mask = pad_sequence([torch.ones(len(text)) for text in TEXTS], batch_first=True, padding_side=side)
    positions = (mask.cumsum(1) - 1).clamp(min=0).long()
    with torch.no_grad():
        expected = model.module(tokens, attention_mask=mask, position_ids=positions).logits.squeeze(-1).tolist()
    engine = engine_of(model, packs)
    assert engine.scores([Datum(text, [0.0] * len(text)) for text in TEXTS]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "padded"])
def test_an_end_token_that_is_the_padding_token_is_pooled(packs):
    """transformers would read the score one token too early here."""
    model = random_model(scalar_head=True, pad_token_id=END, eos_token_id=END)
    texts = [[*text, END] for text in TEXTS]
    expected = []
    with torch.no_grad():
        for text in texts:
            hidden = model.module.model(torch.tensor([text])).last_hidden_state[0, -1]
            expected.append(float(model.module.score(hidden)))
    engine = engine_of(model, packs)
    data = [Datum(text, [0.0] + [1.0] * (len(text) - 1), unit=k // 2) for k, text in enumerate(texts)]
    assert engine.scores(data) == pytest.approx(expected, abs=1e-5)
    metrics = engine.forward_backward(data, RewardModel())
    assert metrics["reward/gap"] == pytest.approx((expected[0] - expected[1] + expected[2] - expected[3]) / 2, abs=1e-5)
    assert metrics["reward/longer"] == ((expected[0] > expected[1]) + (expected[2] > expected[3])) / 2
