"""T23: the chunked log-prob equals the plain one in value and in every gradient, for any upstream gradient and
chunk size."""

from __future__ import annotations

import pytest
import torch

from aurify.engine.logprobs import Head, linear_logprobs

NUM, HIDDEN, VOCABULARY = 23, 16, 50


def plain(hidden, head, targets, temperature):
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    log_p = (logits / temperature).log_softmax(-1)
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(1)


@pytest.mark.parametrize("chunk", [1, 7, NUM])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("bias", "scale", "softcap"), [(False, 1.0, None), (True, 0.5, None), (True, 1.0, 3.0)])
def test_values_and_gradients(chunk, temperature, entropy, frozen, bias, scale, softcap):
    torch.manual_seed(0)
    hidden = torch.randn(NUM, HIDDEN, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(VOCABULARY, HIDDEN, requires_grad=not frozen)
    bias_weight = torch.randn(VOCABULARY, requires_grad=not frozen) if bias else None
    leaves = [leaf for leaf in (hidden, weight, bias_weight) if leaf is not None and leaf.requires_grad]
    head = Head(weight, bias_weight, scale, softcap)
    targets, up, up_entropy = torch.randint(VOCABULARY, (NUM,)), torch.randn(NUM), torch.randn(NUM) * entropy

    results = []
    for function in (
        lambda: plain(hidden, head, targets, temperature),
        lambda: linear_logprobs(hidden, head, targets, temperature=temperature, entropy=entropy, chunk=chunk),
    ):
        logprobs, entropies = function()
        grads = torch.autograd.grad((logprobs * up).sum() + (entropies * up_entropy).sum(), leaves)
        results.append((logprobs.detach(), entropies.detach() * entropy, *grads))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_frozen_head_gets_no_gradient():
    weight = torch.randn(VOCABULARY, HIDDEN)
    hidden = torch.randn(NUM, HIDDEN, requires_grad=True)
    linear_logprobs(hidden, Head(weight), torch.randint(VOCABULARY, (NUM,)))[0].sum().backward()
    assert hidden.grad is not None and weight.grad is None
