"""Issue 16, Shows 7: `aurify train` is killed in the middle of a round of 40 conversations, with interpreters and
servers open, and resumed. In rounds, all is equal to the bit to a run that was not killed, and no process is left."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from aurify import registry

FILE = Path(__file__).parents[2] / "benchmarks" / "crowd.py"
KINDS = {"waits": 3, "blocks": 2, "python": 2, "server": 1, "raises": 1, "1 MB": 1}


@pytest.fixture(scope="module")
def crowd():
    spec = importlib.util.spec_from_file_location("benchmark_crowd", FILE)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # it is a plugin too, which registers names
        patch.setattr(registry, "ENTRIES", {kind: dict(entries) for kind, entries in registry.ENTRIES.items()})
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def test_killed_in_mid_round_and_resumed(crowd, tmp_path):
    """In bfloat16, where batches of other sizes differ most."""
    kinds = {name: num for name, num in KINDS.items() if name != "server" or importlib.util.find_spec("mcp")}
    found = crowd.kill_and_resume(tmp_path, kinds, in_rounds=True, dtype="bfloat16", seconds=60.0, wait=0.3)
    assert found["processes_started"] > 4 and found["processes_left"] == 0
    assert found["answers_killed_and_resumed"] > found["answers_straight"], "steps were done again"
    num_played = crowd.STEPS * crowd.GROUP * (sum(kinds.values()) - 1)  # less those that raise
    assert found["metrics.jsonl"] == {"rows": crowd.STEPS, "equal": crowd.STEPS, "differ": {}}
    assert found["ledger.jsonl"] == {"rows": crowd.STEPS, "equal": crowd.STEPS}
    assert found["samples.jsonl"] == {"rows": num_played, "equal": num_played}
    assert found["weights_equal"]
