"""One forward pass over a packed row, by the fast path or, where a model cannot do that, as plain padded rows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aurify.engine.attention import IMPLEMENTATION, Forest, Unsupported
from aurify.engine.logprobs import Head
from aurify.engine.packing import Row, build_row
from aurify.types import SOURCES, Batch, Datum

log = logging.getLogger("aurify")

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}  # of log-probs, fast against plain


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the engine looks up for one row: which nodes to predict, and whose they are."""

    batch: Batch
    distinct: Tensor  # [distinct] nodes whose token is trained by at least one sequence
    scatter: Tensor  # [tokens] into `distinct`
    places: list[tuple[int, int]]  # [tokens] (index of the datum, place in its tokens)

    @staticmethod
    def of(row: Row, data: Sequence[Datum], device: torch.device) -> Inputs:
        trained = [np.flatnonzero(np.asarray(data[k].weights)) for k in row.data]
        nodes = np.concatenate([path[t] for path, t in zip(row.nodes, trained, strict=True)])
        distinct, scatter = np.unique(nodes, return_inverse=True)
        units: dict[tuple[int, int], int] = {}
        unit = [units.setdefault((data[k].unit, k if data[k].unit < 0 else -1), len(units)) for k in row.data]

        def stream(name: str) -> Tensor | None:
            if any(getattr(data[k], name) is None for k in row.data):
                if any(getattr(data[k], name) is not None for k in row.data):
                    raise ValueError(f"some data of one call have {name} and some have none")
                return None
            values = [
                np.asarray(getattr(data[k], name), dtype=np.float32)[t] for k, t in zip(row.data, trained, strict=True)
            ]
            return torch.from_numpy(np.concatenate(values)).to(device)

        weights = stream("weights")
        assert weights is not None
        batch = Batch(
            weights=weights,
            sequence=torch.from_numpy(np.repeat(np.arange(len(row.data)), [len(t) for t in trained])).to(device),
            unit=torch.tensor(unit, device=device),
            num_sequences=len(row.data),
            num_units=len(units),
            margin=torch.tensor([data[k].margin for k in row.data], device=device),
            label=torch.tensor([data[k].label for k in row.data], device=device),
            baseline=torch.tensor([data[k].baseline for k in row.data], device=device),
            source=torch.from_numpy(
                np.concatenate([writers(data[k])[t] for k, t in zip(row.data, trained, strict=True)])
            ).to(device),
            advantages=stream("advantages"),
            logprobs=stream("logprobs"),
            old_logprobs=stream("old_logprobs"),
            ref_logprobs=stream("ref_logprobs"),
        )
        places = [(k, int(t)) for k, ts in zip(row.data, trained, strict=True) for t in ts]
        return Inputs(
            batch, torch.from_numpy(distinct).to(device), torch.from_numpy(scatter.reshape(-1)).to(device), places
        )


def writers(datum: Datum) -> np.ndarray:
    """[tokens] int64, index into SOURCES: a token of a guide is one, whatever its sequence is."""
    source = np.full(len(datum.tokens), SOURCES.index(datum.source))
    if datum.guided is not None:
        source[np.asarray(datum.guided, dtype=bool)] = SOURCES.index("guidance")
    return source


class Body:
    """The decoder of a model, without its head. Checks itself on first use."""

    def __init__(self, module: Any, head: Head | None, *, packing: bool = True) -> None:
        self.module, self.head = module, head
        self.decoder: Any = module.base_model
        embedding = module.get_input_embeddings().weight
        products = sum(parameter.numel() for parameter in self.decoder.parameters() if parameter is not embedding)
        self.head_cost = 0.0 if head is None else head.weight.numel() / products  # of a token, to that of its layers
        chosen = module.config._attn_implementation
        self.fallback: str = "sdpa" if chosen in (None, IMPLEMENTATION) else chosen
        self._packs: bool | None = None if packing else False
        self.checking = threading.Lock()  # the check switches the model's attention to and fro: one thread at a time
        if not packing:
            module.config._attn_implementation = self.fallback

    @property
    def packs(self) -> bool:
        """Whether packed rows give what plain rows give (measured once)."""
        if self._packs is None:
            with self.checking:
                if self._packs is None:  # no other thread, a sampler's say, was first
                    packs = self._check()
                    self.module.config._attn_implementation = IMPLEMENTATION if packs else self.fallback
                    self._packs = packs
        return self._packs

    def describe(self) -> dict[str, Any]:
        return {"packs": self._packs}

    def hidden(self, row: Row) -> Tensor:
        """[nodes, hidden], final norm included."""
        return self._packed(row) if self.packs else self._plain(row)

    def _packed(self, row: Row) -> Tensor:
        embedding = self.module.get_input_embeddings().weight
        tokens = torch.from_numpy(row.tokens)[None].to(embedding.device)
        positions = torch.from_numpy(row.positions)[None].to(embedding.device)
        forest = Forest(row, embedding.device, embedding.dtype)
        result = self.decoder(input_ids=tokens, position_ids=positions, use_cache=False, layout=forest)
        return result.last_hidden_state[0]

    def _plain(self, row: Row) -> Tensor:
        """One padded row a sequence. `row` shares nothing, so its sequences are contiguous."""
        device = self.module.get_input_embeddings().weight.device
        lengths = [len(path) for path in row.nodes]
        tokens = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
        mask = torch.zeros_like(tokens)
        for k, path in enumerate(row.nodes):
            tokens[k, : len(path)] = torch.from_numpy(row.tokens[path])
            mask[k, : len(path)] = 1
        result = self.decoder(input_ids=tokens.to(device), attention_mask=mask.to(device), use_cache=False)
        hidden = result.last_hidden_state
        flat = torch.cat([hidden[k, :length] for k, length in enumerate(lengths)])
        order = torch.from_numpy(np.argsort(np.concatenate(row.nodes), kind="stable")).to(device)
        return flat[order]

    @torch.no_grad()
    def _check(self) -> bool:
        """Runs a small tree of tokens both ways and compares log-probs (or, without a head, hidden states)."""
        config, training = self.module.config, self.module.training
        generator = np.random.default_rng(0)
        vocabulary = self.module.get_input_embeddings().weight.shape[0]
        prompt, *branches = (generator.integers(0, vocabulary, n).tolist() for n in (23, 9, 17, 14))
        sequences = [prompt + branches[0], prompt + branches[1], branches[2]]
        tree, plain = build_row(sequences, range(3)), build_row(sequences, range(3), share=False)
        self.module.eval()
        try:
            config._attn_implementation = self.fallback
            expected = self._plain(plain)[np.concatenate(plain.nodes)]
            config._attn_implementation = IMPLEMENTATION
            found = self._packed(tree)[np.concatenate(tree.nodes)]
        except Unsupported as reason:
            log.warning("packed rows are off, each sequence gets a plain row: %s", reason)
            return False
        finally:
            config._attn_implementation = self.fallback
            self.module.train(training)
        if self.head is not None:
            expected, found = (self.head.logits(h).log_softmax(-1) for h in (expected, found))
        gap = float((expected.float() - found.float()).abs().max())
        if not gap <= TOLERANCE[self.module.get_input_embeddings().weight.dtype]:
            log.warning(
                "packed rows are off, each sequence gets a plain row: with them %s differs by %.2g",
                type(self.module).__name__,
                gap,
            )
            return False
        return True
