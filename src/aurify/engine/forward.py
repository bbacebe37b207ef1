"""One forward pass over a packed row, by the fast path or, where a model cannot do that, as plain padded rows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aurify.engine.attention import IMPLEMENTATION, LADDERS, Forest, Path, Unsupported
from aurify.engine.check import Check, Checker
from aurify.engine.logprobs import Head
from aurify.engine.packing import Row, build_row
from aurify.engine.upload import upload
from aurify.types import SOURCES, Batch, Datum

log = logging.getLogger("aurify")

KNOWN_LAYERS = {"full_attention", "sliding_attention"}  # as transformers names them; others, chunks say, are not ours
accepted: dict[tuple[str, Path], Check] = {}  # in this process: what was checked once for models built alike
COSTS: dict[Path, str] = {
    "dense": "Each row needs a mask of its length squared, which long rows feel",
    "plain": "Each sequence gets a padded row of its own, so shared prompts are computed again for each",
}


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the engine looks up for one row: which nodes to predict, and whose they are.

    This is the one place where predictions are shifted: a node's token is predicted by the hidden state of its
    parent."""

    batch: Batch
    distinct: Tensor  # [distinct] nodes whose token is trained by at least one sequence
    parents: Tensor  # [distinct] nodes whose hidden state predicts them
    targets: Tensor  # [distinct] their tokens
    scatter: Tensor  # [tokens] into `distinct`
    last: Tensor  # [sequences] the node that each sequence ends at
    places: list[tuple[int, int]]  # [tokens] (index of the datum, place in its tokens)

    @staticmethod
    def of(row: Row, data: Sequence[Datum], device: torch.device) -> Inputs:
        chosen = [data[k] for k in row.data]
        trained = [np.flatnonzero(np.asarray(datum.weights)) for datum in chosen]
        nodes = np.concatenate([path[t] for path, t in zip(row.nodes, trained, strict=True)])
        predicted, indices = np.unique(nodes, return_inverse=True)
        units: dict[tuple[int, int], int] = {}
        unit = [units.setdefault((data[k].unit, k if data[k].unit < 0 else -1), len(units)) for k in row.data]
        arrays = {
            "sequence": np.repeat(np.arange(len(chosen)), [len(t) for t in trained]),
            "unit": np.array(unit, dtype=np.int64),
            "source": np.concatenate([writers(datum)[t] for datum, t in zip(chosen, trained, strict=True)]),
            "distinct": predicted,
            "parents": row.parent[predicted],
            "targets": row.tokens[predicted],
            "scatter": indices.reshape(-1),
            "last": np.array([path[-1] for path in row.nodes]),
        }
        for name in ("margin", "label", "baseline"):
            arrays[name] = np.array([getattr(datum, name) for datum in chosen], dtype=np.float32)
        for name in ("weights", "advantages", "logprobs", "old_logprobs", "ref_logprobs"):
            values = read_stream(chosen, name, trained)
            if values is not None:
                arrays[name] = values
        tensors = dict(zip(arrays, upload(list(arrays.values()), device), strict=True))
        distinct, parents, targets, scatter, last = (
            tensors.pop(name) for name in ("distinct", "parents", "targets", "scatter", "last")
        )
        streams = {name: tensors.pop(name, None) for name in ("advantages", "logprobs", "old_logprobs", "ref_logprobs")}
        batch = Batch(num_sequences=len(chosen), num_units=len(units), **tensors, **streams)  # type: ignore[arg-type]
        places = [(k, int(t)) for k, ts in zip(row.data, trained, strict=True) for t in ts]
        return Inputs(batch, distinct, parents, targets, scatter, last, places)


def read_stream(data: Sequence[Datum], name: str, trained: Sequence[np.ndarray]) -> np.ndarray | None:
    """[tokens] fp32: what the data say of their trained tokens under `name`; None if none says anything."""
    missing = [getattr(datum, name) is None for datum in data]
    if all(missing):
        return None
    if any(missing):
        raise ValueError(f"some data of one call have {name} and some have none")
    return np.concatenate(
        [np.asarray(getattr(datum, name), dtype=np.float32)[t] for datum, t in zip(data, trained, strict=True)]
    )


def writers(datum: Datum) -> np.ndarray:
    """[tokens] int64, index into SOURCES: a token of a guide is one, whatever its sequence is."""
    source = np.full(len(datum.tokens), SOURCES.index(datum.source))
    if datum.guided is not None:
        source[np.asarray(datum.guided, dtype=bool)] = SOURCES.index("guidance")
    return source


class Body:
    """The decoder of a model, without its head.

    Rows are computed on the first path of a ladder (attention.LADDERS) that works on this machine and gives what plain
    rows give. That is measured once, on first use (check.py)."""

    def __init__(self, module: Any, head: Head | None, *, packing: bool = True, path: Path | None = None) -> None:
        """path: one that is known to be right, as for a copy of a model that was checked."""
        self.module, self.head = module, head
        self.decoder: Any = module.base_model
        embedding = module.get_input_embeddings().weight
        self.device = embedding.device
        products = sum(parameter.numel() for parameter in self.decoder.parameters() if parameter is not embedding)
        self.head_cost = 0.0 if head is None else head.weight.numel() / products  # of a token, to that of its layers
        chosen = module.config._attn_implementation
        self.fallback: str = "sdpa" if chosen in (None, IMPLEMENTATION) else chosen
        self.reason = ""  # why it is not the first path of the ladder
        self.checks: list[Check] = []
        self.windows: set[int | None] | None = None  # of the layers; known once they are compiled
        self.checking = threading.RLock()  # a check switches the attention of the whole model: one thread at a time
        self._path: Path | None = None
        if not packing:
            self._settle("plain", "packing is off")
        elif path is not None:
            self._settle(path, "")

    @property
    def path(self) -> Path:
        if self._path is None:
            with self.checking:
                if self._path is None:  # no other thread, a sampler's say, was first
                    self._choose(LADDERS.get(self.device.type, ("dense", "plain")))
        assert self._path is not None
        return self._path

    @property
    def dtype(self) -> torch.dtype:
        return self.module.get_input_embeddings().weight.dtype

    @property
    def packs(self) -> bool:
        """Whether rows may hold several sequences, and trees of them."""
        return self.path != "plain"

    def describe(self) -> dict[str, Any]:
        """What was chosen, why, and what was measured, as plain values. `path` is None before the first use."""
        return {
            "path": self._path,
            "reason": self.reason,
            "layers_compiled": self.windows is not None,
            "checks": [check.describe() for check in self.checks],
        }

    def hidden(self, row: Row) -> Tensor:
        """[nodes, hidden], final norm included."""
        if self.packs:
            try:
                return self.packed(row)
            except CompilerFailed:
                pass  # and no path for packed rows is left
        return self.plain(row)

    def packed(self, row: Row, layout: Forest | None = None) -> Tensor:
        """[nodes, hidden]. layout: of `row`, for `path`; one that does more than attend, such as to fill a cache."""
        layout = layout or Forest(row, self.device, self.dtype, self.path)
        while True:
            try:
                if self.windows is not None:
                    layout.prepare(self.windows)
                return self.run(layout)[: len(row.tokens)]
            except Exception as error:
                if not from_compiler(error):
                    raise
                with self.checking:
                    if self._path == layout.path:  # no other thread was first
                        ladder = LADDERS[self.device.type]
                        self._choose(ladder[ladder.index(layout.path) + 1 :], first_line(error))
                if self._path == "plain":
                    raise CompilerFailed(first_line(error)) from error
                layout.take(self.path)

    def run(self, layout: Forest) -> Tensor:
        """[layout.length, hidden]: the nodes and their padding."""
        result = self.decoder(input_ids=layout.tokens, position_ids=layout.positions, use_cache=False, layout=layout)
        hidden: Tensor = result.last_hidden_state[0]
        return hidden

    def plain(self, row: Row) -> Tensor:
        """[nodes, hidden], from one padded row a sequence. A node of several sequences is computed in each."""
        lengths = [len(path) for path in row.nodes]
        tokens = np.zeros((len(lengths), max(lengths)), dtype=np.int64)
        mask = np.zeros_like(tokens)
        for k, path in enumerate(row.nodes):
            tokens[k, : len(path)] = row.tokens[path]
            mask[k, : len(path)] = 1
        places = np.flatnonzero(mask)[np.unique(np.concatenate(row.nodes), return_index=True)[1]]
        there, attended, chosen = upload([tokens, mask, places], self.device)
        result = self.decoder(input_ids=there, attention_mask=attended, use_cache=False)
        return result.last_hidden_state.flatten(0, 1).index_select(0, chosen)

    def compile_layers(self, backend: Any = "inductor") -> None:
        """Compiles each decoder layer, for rows of every length. Their weights, and what the layers compute, stay
        what they are; a GPU has fewer kernels to start."""
        if self.path == "blocks":  # a list of blocks that differ in size: every row would compile anew
            with self.checking:
                self._choose(("dense", "plain"), "compiled layers need one mask a row")
        if not self.packs:
            raise ValueError(f"only layers of packed rows can be compiled, and they are off: {self.reason}")
        layout = Forest(build_row([[0, 0]], [0]), self.device, self.dtype, self.path)
        with torch.no_grad():
            self.run(layout)  # what windows there are, the layers say
        self.windows = set(layout.masks)
        for layer in find_layers(self.decoder):
            layer.compile(dynamic=True, backend=backend)

    def _choose(self, ladder: Sequence[Path], reason: str = "") -> None:
        """Takes the first path of `ladder` that gives what plain rows give, and says so if it is not the best."""
        reasons = [reason] if reason else []
        strange = set(getattr(self.module.config.get_text_config(), "layer_types", None) or ()) - KNOWN_LAYERS
        if strange:
            reason = f"{type(self.module).__name__} has layers of {', '.join(sorted(strange))}"
            self.checks.append(Check("plain", False, reason))
            return self._settle("plain", reason)
        checker, structure = Checker(self), describe_structure(self)
        for path in ladder[:-1]:
            try:
                check = accepted.get((structure, path)) or checker.measure(path)
            except Unsupported as error:
                self.checks.append(Check(path, False, str(error)))
                return self._settle("plain", str(error))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # no kernel, no compiler, not enough shared memory, ...
                check = Check(path, False, first_line(error))
            self.checks.append(check)
            if check.accepted:
                accepted[structure, path] = check
                return self._settle(path, "; ".join(reasons))
            reasons.append(f"{path}: {check.reason}")
        self._settle("plain", "; ".join(reasons))

    def _settle(self, path: Path, reason: str) -> None:
        self.module.config._attn_implementation = self.fallback if path == "plain" else IMPLEMENTATION
        self._path, self.reason = path, reason
        if reason and path in COSTS and self.checks:
            name = type(self.module).__name__
            log.warning("%s: packed rows take the path %r, because %s. %s", name, path, reason, COSTS[path])


def describe_structure(body: Body) -> str:
    """All that decides which code a model runs: its configuration, the kinds of its modules (an adapter's among them),
    dtype and device. Other weights of the same structure are computed by the same code."""
    kinds = sorted({f"{type(part).__module__}.{type(part).__qualname__}" for part in body.module.modules()})
    return "\n".join([body.module.config.to_json_string(), *kinds, str(body.dtype), str(body.device), body.fallback])


class CompilerFailed(RuntimeError):
    """No path for packed rows is left, after the compiler failed on a row."""


def from_compiler(error: Exception) -> bool:
    """Whether the compiler failed, or had to compile too often: another path may still work."""
    names = (kind.__module__ for kind in type(error).__mro__)
    return any(name.startswith(("torch._dynamo", "torch._inductor", "triton")) for name in names)


def first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def find_layers(decoder: Any) -> nn.ModuleList:
    """The decoder layers, whatever the model calls them."""
    num = decoder.config.get_text_config().num_hidden_layers
    return next(part for part in decoder.children() if isinstance(part, nn.ModuleList) and len(part) == num)
