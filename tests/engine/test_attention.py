"""Paths of attention: their masks, their numbers and gradients against plain rows, and how many graphs they compile."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from models import random_model

from aurify.engine import attention
from aurify.engine.attention import FLEX_BLOCK, Forest, compile_flex, flex_mask, padded_row_length
from aurify.engine.forward import Body
from aurify.engine.logprobs import Head
from aurify.engine.packing import Row, pack_row
from aurify.engine.upload import upload_arrays_together

CPU = torch.device("cpu")


def random_forest(seed: int, nodes: int) -> Row:
    """Prompts with branches at several depths, short and long ones, about as many nodes as asked for."""
    generator = np.random.default_rng(seed)
    sequences: list[list[int]] = []
    total = 0
    while total < nodes:
        if sequences and generator.random() < 0.7:
            trunk = sequences[generator.integers(len(sequences))]
            trunk = trunk[: generator.integers(1, len(trunk) + 1)]
        else:
            trunk = []
        branch = generator.integers(3, 300, int(generator.integers(1, 200))).tolist()[: max(1, nodes - total)]
        sequences.append([*trunk, *branch])
        total += len(branch)
    return pack_row(sequences, range(len(sequences)))


def expected_mask(forest: Forest, window: int | None) -> np.ndarray:
    i, j = np.arange(forest.length)[:, None], np.arange(forest.length)[None]
    visible = (j <= i) & (i < forest.end[j])
    return visible if window is None else visible & (forest.depths[i] - forest.depths[j] < window)


@pytest.mark.parametrize("window", [None, 1, 40, 150, 4096])
@pytest.mark.parametrize(("seed", "nodes"), [(0, 90), (1, 300), (2, 640), (3, 1100), (4, 1530)])
def test_block_mask_is_the_one_of_the_helper(seed, nodes, window):
    """Blocks seen in part and in full are those that torch finds by asking for each pair of nodes."""
    from torch.nn.attention.flex_attention import create_block_mask

    forest = Forest(random_forest(seed, nodes), CPU, torch.float32, "flex")
    assert forest.length % FLEX_BLOCK == 0 and forest.length >= len(forest.row.tokens)
    mask = flex_mask(forest, window)
    reference = create_block_mask(mask.mask_mod, None, None, forest.length, forest.length, device="cpu")
    assert torch.equal(mask.to_dense(), reference.to_dense())
    for num, indices in (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices"),
                         ("q_num_blocks", "q_indices"), ("full_q_num_blocks", "full_q_indices")):  # fmt: skip
        counts = getattr(mask, num)[0, 0]
        assert torch.equal(counts, getattr(reference, num)[0, 0])
        for found, wanted, count in zip(
            *(getattr(each, indices)[0, 0] for each in (mask, reference)), counts, strict=True
        ):
            assert torch.equal(found[:count], wanted[:count])
    nodes_of_mask = torch.arange(forest.length)
    rule = mask.mask_mod(torch.tensor(0), torch.tensor(0), nodes_of_mask[:, None], nodes_of_mask[None])
    assert np.array_equal(rule.numpy(), expected_mask(forest, window))


@pytest.mark.parametrize("window", [None, 7])
def test_padding_sees_itself_and_nobody_sees_it(window):
    forest = Forest(random_forest(5, 200), CPU, torch.float32, "flex")
    num = len(forest.row.tokens)
    assert num < forest.length == 256
    mask = expected_mask(forest, window)
    assert np.array_equal(mask[num:, num:], np.eye(forest.length - num, dtype=bool))
    assert not mask[:num, num:].any() and not mask[num:, :num].any()
    dense = attention.dense_mask(forest.ends, forest.positions[0], window, torch.float32)[0, 0]
    assert np.array_equal(dense.numpy() == 0, mask)


def test_rows_have_few_lengths():
    assert [padded_row_length(num) for num in (1, 256, 257, 4096, 4097, 5000)] == [256, 256, 384, 4096, 4608, 5120]
    assert len({padded_row_length(num) for num in range(1, 16385)}) == 31 + 24


def test_flex_computes_what_the_dense_mask_does():
    """Forward alone: FlexAttention has no backward on a CPU."""
    generator = torch.Generator().manual_seed(0)
    row = random_forest(1, 300)
    flex, dense = (Forest(row, CPU, torch.float32, path) for path in ("flex", "dense"))
    for kv_heads, window in ((4, None), (2, 20), (1, None)):
        query, key, value = (
            torch.randn(1, heads, flex.length, 16, generator=generator) for heads in (4, kv_heads, kv_heads)
        )
        with torch.no_grad():
            mask = flex.mask(window)
            compiled = compile_flex("eager")(query, key, value, block_mask=mask, scale=0.3, enable_gqa=kv_heads < 4)
        num = len(row.tokens)
        expected = dense.attend(0, query[:, :, :num], key[:, :, :num], value[:, :, :num], 0.3, window)
        assert compiled.isfinite().all()
        torch.testing.assert_close(compiled[:, :, :num], expected, rtol=1e-5, atol=1e-5)


class Counting:
    """A backend of torch.compile that counts the graphs it is handed, forward ones by whether gradients are on."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.registry import lookup_backend

        self.graphs += 1
        return lookup_backend("aot_eager")(graph, inputs)


LENGTHS = (5, 100, 128, 129, 300, 400, 513, 700, 900, 1100, 1300, 1500, 1700, 2000)
SHORT_LENGTHS = (2, 5, 17, 40, 63, 100, 128, 129, 200, 257, 300, 400)


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_flex_compiles_once_for_all_lengths(fresh_compiler):
    """No-grad mode; on a CPU there is no backward to compile for the other one."""
    backend = Counting()
    kernel = compile_flex(backend)
    generator = torch.Generator().manual_seed(0)
    for seed, nodes in enumerate(LENGTHS):
        forest = Forest(random_forest(seed, nodes), CPU, torch.float32, "flex")
        query, key, value = (torch.randn(1, heads, forest.length, 16, generator=generator) for heads in (4, 2, 2))
        with torch.no_grad():
            kernel(query, key, value, block_mask=forest.mask(None), scale=None, enable_gqa=True)
    assert 1 <= backend.graphs <= 2


@pytest.mark.parametrize("architecture", ["Llama", "Gemma3Text"])
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at tensors that are no leaves
def test_compiled_layers_have_the_same_values_and_few_graphs(architecture, fresh_compiler):
    windows = {"sliding_window": 8, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}
    options = windows if architecture == "Gemma3Text" else {"num_hidden_layers": 4}
    module = random_model(architecture, **options).module
    plain = Body(module, Head.of(module), path="dense")
    rows = [random_forest(seed, nodes) for seed, nodes in enumerate(SHORT_LENGTHS)]
    expected = [(plain.hidden(row).detach(), gradient(module, plain.hidden(row))) for row in rows]
    backend = Counting()
    compiled = Body(module, Head.of(module), path="dense")
    compiled.compile_layers(backend)
    assert compiled.describe()["layers_compiled"]
    kinds = 2 if architecture == "Gemma3Text" else 1  # of layers: one with and one without a window
    with torch.no_grad():
        for row, (hidden, _) in zip(rows, expected, strict=True):
            torch.testing.assert_close(compiled.hidden(row), hidden, rtol=1e-4, atol=1e-5)
    assert kinds <= backend.graphs <= 2 * kinds
    before = backend.graphs
    for row, (_, grad) in zip(rows, expected, strict=True):
        torch.testing.assert_close(gradient(module, compiled.hidden(row)), grad, rtol=1e-3, atol=1e-4)
    assert kinds <= backend.graphs - before <= 2 * kinds


def gradient(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    return torch.autograd.grad((hidden * weights).sum(), [module.get_input_embeddings().weight])[0]


VARIANTS = [
    ("Llama", {"num_key_value_heads": 4}),
    ("Llama", {"num_key_value_heads": 2}),
    ("Llama", {"num_key_value_heads": 1}),
    ("Mistral", {"sliding_window": 8}),
    ("Gemma3Text", {"sliding_window": 8, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}),
]


@pytest.mark.parametrize(("architecture", "options"), VARIANTS)
def test_paths_give_the_values_and_gradients_of_plain_rows(architecture, options):
    module = random_model(architecture, initializer_range=0.1, **options).module
    row = random_forest(3, 500)
    bodies = {path: Body(module, Head.of(module), path=path) for path in ("blocks", "dense")}
    found = {path: (body.hidden(row), gradient(module, body.hidden(row))) for path, body in bodies.items()}
    plain = Body(module, Head.of(module), path="plain")  # the attention of the module changes with the last body
    hidden, grad = plain.hidden(row), gradient(module, plain.hidden(row))
    for values, gradients in found.values():
        torch.testing.assert_close(values, hidden, rtol=1e-5, atol=1e-5 * float(hidden.detach().abs().max()))
        assert float((gradients - grad).norm() / grad.norm()) < 1e-5


def failing(path: str, error: Exception):
    """A Forest.attend that has no kernel for `path`."""
    attend = Forest.attend

    def attend_or_fail(self: Forest, *arguments: Any) -> torch.Tensor:
        if self.path == path:
            raise error
        return attend(self, *arguments)

    return attend_or_fail


def test_a_path_without_a_kernel_gives_way_to_the_next(monkeypatch, caplog):
    monkeypatch.setattr(Forest, "attend", failing("blocks", RuntimeError("no kernel found\nlong trace")))
    module = random_model().module
    body = Body(module, Head.of(module))
    row = random_forest(0, 100)
    with caplog.at_level(logging.WARNING, "aurify"):
        found = next(body.hidden(row) for _ in range(3))
    assert body.path == "dense" and body.packs
    assert len(caplog.records) == 1
    assert "no kernel found" in caplog.text and "'dense'" in caplog.text and "mask" in caplog.text
    assert body.reason == "blocks: RuntimeError: no kernel found"
    assert [(c["path"], c["accepted"]) for c in body.describe()["checks"]] == [("blocks", False), ("dense", True)]
    expected = Body(module, None, path="plain").hidden(row)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_compiler_that_fails_later_is_left_too(monkeypatch, caplog):
    """After 32 graphs, say, in the middle of training: the row is computed on the next path."""
    from torch._dynamo.exc import FailOnRecompileLimitHit

    module = random_model().module
    body, row = Body(module, Head.of(module)), random_forest(0, 100)
    expected = body.hidden(row)
    assert body.path == "blocks"
    monkeypatch.setattr(Forest, "attend", failing("blocks", FailOnRecompileLimitHit("limit of 32 recompiles")))
    with caplog.at_level(logging.WARNING, "aurify"):
        found = body.hidden(row)
    assert body.path == "dense" and "limit of 32 recompiles" in body.reason and len(caplog.records) == 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(Forest, "attend", failing("dense", FailOnRecompileLimitHit("limit of 32 recompiles")))
    torch.testing.assert_close(body.hidden(row), expected, rtol=1e-4, atol=1e-5)  # a tree, as plain rows
    assert body.path == "plain" and not body.packs


def test_an_error_of_the_caller_is_no_reason_to_leave_a_path():
    module = random_model().module
    body, row = Body(module, Head.of(module)), random_forest(0, 100)
    assert body.path == "blocks"
    row.tokens[0] = 300  # outside the vocabulary
    with pytest.raises(IndexError):
        body.hidden(row)
    assert body.path == "blocks" and body.reason == ""


def test_memory_that_runs_out_in_the_check_is_told(monkeypatch):
    monkeypatch.setattr(Forest, "attend", failing("blocks", torch.OutOfMemoryError("no more")))
    module = random_model().module
    with pytest.raises(torch.OutOfMemoryError):
        Body(module, Head.of(module)).path  # noqa: B018


def test_layers_of_a_kind_that_is_not_known_take_plain_rows(caplog):
    module = random_model("Llama").module
    module.config.layer_types = ["full_attention", "chunked_attention"]
    body = Body(module, Head.of(module))
    with caplog.at_level(logging.WARNING, "aurify"):
        assert not body.packs
    assert "chunked_attention" in body.reason and "chunked_attention" in caplog.text


def test_a_row_goes_up_in_one_piece(generator):
    arrays = [
        generator.integers(0, 9, 7), np.array([], dtype=np.int64), generator.normal(size=5).astype(np.float32),
        generator.integers(0, 9, (2, 3)).astype(np.int32), generator.integers(0, 2, 3).astype(bool), np.arange(10)[::2],
    ]  # fmt: skip
    tensors = upload_arrays_together(arrays, CPU)
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    for tensor, array in zip(tensors, arrays, strict=True):
        assert tensor.dtype == torch.from_numpy(array).dtype and np.array_equal(tensor.numpy(), array)
