"""Rows side by side on cores of their own: the numbers of one after the other, the same each time."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from models import random_model

from aurify.algorithms.dpo import DPO
from aurify.algorithms.grpo import GRPO
from aurify.algorithms.reward_model import RewardModel
from aurify.algorithms.sft import SFT
from aurify.engine.cpu.rows import SideBySide
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.engine.packing import PART_TOKENS, Row, pack_row, pack_rows
from aurify.errors import UserError
from aurify.types import Datum

ALGORITHMS = {
    "sft": SFT(),
    "grpo": GRPO(entropy_coef=0.1, kl_coef=0.1),
    "dpo": DPO(),
    "reward_model": RewardModel(),
}


@pytest.fixture(autouse=True)
def two_cores():
    held = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(held)


def sequences(num: int = 48) -> list[Datum]:
    generator = np.random.default_rng(0)
    data = []
    for k in range(num):
        tokens = generator.integers(3, 300, int(generator.integers(40, 70))).tolist()
        streams = {
            name: generator.normal(-6, 0.3, len(tokens)).tolist()
            for name in ("logprobs", "old_logprobs", "ref_logprobs")
        }
        weights = [0.0] * 10 + [1.0] * (len(tokens) - 10)
        advantages = [float(generator.normal())] * len(tokens)
        data.append(Datum(tokens, weights, advantages, **streams, unit=k // 2))
    return data


def set_parts(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SideBySide, "parts", lambda self, max_tokens: parts)


def num_threads(engine: Engine) -> int:
    """Cores that were put to work beside each other."""
    cores = getattr(engine.executor, "cores", None)
    return 1 if cores is None else cores.parts


def engine_of(parts: int, monkeypatch: pytest.MonkeyPatch, **options) -> Engine:
    set_parts(parts, monkeypatch)
    engine = Engine(random_model(**options), lora=LoraConfig(rank=4))
    generator = torch.Generator().manual_seed(1)
    for layer in engine.adapter.layers.values():
        torch.nn.init.normal_(layer.lora_B, std=0.05, generator=generator)
    engine.adapter.merge()
    return engine


@pytest.mark.parametrize("name", ALGORITHMS)
def test_gradients_are_the_same(name, monkeypatch):
    options = {"scalar_head": True} if name == "reward_model" else {}
    data, algorithm = sequences(), ALGORITHMS[name]
    found = []
    for parts in (1, 2, 2):
        engine = engine_of(parts, monkeypatch, **options)
        metrics = [engine.forward_backward(half, algorithm) for half in (data[:40], data[40:])]
        assert metrics[0]["ledger/micro_batches"] % parts == 0
        found.append((torch.cat([p.grad.flatten() for p in engine.trainable]), metrics))
        assert num_threads(engine) == parts
        engine.close()
    (alone, plain), (beside, told), (again, _) = found
    assert float((alone - beside).norm() / alone.norm()) < 1e-5 and float(alone.norm()) > 0
    assert torch.equal(beside, again)  # not by who was first
    for before, after in zip(plain, told, strict=True):
        for metric in before:
            if not metric.startswith("ledger/"):
                assert after[metric] == pytest.approx(before[metric], rel=1e-4, abs=1e-6)


def test_what_is_looked_up_is_the_same(monkeypatch):
    data, found = sequences(), []
    for parts in (1, 3):
        engine = engine_of(parts, monkeypatch)
        found += [engine.logprobs(data), engine.logprobs(data, reference=True), engine.entropies(data)]
        assert not torch.is_grad_enabled() or engine.adapter.state.use == "adapter"
        engine.close()
        engine = engine_of(parts, monkeypatch, scalar_head=True)
        found.append([[score] for score in engine.scores(data)])
        engine.close()
    for alone, beside in zip(found[:4], found[4:], strict=True):
        np.testing.assert_allclose(np.concatenate(beside), np.concatenate(alone), atol=1e-4)
    assert np.abs(np.concatenate(found[0]) - np.concatenate(found[1])).max() > 1e-2  # the adapter was off for one


def test_all_weights_at_once(monkeypatch):
    found = []
    for parts in (1, 2):
        set_parts(parts, monkeypatch)
        engine = Engine(random_model())
        engine.forward_backward(sequences(), SFT())
        assert num_threads(engine) == parts
        found.append(torch.cat([p.grad.flatten() for p in engine.trainable]))
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-5


def test_large_gradients_and_dropout_go_one_after_the_other(monkeypatch):
    set_parts(2, monkeypatch)
    engines = [Engine(random_model(), lora=LoraConfig(rank=4, dropout=0.1))]
    monkeypatch.setattr("aurify.engine.cpu.rows.MEMORY_SHARE", 1e-9)
    engines.append(Engine(random_model()))
    for engine in engines:
        engine.forward_backward(sequences(), SFT())
        assert num_threads(engine) == 1


def test_an_error_in_one_row_is_told(monkeypatch):
    class Failing(SFT):
        def loss(self, outputs, batch):
            raise UserError(f"a loss of {batch.num_sequences} sequences")

    engine = engine_of(2, monkeypatch)
    with pytest.raises(UserError, match="a loss of 12 sequences"):
        engine.forward_backward(sequences(), Failing())


def test_rows_have_one_budget_together(monkeypatch):
    """Never more nodes under way than the budget; a row that leaves no room for another is alone."""
    engine = engine_of(3, monkeypatch)
    engine.micro_batch_tokens = 90
    lengths = (30, 30, 30, 20, 40, 45, 100, 30, 30, 30, 30)
    rows = [pack_row([[k] * length], [k]) for k, length in enumerate(lengths)]
    lock, under_way, most = threading.Lock(), [], []

    def work(row: Row) -> int:
        with lock:
            under_way.append(len(row.tokens))
            most.append((sum(under_way), len(under_way)))
        time.sleep(0.02)
        with lock:
            under_way.remove(len(row.tokens))
        return row.data[0]

    assert list(engine._each(rows, work)) == list(range(len(lengths)))  # in their order
    assert max(nodes for nodes, _ in most if nodes != 100) <= 90 and (100, 1) in most
    assert max(number for _, number in most) == 3


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("num", [3, 40, 200])
def test_rows_for_cores(parts, num):
    """As many as cores, or a multiple, and equal; but not in pieces too small to pay."""
    generator = np.random.default_rng(0)
    data = [Datum([k, *generator.integers(0, 999, 19).tolist()], [0.0] + [1.0] * 19) for k in range(num)]
    rows = [len(row.tokens) for row in pack_rows(data, 2048, parts=parts)]
    assert sum(rows) == 20 * num
    assert len(rows) % min(parts, max(1, 20 * num // PART_TOKENS)) == 0
    assert max(rows) <= 2048 // parts + PART_TOKENS and max(rows) - min(rows) <= 20


def test_rows_side_by_side_cost_the_same():
    """Unlike lengths that share nothing are dealt out; tokens that pass the head weigh more; no rest is left over."""
    generator = np.random.default_rng(0)

    def datum(prompt: int, answer: int) -> Datum:
        return Datum(generator.integers(3, 9999, prompt + answer).tolist(), [0.0] * prompt + [1.0] * answer)

    def costs(data: list[Datum], head_cost: float, max_tokens: int = 4096) -> list[float]:
        rows = pack_rows(data, max_tokens, parts=2, head_cost=head_cost)
        return [len(row.tokens) + head_cost * sum(sum(data[k].weights) for k in row.data) for row in rows]

    uneven = [datum(60, length) for length in (62, 67, 104, 131, 78, 169, 91, 118, 10, 300)]
    for head_cost in (0.0, 0.3, 3.0):
        first, second = costs(uneven, head_cost)
        assert abs(first - second) < 0.02 * (first + second)
    late = [datum(100, 1) for _ in range(8)] + [datum(1, 100) for _ in range(8)]
    first, second = costs(late, 1.0)
    assert abs(first - second) < 0.05 * (first + second)
    groups = []
    for _ in range(7):
        prompt = generator.integers(3, 9999, 50).tolist()
        for _ in range(8):
            answer = generator.integers(3, 9999, 30).tolist()
            groups.append(Datum(prompt + answer, [0.0] * 50 + [1.0] * 30))
    rows = pack_rows(groups, 2048, parts=2, head_cost=0.27)  # 2030 nodes, and a prompt where it is cut is in two rows
    assert len(rows) == 4 and sum(len(row.tokens) for row in rows) <= 2030 + 3 * 50
    assert max(len(row.tokens) for row in rows) < 1.1 * min(len(row.tokens) for row in rows)


def test_what_is_shared_stays_together():
    """Eight answers to one long prompt, and to two: a row a core would compute a prompt twice."""
    generator = np.random.default_rng(0)
    for prompts, expected in ((1, [1600]), (2, [1600, 1600])):
        data = []
        for _ in range(prompts):
            prompt = generator.integers(3, 300, 1200).tolist()
            for _ in range(8):
                tokens = prompt + generator.integers(3, 300, 50).tolist()
                data.append(Datum(tokens, [0.0] * 1200 + [1.0] * 50))
        assert [len(row.tokens) for row in pack_rows(data, 4096, parts=2)] == pytest.approx(expected, abs=8)


def test_a_small_budget_is_not_divided():
    for tokens, parts in ((64, 1), (1024, 2), (8192, 2)):
        assert Engine(random_model(), micro_batch_tokens=tokens).executor.parts(tokens) == parts
