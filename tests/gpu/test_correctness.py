"""The correctness part of benchmarks/gpu_check.py, a test a case:

python -m pytest -m gpu tests/gpu"""

from __future__ import annotations

import pytest
import torch
from gpu_correct import cases
from gpu_finding import Skipped
from gpu_models import Card

# torch and triton warn of much that is not ours, and not the same on any two cards
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore", "error:::aurify")]
CASES = cases(["bfloat16", "float32"], Card("cuda"))


@pytest.fixture
def card():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    card = Card("cuda")
    yield card
    card.free()


@pytest.mark.parametrize("case", CASES, ids=[case.title.replace(" ", "-") for case in CASES])
def test_holds(case, card):
    if "bfloat16" in case.title and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this card has no bf16")
    try:
        finding = case.run(card)
    except Skipped as reason:
        pytest.skip(str(reason))
    assert not finding.faults, finding.measured
