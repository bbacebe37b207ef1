"""Continuous batching: the sequences in flight are in the first slots of a cache. Each block of steps gives all of
them their next tokens; finished ones leave and waiting ones follow. Prompts that wait together are prefilled in one
packed row, so a group's prompt, and even a common system prompt, is computed once. Of a conversation that goes on, only
what is new is computed (`sessions.py`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aurify.engine.engine import Engine
from aurify.engine.packing import Division
from aurify.errors import UserError
from aurify.hardware import return_freed_memory
from aurify.samplers.cache import KEPT_SHARE, ROUND, Decoding, SlotCache, default_cache_bytes, round_up_cache
from aurify.samplers.executors import (
    CoresExecutor,
    GraphExecutor,
    StepExecutor,
    capture_decode_graph,
    decode_batch_bucket,
)
from aurify.samplers.request import Sequence
from aurify.samplers.sessions import Sessions
from aurify.samplers.slots import Slots, StepOptions, pair_slot_moves
from aurify.samplers.step import Step, prefill, prefill_new

PREFILL_TOKENS = 4096  # of prompts computed at once: bounds their memory
PREFILL_PART = 64  # tokens of prompts that make another core worth it
SESSION_SHARE = 1 / 4  # of the cache's bytes, for conversations between their turns, once there is one

Drawn = list[tuple[Sequence, list[int], list[float]]]  # tokens and log-probs of a block


class Continuous:
    """Called by the sampler's thread only. decoder: takes layouts; it is the engine's own, or shares its weights."""

    def __init__(
        self, engine: Engine, decoder: Any, cache: SlotCache, step: Step, max_batch: int, cache_bytes: int | None,
        executor: StepExecutor | None = None,
    ) -> None:  # fmt: skip
        self.engine, self.decoder, self.cache, self.step = engine, decoder, cache, step
        self.max_batch, device = max_batch, cache.device
        self.budget = default_cache_bytes(device) if cache_bytes is None else cache_bytes
        self.sessions, self.session_bytes = Sessions(cache), 0  # of the budget
        self.kept_bytes = 0
        if device.type == "cuda":
            # cuDNN's attention plans anew for each shape, and each step brings another one. The switch belongs to the
            # process: a context manager around the call would switch it for other threads too.
            torch.backends.cuda.enable_cudnn_sdp(False)
            self.kept_bytes = int(KEPT_SHARE * torch.cuda.get_device_properties(device).total_memory)
            executor = executor or GraphExecutor(capture_decode_graph)
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
            if sequence.request.session is not None:
                self.session_bytes = int(SESSION_SHARE * self.budget)
            prompt = tuple(sequence.prompt)
            size += 0 if prompt in prompts else len(prompt) - self.sessions.count_known(sequence)
            longest = max(longest, sequence.max_length)
            num = len(self.active) + len(admitted) + 1
            fits = self._bytes(num, longest) <= self.budget - self.session_bytes
            if num == 1:
                self._check(sequence)
                if not fits:
                    self.sessions.clear()
            elif not fits or (admitted and size > PREFILL_TOKENS):
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
        room = min(self.session_bytes, self.budget - self.cache.num_bytes)
        for slot, sequence in enumerate(self.active):
            if finished[slot]:
                self.sessions.keep(sequence, slot, room)
        sources, targets = pair_slot_moves(finished)
        moved = [self.active[source] for source in sources]
        if moved:
            self.cache.move(sources, targets, max(sequence.length for sequence in moved))
            self.slots.move(sources, targets)
        for target, sequence in zip(targets, moved, strict=True):
            self.active[target] = sequence
        del self.active[finished.count(False) :]
        self.slots.clear(len(self.active))

    def expire(self) -> float | None:
        return self.sessions.expire()

    def forget(self) -> None:
        self.sessions.clear()
        for sequence in self.active:  # their turns go on, as they did without sessions
            sequence.request.session = None

    def release(self) -> None:
        """Gives memory back, for training say. On a card a small cache stays, with its graphs."""
        self.active, self.moving = [], False
        self.slots.clear(0)
        if self.cache.num_bytes > self.kept_bytes:
            self._drop()

    def close(self) -> None:
        self.sessions.clear()
        self._drop()
        self.executor.close()

    def _drop(self) -> None:
        self.executor.forget()
        self.cache.free()
        if self.cache.device.type == "cuda":
            torch.cuda.empty_cache()  # else the memory of the graphs would stay reserved
        else:
            return_freed_memory()

    def _bytes(self, num: int, length: int) -> int:
        return num * round_up_cache(length, ROUND) * self.cache.token_bytes

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
        slots = min(decode_batch_bucket(num), self.max_batch)
        length = round_up_cache(max(sequence.max_length for sequence in self.active), ROUND)
        if num <= cache.num_slots and length <= cache.capacity:
            return
        if not cache.num_slots and cache.device.type == "cpu":
            return_freed_memory()  # of a training step, say
        room = self.budget - self.session_bytes
        choices = ((max(slots, cache.num_slots), max(length, cache.capacity)), (slots, length), (num, length))
        shape = next(shape for shape in choices if shape == choices[-1] or self._bytes(*shape) <= room)
        if cache.resize(*shape):
            self.executor.forget()

    def _prefill(self, admitted: list[Sequence], first: int) -> Tensor:
        """Hidden state at the end of each admitted prompt, [admitted, hidden]; their keys and values go into the slots
        from `first` on."""
        self.cache.extend(max(len(sequence.prompt) for sequence in admitted))
        whole: dict[tuple[int, ...], list[int]] = {}  # prompts of which nothing is known, and their slots
        known: dict[int, int] = {}  # how many tokens a slot holds already
        for slot, sequence in enumerate(admitted, first):
            if start := self.sessions.take_back(sequence, slot):
                known[slot] = start
            else:
                whole.setdefault(tuple(sequence.prompt), []).append(slot)
        prompts, slots = [list(prompt) for prompt in whole], list(whole.values())
        going, starts = list(known), list(known.values())
        new = [admitted[slot - first].prompt[start:] for slot, start in known.items()]

        def begin(row: list[int]) -> Tensor:
            return prefill(self.engine, self.decoder, self.cache, [prompts[k] for k in row], [slots[k] for k in row])

        def go_on(row: list[int]) -> Tensor:
            chosen = [new[k] for k in row]
            return prefill_new(self.decoder, self.cache, chosen, [going[k] for k in row], [starts[k] for k in row])

        found: dict[int, Tensor] = {}
        for group, hidden in zip(slots, self._in_rows(prompts, begin, share=True), strict=True):
            found |= dict.fromkeys(group, hidden)
        found |= zip(going, self._in_rows(new, go_on, share=False), strict=True)
        return torch.stack([found[slot] for slot in sorted(found)])

    def _in_rows(self, sequences: list[list[int]], compute: Callable[[list[int]], Tensor], share: bool) -> list[Tensor]:
        """Computes sequences in rows, side by side on cores: one result each, in their order. share: what they have in
        common is computed once."""
        if not sequences:
            return []
        rows = alone = [[k] for k in range(len(sequences))]
        if self.engine.body.packs or not share:
            division = Division(sequences, alone, share, [0.0] * len(alone))
            rows = division.rows(PREFILL_TOKENS, self.executor.parts, PREFILL_PART)
        order = np.argsort(list(chain.from_iterable(rows)))
        found = torch.cat(self.executor.map(compute, rows))
        return list(found[torch.from_numpy(order).to(found.device)])

    def _decode(self, first: int, stop: int, length: int, options: StepOptions) -> None:
        """One step for some slots: nothing of it waits for the host."""
        state = self.slots.state.part(first, stop)
        hidden = self.step(state.tokens, Decoding(self.cache, state.positions, first, length))
        state.record(self._logits(hidden), options)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.engine.head.logits(hidden)  # type: ignore[union-attr]
