"""Two ranks over gloo give the gradients and the weights of one, and find the same quantile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from aurify.algorithms.aot import AOT
from aurify.algorithms.grpo import GRPO

SCRIPT = """
import sys, torch
import torch.distributed as dist
sys.path[:0] = {paths!r}
from test_properties import CASES, make_data, make_engine, prepared_data
from aurify.algorithms.aot import AOT
from aurify.algorithms.grpo import GRPO
from aurify.algorithms.kto import KTO, estimate_mismatched_kl
from aurify.algorithms.sft import SFT
torch.set_num_threads(1)
rank = int(sys.argv[1])
given = {{name: prepared_data(algorithm) for name, algorithm in CASES.items()}}  # alone, of the whole step
share = slice(0, 6) if rank == 0 else slice(6, None)  # uneven: 3 units and 7
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
results = {{}}
for name, algorithm in CASES.items():
    engine = make_engine(algorithm)
    metrics = engine.forward_backward(given[name][share], algorithm)
    norm = engine.optim_step(1e-3)["optim/grad_norm"]
    results[name] = metrics["loss"], norm, [p.detach().clone() for p in engine.trainable]
uncertain = GRPO(top_entropy=0.3)
kept = uncertain.prepare(make_data()[share], make_engine(uncertain), 1.0)
results["kept"] = [datum.advantages for datum in kept]
measured = AOT().prepare(make_data()[share], make_engine(AOT()), 1.0)
results["measured"] = [datum.baseline for datum in measured]
engine = make_engine(KTO())
engine.keep_reference()
for _ in range(3):  # now a policy of its own, the same on both ranks
    engine.forward_backward(make_data()[share], SFT())
    engine.optim_step(3e-2)
results["divergence"] = [estimate_mismatched_kl(make_data()[part], engine, 1.0) for part in (share, slice(0, 6))]
torch.save(results, sys.argv[3] + str(rank))
dist.destroy_process_group()
"""


def test_two_ranks_equal_one(tmp_path):
    """T11: every algorithm, uneven shares; loss, gradient norm and the weights after a step. The tokens that
    `top_entropy` keeps are those of the whole step, and so are AOT's ranks and KTO's divergence, though each process
    sees its own."""
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
    from test_properties import CASES, make_data, make_engine, prepared_data

    uncertain = GRPO(top_entropy=0.3)
    together = [datum.advantages for datum in uncertain.prepare(make_data(), make_engine(uncertain), 1.0)]
    assert first.pop("kept") + second.pop("kept") == together
    alone = uncertain.prepare(make_data()[:6], make_engine(uncertain), 1.0)
    assert [datum.advantages for datum in alone] != together[:6], "a quantile of its own would show"
    together = [datum.baseline for datum in AOT().prepare(make_data(), make_engine(AOT()), 1.0)]
    assert torch.allclose(torch.tensor(first.pop("measured") + second.pop("measured")), torch.tensor(together))
    shared, alone = first.pop("divergence")
    assert second.pop("divergence") == [shared, alone] and shared > 0 and abs(shared - alone) > 1e-3
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
