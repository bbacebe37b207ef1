"""Continuous batching: the sequences in flight are in the first slots of a cache. Each block of steps gives all of
them their next tokens; finished ones leave and waiting ones follow. Prompts that wait together are prefilled in one
packed row, so a group's prompt, and even a common system prompt, is computed once."""

from __future__ import annotations

from collections import deque
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from aurify.engine.engine import Engine
from aurify.engine.packing import Division
from aurify.errors import UserError
from aurify.samplers.cache import KEPT_SHARE, ROUND, Decoding, SlotCache, default_budget, round_up
from aurify.samplers.executors import CoresExecutor, GraphExecutor, StepExecutor, batch_bucket, capture_graph
from aurify.samplers.request import Sequence
from aurify.samplers.slots import Slots, StepOptions, pair_moves
from aurify.samplers.step import Step, prefill

PREFILL_TOKENS = 4096  # of prompts computed at once: bounds their memory
PREFILL_PART = 64  # tokens of prompts that make another core worth it

Drawn = list[tuple[Sequence, list[int], list[float]]]  # tokens and log-probs of a block


class Continuous:
    """Called by the sampler's thread only. decoder: takes layouts; it is the engine's own, or shares its weights."""

    def __init__(
        self, engine: Engine, decoder: Any, cache: SlotCache, step: Step, max_batch: int, cache_bytes: int | None,
        executor: StepExecutor | None = None,
    ) -> None:  # fmt: skip
        self.engine, self.decoder, self.cache, self.step = engine, decoder, cache, step
        self.max_batch, device = max_batch, cache.device
        self.budget = default_budget(device) if cache_bytes is None else cache_bytes
        self.kept_bytes = 0
        if device.type == "cuda":
            # cuDNN's attention plans anew for each shape, and each step brings another one. The switch belongs to the
            # process: a context manager around the call would switch it for other threads too.
            torch.backends.cuda.enable_cudnn_sdp(False)
            self.kept_bytes = int(KEPT_SHARE * torch.cuda.get_device_properties(device).total_memory)
            executor = executor or GraphExecutor(capture_graph)
        self.executor: StepExecutor = executor or CoresExecutor(max_batch)
        self.slots = Slots(max_batch, self.executor.steps, device)
        self.active: list[Sequence] = []  # sequence k is in slot k
        self.moving = False  # while the cache gets another size

    def admit(self, waiting: deque[Sequence]) -> list[Sequence]:
        """Takes those that find a slot, and room in the cache for all that they may still write."""
        admitted: list[Sequence] = []
        prompts: set[tuple[int, ...]] = set()
        size, longest = 0, max((sequence.max_length for sequence in self.active), default=0)
        while waiting and len(self.active) + len(admitted) < self.max_batch:
            sequence = waiting[0]
            prompt = tuple(sequence.prompt)
            size += 0 if prompt in prompts else len(prompt)
            longest = max(longest, sequence.max_length)
            num = len(self.active) + len(admitted) + 1
            if num == 1:
                self._check(sequence)
            elif self._bytes(num, longest) > self.budget or (admitted and size > PREFILL_TOKENS):
                break
            prompts.add(prompt)
            admitted.append(waiting.popleft())
        return admitted

    def begin(self, admitted: list[Sequence]) -> Drawn:
        """Computes the prompts and draws the first tokens."""
        first = len(self.active)
        self.active += admitted
        self.moving = True
        self._reserve()
        self.moving = False
        for slot, sequence in enumerate(admitted, first):
            self.slots.put(slot, sequence)
        options = self.slots.send(first, admitted, 1)
        hidden = self._prefill(admitted, first)
        self.slots.state.part(first, len(self.active)).record(self._logits(hidden), options)
        return self.slots.fetch(first, admitted)

    def take_back(self, admitted: list[Sequence]) -> bool:
        """Prompts touch only their own slots, so the others go on, unless the cache itself was being moved."""
        if self.moving:
            return False
        taken = set(map(id, admitted))
        self.active = [sequence for sequence in self.active if id(sequence) not in taken]
        self.slots.clear(len(self.active))
        for sequence in admitted:
            sequence.restart()
        if not self.active:
            self.release()
        return True

    def advance(self) -> Drawn:
        """A block of steps for all sequences in flight."""
        executor = self.executor
        steps = min(executor.steps, max(sequence.max_tokens - len(sequence.tokens) for sequence in self.active))
        length = max(sequence.length for sequence in self.active) + steps
        length = min(executor.round_length(length), self.cache.capacity)
        self.cache.extend(length)
        options = self.slots.send(0, self.active, steps)
        state = self.slots.state.part(0, self.cache.num_slots)
        executor.run(self._decode, state, len(self.active), length, options, steps)
        return self.slots.fetch(0, self.active)

    def remove(self) -> None:
        """Lets finished sequences go, and closes the gaps with the last ones in flight."""
        finished = [sequence.finish is not None for sequence in self.active]
        sources, targets = pair_moves(finished)
        moved = [self.active[source] for source in sources]
        if moved:
            self.cache.move(sources, targets, max(sequence.length for sequence in moved))
            self.slots.move(sources, targets)
        for target, sequence in zip(targets, moved, strict=True):
            self.active[target] = sequence
        del self.active[finished.count(False) :]
        self.slots.clear(len(self.active))

    def release(self) -> None:
        """Gives memory back, for training say. On a card a small cache stays, with its graphs."""
        self.active, self.moving = [], False
        self.slots.clear(0)
        if self.cache.num_bytes > self.kept_bytes:
            self._drop()

    def close(self) -> None:
        self._drop()
        self.executor.close()

    def _drop(self) -> None:
        self.executor.forget()
        self.cache.free()
        if self.cache.device.type == "cuda":
            torch.cuda.empty_cache()  # else the memory of the graphs would stay reserved

    def _bytes(self, num: int, length: int) -> int:
        return num * round_up(length, ROUND) * self.cache.token_bytes

    def _check(self, sequence: Sequence) -> None:
        needed = self._bytes(1, sequence.max_length)
        if needed > self.budget:
            raise UserError(
                f"a prompt of {len(sequence.prompt)} tokens and a completion of up to {sequence.max_tokens} need "
                f"{needed / 2**20:,.1f} MiB of key-value cache ({self.cache.token_bytes:,} bytes a token); the sampler "
                f"has {self.budget / 2**20:,.1f} MiB: lower max_tokens or sampler.max_context, or give the sampler "
                "more cache_bytes"
            )

    def _reserve(self) -> None:
        """Room for the sequences in flight and all that they may still write, in buckets, within the budget."""
        cache, num = self.cache, len(self.active)
        slots = min(batch_bucket(num), self.max_batch)
        length = round_up(max(sequence.max_length for sequence in self.active), ROUND)
        if num <= cache.num_slots and length <= cache.capacity:
            return
        choices = ((max(slots, cache.num_slots), max(length, cache.capacity)), (slots, length), (num, length))
        shape = next(shape for shape in choices if shape == choices[-1] or self._bytes(*shape) <= self.budget)
        if cache.resize(*shape):
            self.executor.forget()

    def _prefill(self, admitted: list[Sequence], first: int) -> Tensor:
        """Hidden state at the end of each admitted prompt, [admitted, hidden]; their keys and values go into the slots
        from `first` on."""
        prompts: dict[tuple[int, ...], list[int]] = {}
        for slot, sequence in enumerate(admitted, first):
            prompts.setdefault(tuple(sequence.prompt), []).append(slot)
        self.cache.extend(max(map(len, prompts)))
        sequences, slots = [list(prompt) for prompt in prompts], list(prompts.values())
        alone = [[k] for k in range(len(prompts))]
        rows = alone
        if self.engine.body.packs:
            division = Division(sequences, alone, True, [0.0] * len(alone))
            rows = division.rows(PREFILL_TOKENS, self.executor.parts, PREFILL_PART)

        found = self.executor.map(
            lambda row: prefill(
                self.engine, self.decoder, self.cache, [sequences[k] for k in row], [slots[k] for k in row]
            ),
            rows,
        )
        order = {k: number for number, k in enumerate(chain.from_iterable(rows))}
        numbers = {prompt: order[k] for k, prompt in enumerate(prompts)}
        index = torch.tensor([numbers[tuple(sequence.prompt)] for sequence in admitted], device=self.cache.device)
        return torch.cat(found).index_select(0, index)

    def _decode(self, first: int, stop: int, length: int, options: StepOptions) -> None:
        """One step for some slots: nothing of it waits for the host."""
        state = self.slots.state.part(first, stop)
        hidden = self.step(state.tokens, Decoding(self.cache, state.positions, first, length))
        state.record(self._logits(hidden), options)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.engine.head.logits(hidden)  # type: ignore[union-attr]
