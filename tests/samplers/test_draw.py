"""Drawing tokens: tensors in, tensors out."""

from __future__ import annotations

import pytest
import torch

from aurify.samplers.draw import draw_tokens, keep_likely_tokens


def filters(top_k=0, top_p=1.0, min_p=0.0, rows=1):
    return torch.full((rows,), top_k), torch.full((rows,), top_p).double(), torch.full((rows,), min_p).double()


@pytest.mark.parametrize("size", [300, 1024])
def test_draws_follow_the_distribution(size):
    """20,000 draws against the probabilities: total variation below 0.01."""
    torch.manual_seed(0)
    logits = 4 * torch.randn(size)
    num = 20_000
    uniforms = (torch.arange(num).double() + 0.5) / num  # a grid: an exact inverse hits every token in proportion
    tokens, logprobs = draw_tokens(logits.repeat(num, 1), uniforms)
    expected = logits.softmax(0)
    counts = torch.bincount(tokens, minlength=size) / num
    assert float((counts - expected).abs().sum() / 2) < 0.01
    torch.testing.assert_close(logprobs, expected.log()[tokens], rtol=0, atol=1e-4)


def test_filters_keep_the_likely_and_report_processed_logprobs():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    cases = [
        ({"top_k": 2}, [0, 1]),
        ({"top_p": 0.65}, [0, 1]),
        ({"top_p": 0.71}, [0, 1, 2]),
        ({"min_p": 0.6}, [0, 1]),
        ({"top_p": 0.01}, [0]),
    ]
    for options, kept in cases:
        filtered = keep_likely_tokens(logits.clone(), *filters(**options))
        assert torch.isfinite(filtered[0]).nonzero().flatten().tolist() == kept, options
    uniforms = torch.tensor([0.5, 0.9]).double()
    tokens, logprobs = draw_tokens(logits.repeat(2, 1), uniforms, filters=filters(top_k=2, rows=2))
    assert tokens.tolist() == [0, 1]
    torch.testing.assert_close(logprobs, torch.tensor([4 / 7, 3 / 7]).log(), rtol=0, atol=1e-5)


def test_what_one_row_asks_for_changes_no_other():
    torch.manual_seed(0)
    logits, uniforms = 3 * torch.randn(3, 1000), torch.tensor([0.2, 0.6, 0.9]).double()
    plain_tokens, plain_logprobs = draw_tokens(logits[:1].clone(), uniforms[:1])
    tokens, logprobs = draw_tokens(
        logits.clone(),
        uniforms,
        temperature=torch.tensor([1.0, 0.5, 1.0]),
        greedy=torch.tensor([False, False, True]),
        filters=(torch.tensor([0, 5, 0]), torch.tensor([1.0, 0.9, 1.0]).double(), torch.zeros(3).double()),
    )
    kept = keep_likely_tokens(
        logits.clone(), torch.tensor([0, 5, 0]), *(torch.tensor([1.0, 0.9, 0.99]), torch.zeros(3))
    )
    assert torch.equal(kept[0], logits[0]) and kept[1].isfinite().sum() <= 5 and not kept[2].isfinite().all()
    assert tokens[0] == plain_tokens[0] and logprobs[0] == plain_logprobs[0]
    assert tokens[1] in logits[1].topk(5).indices
    assert tokens[2] == logits[2].argmax() and logprobs[2] == pytest.approx(float(logits[2].log_softmax(0).max()))
