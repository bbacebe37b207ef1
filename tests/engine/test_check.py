"""The first-use check takes rounding for rounding, in every dtype, and refuses faults, in every dtype."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from models import ATTENTIVE, random_model

from aurify.engine.attention import Forest
from aurify.engine.check import WINDOW, Checker, Comparison, Summary
from aurify.engine.engine import Engine
from aurify.engine.forward import Body
from aurify.engine.logprobs import Head
from aurify.engine.lora import LoraConfig
from aurify.engine.packing import Row
from aurify.models import catalog
from aurify.models.loading import cast_weights
from aurify.models.model import ModelConfig, load_model

DTYPES = [torch.float32, torch.bfloat16]
WINDOWS = {"sliding_window": 4096, "layer_types": ["sliding_attention", "full_attention"]}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 4096},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Gemma3Text": {"head_dim": 16, **WINDOWS},
    "Phi3": {},
    "Olmo2": {},
    "GPTNeoX": {},
}


def body_of(architecture: str, dtype: torch.dtype, **options: Any) -> Body:
    module = random_model(architecture, **{**ATTENTIVE, **ARCHITECTURES.get(architecture, {}), **options}).module
    return Body(cast_weights(module, dtype), Head.of(module))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [{}, {"initializer_range": 0.02}], ids=["attentive", "as transformers draws it"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rounding_is_accepted(architecture, scale, dtype):
    body = body_of(architecture, dtype, **scale)
    for path in ("blocks", "dense"):
        check = Checker(body).measure(path)
        assert check.accepted, check.reason


def change_row(monkeypatch: pytest.MonkeyPatch, change: Callable[[Row], Row]) -> None:
    lay_out = Forest.lay_out

    def lay_out_changed(self: Forest, path: Any) -> None:
        self.row = change(self.row)
        lay_out(self, path)

    monkeypatch.setattr(Forest, "lay_out", lay_out_changed)


def branches(row: Row) -> list[int]:
    """The nodes where a branch begins in the middle of a document."""
    nodes = np.arange(len(row.tokens))
    return np.flatnonzero((row.parent >= 0) & (row.parent != nodes - 1)).tolist()


def one_node_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first query of a branch sees the last node of the branch before it."""

    def change(row: Row) -> Row:
        end = row.end.copy()
        end[branches(row)[0] - 1] += 1
        return dataclasses.replace(row, end=end)

    change_row(monkeypatch, change)


def branch_one_position_late(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(row: Row) -> Row:
        positions, start = row.positions.copy(), branches(row)[0]
        positions[start : row.end[start]] += 1
        return dataclasses.replace(row, positions=positions)

    change_row(monkeypatch, change)


def document_sees_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its last node."""

    def change(row: Row) -> Row:
        end, start = row.end.copy(), int(np.flatnonzero(row.parent < 0)[1])
        end[start - 1] = row.end[start]
        return dataclasses.replace(row, end=end)

    change_row(monkeypatch, change)


def window_one_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = Forest.mask
    monkeypatch.setattr(Forest, "mask", lambda self, window: mask(self, window and window + 1))


def window_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = Forest.mask
    monkeypatch.setattr(Forest, "mask", lambda self, window: mask(self, None))


def two_nodes_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Body.run

    def run_swapped(self: Body, layout: Forest) -> torch.Tensor:
        order = torch.arange(layout.length)
        order[40], order[41] = 41, 40
        return run(self, layout)[order]

    monkeypatch.setattr(Body, "run", run_swapped)


def gradient_of_values_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs stay right; the first half of the values gets no gradient."""
    attend = Forest.attend

    def attend_wrongly(self: Forest, layer: int, query: Any, key: Any, value: Any, *rest: Any) -> torch.Tensor:
        first, second = value.chunk(2, dim=2)
        return attend(self, layer, query, key, torch.cat([first.detach(), second], 2), *rest)

    monkeypatch.setattr(Forest, "attend", attend_wrongly)


FAULTS = {
    "mask": one_node_too_many,
    "position": branch_one_position_late,
    "leak": document_sees_the_one_before,
    "swap": two_nodes_swapped,
    "gradient": gradient_of_values_lost,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused(fault, dtype, monkeypatch, caplog):
    FAULTS[fault](monkeypatch)
    body = body_of("Llama", dtype)
    assert not body.packs
    assert [check.path for check in body.checks] == ["blocks", "dense"]
    assert not any(check.accepted for check in body.checks)
    assert "differs from plain rows" in body.reason
    assert len(caplog.records) == 1 and "computed again" in caplog.text


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fault", [window_one_too_long, window_ignored], ids=["one too long", "ignored"])
@pytest.mark.parametrize("architecture", ["Mistral", "Gemma3Text"])
def test_wrong_windows_are_refused(architecture, fault, dtype, monkeypatch):
    """Of 4,096 tokens, on a tree of 308."""
    fault(monkeypatch)
    body = body_of(architecture, dtype)
    assert not body.packs and "differs from plain rows" in body.reason


def test_windows_are_what_they_were_after_a_check():
    body = body_of("Gemma3Text", torch.float32)
    assert body.packs
    assert body.module.config.sliding_window == 4096
    layers = body.decoder.layers
    assert [layer.self_attn.sliding_window for layer in layers] == [4096, None]


def test_the_tree_has_every_kind_of_visibility():
    comparison = Comparison(body_of("Llama", torch.float32))
    tree = comparison.tree
    lengths = sorted(len(path) for path in tree.nodes)
    assert len(tree.tokens) == 308 and lengths == [50, 56, 96, 148]
    assert sum(tree.parent < 0) == 2  # documents
    depths = {int(tree.positions[node]) for node in branches(tree)}
    assert len(branches(tree)) == 2 and len(depths) == 2
    assert max(lengths) > 128 > WINDOW and tree.num_shared > 0


def test_a_short_context_gets_a_small_tree():
    body = body_of("Llama", torch.float32, max_position_embeddings=40)
    comparison = Comparison(body)
    assert max(len(path) for path in comparison.tree.nodes) <= 40
    assert comparison.measure("blocks").accepted


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["scalar head", "adapter", "frozen"])
def test_every_kind_of_engine_can_be_checked(kind, dtype):
    model = random_model(scalar_head=kind == "scalar head", **ATTENTIVE)
    cast_weights(model.module, dtype)
    if kind == "scalar head":
        model.module.score.float()
    engine = Engine(model, lora=LoraConfig(rank=4) if kind == "adapter" else None, trainable=kind != "frozen")
    if engine.adapter is not None:
        for layer in engine.adapter.layers.values():
            torch.nn.init.normal_(layer.lora_B, std=0.1, generator=torch.Generator().manual_seed(0))
        engine.adapter.merge()
    if kind == "frozen":
        engine.module.requires_grad_(False)
    grads = [parameter.grad for parameter in engine.module.parameters()]
    assert not any(parameter.is_inference() for parameter in engine.module.parameters())
    with torch.inference_mode():  # as a sampler calls it
        assert engine.body.packs, engine.body.reason
    assert [parameter.grad for parameter in engine.module.parameters()] == grads == [None] * len(grads)
    [check] = engine.body.checks
    names = {"hidden", "gradient"} if kind == "scalar head" else {"kl", "logprob", "gradient"}
    assert set(check.packed) == set(check.plain) == names


def test_faults_of_a_scalar_head_are_refused(monkeypatch):
    one_node_too_many(monkeypatch)
    module = cast_weights(random_model(scalar_head=True, **ATTENTIVE).module, torch.bfloat16)
    body = Body(module, None)
    assert not body.packs and "differs from plain rows" in body.reason


def test_what_was_measured_is_plain_values():
    body = body_of("Llama", torch.bfloat16)
    assert body.describe() == {"path": None, "reason": "", "layers_compiled": False, "checks": []}
    assert body.packs
    described = json.loads(json.dumps(body.describe()))
    assert described["path"] == "blocks" and described["reason"] == ""
    [check] = described["checks"]
    assert check["accepted"] and 0 < check["packed"]["kl"]["mean"] < 1
    assert set(check["packed"]["logprob"]) == {"mean", "median", "p90", "p99", "max"}


def test_one_tree_that_meets_a_token_sensitive_to_rounding_is_not_the_last_word(monkeypatch):
    """The first tree is refused, the second one accepted."""
    body = body_of("Llama", torch.float32)
    measure = Comparison.measure
    seen = []

    def refuse_once(self: Comparison, path: Any) -> Any:
        check = measure(self, path)
        seen.append(self.tree.tokens.tolist())
        return check if len(seen) > 1 else dataclasses.replace(check, accepted=False, reason="chance")

    monkeypatch.setattr(Comparison, "measure", refuse_once)
    assert body.path == "blocks" and len(seen) == 2 and seen[0] != seen[1]


def test_differences_of_distributions_by_hand():
    """Two positions of three tokens: p = softmax(0, 0, ln 2) = (1/4, 1/4, 1/2), q = (1/3, 1/3, 1/3); then p = q.
    KL(p, q) = 1/2 ln(3/4) + 1/2 ln(3/2) = 0.0588915."""
    from aurify.engine.check import compare_logit_distributions

    one, two = torch.zeros(2, 3), torch.zeros(2, 3)
    one[0, 2] = float(np.log(2))
    values, deviation = compare_logit_distributions(one, two, Head(torch.eye(3)))
    assert values["kl"].max == pytest.approx(0.0588915, abs=1e-6)
    assert values["kl"].mean == pytest.approx(0.0588915 / 2, abs=1e-6)
    assert values["logprob"].max == pytest.approx(float(np.log(3 / 2)), abs=1e-6)
    assert values["logprob"].mean == pytest.approx(float(2 * np.log(4 / 3) + np.log(3 / 2)) / 6, abs=1e-6)
    assert deviation == pytest.approx(float(torch.tensor([0.0, 0.0, np.log(2)]).std()) / 2, abs=1e-6)
    assert Summary.of(torch.arange(101.0)) == Summary(50.0, 50.0, 90.0, 99.0, 100.0)


SMOLLM2 = catalog.KNOWN["smollm2-135m-instruct"]


@pytest.mark.skipif(not catalog.is_cached_model(SMOLLM2), reason="SmolLM2 is not in the cache yet")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
class TestRealModel:
    def body(self, dtype: Any) -> Body:
        module = load_model(ModelConfig(SMOLLM2.name, dtype=dtype)).module
        return Body(module, Head.of(module))

    def test_rounding_is_accepted(self, dtype):
        checker = Checker(self.body(dtype))
        for path in ("blocks", "dense"):
            check = checker.measure(path)
            assert check.accepted, check.reason

    def test_faults_are_refused(self, dtype):
        checker = Checker(self.body(dtype))
        for name, fault in FAULTS.items():
            with pytest.MonkeyPatch.context() as monkeypatch:
                fault(monkeypatch)
                assert not checker.measure("blocks").accepted, name


def test_models_built_alike_are_checked_once(monkeypatch):
    """The stages of a run open the same model again and again; another dtype, adapter or configuration is another."""
    measured = []
    real = Checker.measure
    monkeypatch.setattr(Checker, "measure", lambda self, path: measured.append(path) or real(self, path))

    def used(dtype: torch.dtype = torch.float32, lora: LoraConfig | None = None, **options: int) -> int:
        model = random_model("Llama", **options)
        model.module.to(dtype)
        before = len(measured)
        engine = Engine(model, lora=lora)
        assert engine.body.packs and engine.body.describe()["checks"][0]["accepted"]
        return len(measured) - before

    assert [used(), used(seed=3), used(torch.bfloat16), used(lora=LoraConfig(rank=2))] == [1, 0, 1, 1]
    assert [used(num_hidden_layers=3), used(), used(torch.bfloat16)] == [1, 0, 0]
