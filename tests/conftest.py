"""Tests run on one thread each: tiny models gain nothing from two, and results do not depend on the machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "algorithms")]  # for models.py, variants.py
torch.set_num_threads(1)


@pytest.fixture
def generator():
    import numpy as np

    return np.random.default_rng(0)
