"""Two ranks over gloo give the gradients and the weights of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = """
import sys, torch
import torch.distributed as dist
sys.path[:0] = {paths!r}
from test_properties import CASES, make_engine, prepared_data
torch.set_num_threads(1)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
results = {{}}
for name, algorithm in CASES.items():
    engine = make_engine(algorithm)
    data = prepared_data(algorithm)
    mine = data[:6] if rank == 0 else data[6:]  # uneven: 3 units and 7
    metrics = engine.forward_backward(mine, algorithm)
    norm = engine.optim_step(1e-3)["optim/grad_norm"]
    results[name] = metrics["loss"], norm, [p.detach().clone() for p in engine.trainable]
torch.save(results, sys.argv[3] + str(rank))
dist.destroy_process_group()
"""


def test_two_ranks_equal_one(tmp_path):
    """T11: every algorithm, uneven shares; loss, gradient norm and the weights after a step."""
    tests = Path(__file__).parents[1]
    script = tmp_path / "rank.py"
    script.write_text(SCRIPT.format(paths=[str(tests), str(tests / "algorithms")]))
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "store"), str(tmp_path / "result")], env=environment
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=180) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"result{rank}") for rank in range(2))

    sys.path.insert(0, str(tests / "algorithms"))
    from test_properties import CASES, make_engine, prepared_data

    for name, algorithm in CASES.items():
        engine = make_engine(algorithm)
        loss = engine.forward_backward(prepared_data(algorithm), algorithm)["loss"]
        norm = engine.optim_step(1e-3)["optim/grad_norm"]
        for found_loss, found_norm, weights in (first[name], second[name]):
            assert abs(found_loss - loss) < 1e-5 * max(1, abs(loss)), name
            assert abs(found_norm - norm) < 1e-5 * norm, name
            for a, b in zip(weights, engine.trainable, strict=True):
                # Adam divides by the size of the gradient: where that is noise, so is the step
                assert float((a - b.detach()).abs().mean()) < 1e-5, name
