"""Sampling for models that cannot decode by layouts (recurrent layers, unusual attention), with the model's own cache.
Prompts of one length make a batch without padding, and each of its rows stops on its own. It works for every model
that transformers can run."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from aurify.engine.engine import Engine
from aurify.samplers.continuous import Drawn
from aurify.samplers.request import Sequence
from aurify.samplers.slots import LEFT, Slots

BATCH_TOKENS = 16384  # of prompts in a batch: bounds the memory of their forward pass


class SameLength:
    """Called by the sampler's thread only."""

    def __init__(self, engine: Engine, max_batch: int) -> None:
        self.engine, self.max_batch = engine, max_batch
        self.device = engine.module.get_input_embeddings().weight.device
        self.slots = Slots(max_batch, 1, self.device)
        self.rows: list[Sequence] = []  # of the batch; row k stays in slot k
        self.cache: dict[str, Any] = {}  # under the name that the model gives it
        self.active: list[Sequence] = []

    def admit(self, waiting: deque[Sequence]) -> list[Sequence]:
        """When a batch is done: the first that waits, and all with a prompt of the same length."""
        if self.rows or not waiting:
            return []
        length = len(waiting[0].prompt)
        most = min(self.max_batch, max(BATCH_TOKENS // length, 1))
        admitted = [sequence for sequence in waiting if len(sequence.prompt) == length][:most]
        chosen = set(map(id, admitted))
        others = [sequence for sequence in waiting if id(sequence) not in chosen]
        waiting.clear()
        waiting.extend(others)
        return admitted

    def begin(self, admitted: list[Sequence]) -> Drawn:
        self.rows, self.active = admitted, list(admitted)
        for slot, sequence in enumerate(admitted):
            self.slots.put(slot, sequence)
        return self._run(torch.tensor([sequence.prompt for sequence in admitted], device=self.device))

    def take_back(self, admitted: list[Sequence]) -> bool:
        """They are all that is in flight: nothing else is lost."""
        self.release()
        for sequence in admitted:
            sequence.restart()
        return True

    def advance(self) -> Drawn:
        return self._run(self.slots.state.tokens[: len(self.rows), None])

    def remove(self) -> None:
        for slot, sequence in enumerate(self.rows):
            if sequence.finish is not None:
                self.slots.integers[LEFT, slot] = 0
        self.active = [sequence for sequence in self.rows if sequence.finish is None]
        if not self.active:
            self.release()

    def expire(self) -> None:
        """It keeps nothing between turns: the state of a recurrent layer cannot go back to a common prefix."""

    def forget(self) -> None:
        pass

    def release(self) -> None:
        self.rows, self.active, self.cache = [], [], {}

    def close(self) -> None:
        self.release()

    def _run(self, inputs: Tensor) -> Drawn:
        options = self.slots.send(0, self.rows, 1)
        result = self.engine.body.decoder(input_ids=inputs, use_cache=True, **self.cache)
        name = "past_key_values" if "past_key_values" in result else "cache_params"
        self.cache = {name: result[name]}
        logits = self.engine.head.logits(result.last_hidden_state[:, -1])  # type: ignore[union-attr]
        self.slots.state.part(0, len(self.rows)).record(logits, options)
        return self.slots.fetch(0, self.rows)
