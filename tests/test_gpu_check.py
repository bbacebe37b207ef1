"""benchmarks/gpu_check.py on a CPU: it runs without packages that a bare GPU machine lacks, its correctness part sees
faults, and its count of FLOPs is right."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MISSING = ("pydantic", "omegaconf", "gguf", "bitsandbytes", "liger_kernel")  # on a bare GPU machine
DTYPES = ("float32", "bfloat16")
LLAMA, MISTRAL = "llama-gqa4-64", "mistral-gqa4-128-window24"


@pytest.fixture
def correct(monkeypatch):
    """benchmarks/gpu_correct.py, with short rows."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("gpu_correct")
    monkeypatch.setattr(module, "LENGTHS", {"cpu": (127,)})
    return module


@pytest.fixture
def card(correct):
    return correct.Card("cpu")


def run_bare(out, *arguments):
    """The script in a process of its own, in which MISSING cannot be imported."""
    code = f"import runpy, sys\nsys.modules.update(dict.fromkeys({MISSING}))\n"
    code += f"sys.argv = ['gpu_check.py', '--cpu', '--out', {str(out)!r}, *{list(arguments)}]\n"
    code += f"runpy.run_path({str(BENCHMARKS / 'gpu_check.py')!r}, run_name='__main__')"
    plain = {name: value for name, value in os.environ.items() if name != "AURIFY_DTYPE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=plain)
    return done, json.loads(out.read_text())["cases"] if out.exists() else {}


def test_speed_parts_run_on_a_bare_machine(tmp_path):
    names = [
        "facts",
        f"seeds {LLAMA} float32",
        "training qwen2.5-7b lora short",
        "decoding qwen2.5-7b",
        "grpo",
        "profile",
    ]
    done, cases = run_bare(tmp_path / "found.json", "--only", *names)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert {case["status"] for case in cases.values()} == {"ok"} and len(cases) == len(names)
    sides = cases["training qwen2.5-7b lora short"]["result"]
    for side in sides.values():
        assert side["tokens_per_second"] > 0 and 0 < side["mfu"] < 2
    assert "aurify" in sides
    decoding = cases["decoding qwen2.5-7b"]["result"]
    assert {(one["batch"], one["side"]) for one in decoding.values()} == {
        (batch, side) for batch in (1, 64) for side in ("aurify", "generate")
    }
    assert len(cases["grpo qwen3-0.6b"]["result"]["steps"]) == 5
    for table in ("Training", "Decoding", "GRPO", "SFT step"):
        assert f"\n{table}" in done.stdout


def test_what_the_time_has_no_room_for_is_named(tmp_path):
    done, cases = run_bare(tmp_path / "found.json", "--minutes", "0.1")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    parts = {title.split(" ")[0] for title in cases}
    assert parts == {"facts", "packed", "sampler", "seeds", "checkpointing", "step", "save", "retreat"}
    late = [case for case in cases.values() if case["status"] == "skipped"]
    assert late and all("no time left" in case["told"] for case in late)


def test_unknown_part_is_named(card, tmp_path):
    script = importlib.import_module("gpu_check")
    args = script.parse(["--cpu", "--only", "packing", "--out", str(tmp_path / "found.json")])
    with pytest.raises(SystemExit, match="--only packing: no such part; there are packed, sampler"):
        script.choose_steps(args, card)


# ---------------------------------------------------------------------- planted faults


def leak(row):
    """Documents see those before them."""
    return replace(row, end=np.full_like(row.end, len(row.tokens)))


def shift(row):
    """Everything after the first fork is a position too late."""
    late = np.cumsum(row.parent != np.arange(len(row.tokens)) - 1) > 1
    return replace(row, positions=row.positions + late)


def swap(row):
    """Two sequences get each other's nodes."""
    return replace(row, nodes=[row.nodes[1], row.nodes[0], *row.nodes[2:]])


def plant_in_rows(monkeypatch, fault, module):
    """In packed rows, where sequences share: plain rows stay right, and the rows of the engine's own check."""
    module = importlib.import_module(module)
    usual = module.pack_row

    def faulty(sequences, data, share=True):
        row = usual(sequences, data, share)
        return fault(row) if share and len(row.tokens) == 127 else row

    monkeypatch.setattr(module, "pack_row", faulty)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", [leak, shift, swap])
def test_faults_of_packed_rows_are_found(fault, dtype, correct, card, monkeypatch):
    plant_in_rows(monkeypatch, fault, "gpu_finding")
    faults = correct.check_packed(LLAMA, dtype, card).faults
    assert any(found.startswith("127 nodes: mean") or found.startswith("127 nodes: p99") for found in faults), faults


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_gradient_is_found(dtype, correct, card, monkeypatch):
    """Of the rows that the engine trains on; the values, which are computed apart, are right."""
    plant_in_rows(monkeypatch, leak, "aurify.engine.packing")
    faults = correct.check_packed(LLAMA, dtype, card).faults
    assert faults and all(found.startswith("127 nodes: gradient") for found in faults), faults


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_window_is_found(dtype, correct, card, monkeypatch):
    engine = correct.Engine

    def widened(model, **options):
        made = engine(model, **options)
        if options.get("packing", True):
            made.module.config.sliding_window += 1
            for layer in made.module.modules():
                if getattr(layer, "sliding_window", None):
                    layer.sliding_window += 1
        return made

    monkeypatch.setattr(correct, "Engine", widened)
    assert correct.check_packed(MISTRAL, dtype, card).faults


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_temperature_that_is_ignored_is_found(dtype, correct, card, monkeypatch):
    sampling = importlib.import_module("gpu_sampling")
    sample = sampling.sample_all

    async def warm(engine, requests, max_batch):
        asked = [(prompt, replace(params, temperature=float(params.temperature > 0))) for prompt, params in requests]
        return await sample(engine, asked, max_batch)

    monkeypatch.setattr(sampling, "sample_all", warm)
    faults = correct.check_sampler(LLAMA, dtype, card, lora=False).faults
    assert any(found.startswith("sampler against trainer, many") for found in faults), faults


@pytest.mark.parametrize(("power", "found"), [(1, False), (2, True)])
def test_draws_that_are_not_even_are_found(power, found, correct, card):
    """power: of the uniform numbers that the tokens are drawn with."""
    sampling = importlib.import_module("gpu_sampling")
    engine = correct.Engine(correct.make_variant(LLAMA, torch.float32, card.device), packing=False, trainable=False)
    generator = np.random.default_rng(0)
    prompts = generator.integers(0, 512, (300, 6)).tolist()
    last = correct.distributions(engine, prompts, share=False).view(300, 6, 512)[:, -1]
    uniforms = torch.from_numpy(generator.uniform(size=(300, 1)) ** power)
    tokens = torch.searchsorted(last.double().exp().cumsum(1), uniforms).squeeze(1).clamp(max=511).tolist()
    finding = correct.Finding()
    data = [sampling.make_answer(prompt, [token]) for prompt, token in zip(prompts, tokens, strict=True)]
    sampling.expect_likely(finding, "drawn", engine, data)
    assert any("rank" in fault for fault in finding.faults) == found, finding
    assert found or not finding.faults


def test_flops_are_those_that_run(correct, card):
    """Of a plain model with eager attention, which computes every pair, also those that are hidden."""
    from torch.utils.flop_counter import FlopCounterMode

    models = importlib.import_module("gpu_models")
    module = models.make_variant(LLAMA, torch.float32, card.device).module
    module.config._attn_implementation = "eager"
    tokens = torch.randint(0, 512, (1, 50))
    embedded = module.get_input_embeddings()(tokens).detach().requires_grad_()  # as if a layer were below
    with FlopCounterMode(display=False) as counter:
        module(inputs_embeds=embedded, labels=tokens, use_cache=False).loss.backward()
    work = models.Work.of(module)
    data = [models.Datum(tokens[0].tolist(), [0.0] + [1.0] * 49)]
    hidden_pairs = 50 * 49 // 2  # of queries and later keys
    expected = work.step_flops(data, None) + 6 * work.head_weights + 12 * work.attention * hidden_pairs
    assert counter.get_total_flops() == expected
    assert work.step_flops(data, 1000) == work.step_flops(data, 0) + 6 * 1000 * 50
    assert work.step_flops(data, 0) < work.step_flops(data, None)
