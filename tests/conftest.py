"""Tests run on one thread each: tiny models gain nothing from two, and results do not depend on the machine.

A test's numbers come in one of three kinds, and so does the dtype of its models:

- Exact ones (worked out by hand, equal to TRL or peft to 1e-4, equal to the bit, counts that hang on which token was
  drawn): the model is loaded in float32, by `ModelConfig(name, dtype="float32")`, by `model: {dtype: float32}` in a
  recipe, or by the fixture `float32`.
- Ones that rounding moves but does not change (engine, sampler, resume, export, pipeline): the fixture `dtype` runs the
  test in float32 and in bfloat16; what may differ stands in tolerances.py.
- All others run in what `auto` means. `AURIFY_DTYPE=bfloat16 make test` and `AURIFY_DTYPE=float32 make test` are green
  on any machine.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
FOLDERS = ("", "algorithms", "export", "knowledge", "models", "sandbox")
sys.path[:0] = [str(HERE / name) for name in FOLDERS]  # words.py, ...
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job: children would not hear Ctrl-C either
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def nothing_checked_yet():
    """A test that plants a fault must not meet what another one was told of the same model."""
    forward = sys.modules.get("aurify.engine.forward")
    if forward is not None:
        forward.accepted.clear()


@pytest.fixture
def float32(monkeypatch):
    """Models whose dtype is "auto" are loaded in float32; not those that wider fixtures or other processes load."""
    monkeypatch.setenv("AURIFY_DTYPE", "float32")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request):
    """The name of a dtype, for ModelConfig or a recipe."""
    return request.param


@pytest.fixture
def generator():
    import numpy as np

    return np.random.default_rng(0)
