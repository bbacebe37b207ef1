"""Samplers around a sampler: one that counts what it gives, and one that keeps turns in step, for runs that are to be
equal to the bit though their conversations have several turns."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aurify.samplers.sampler import Sampler
from aurify.types import Completion, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor


class CountingSampler:
    """A sampler that counts its tokens."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.version = sampler, sampler.version
        self.max_context: int | None = getattr(sampler, "max_context", None)
        self.num_tokens = 0

    async def sample(self, prompt: list[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        completions = await self.sampler.sample(prompt, params, n)
        self.num_tokens += sum(len(completion.tokens) for completion in completions)
        return completions

    async def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        await self.sampler.load_weights(weights, version)
        self.version = version

    async def rest(self) -> None:
        await self.sampler.rest()

    async def close(self) -> None:
        await self.sampler.close()


class InRounds(CountingSampler):
    """A sampler that lets a request go when all who play have made theirs. So which requests share a batch depends on
    the conversations alone, and not on how long an environment takes to answer. num_rooms: how many play at the same
    time; who leaves a room makes one for the next, and the round waits for that one too."""

    def __init__(self, sampler: Sampler, num_rooms: int | None = None) -> None:
        super().__init__(sampler)
        self.num_rooms = num_rooms
        self.num_seated = 0  # who play, or wait for a room
        self.arrived: list[asyncio.Future[None]] = []

    @contextmanager
    def seat(self) -> Iterator[None]:
        """Of a trajectory, from before it waits for a room until it has left it."""
        self.num_seated += 1
        try:
            yield
        finally:
            self.num_seated -= 1
            self._begin_round()

    async def sample(self, prompt: list[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.arrived.append(turn)
        self._begin_round()
        try:
            await turn
        finally:
            if turn in self.arrived:  # cancelled
                self.arrived.remove(turn)
        return await super().sample(prompt, params, n)

    def _begin_round(self) -> None:
        """All go in the same moment of the event loop, so the sampler finds all of them."""
        num_playing = self.num_seated if self.num_rooms is None else min(self.num_seated, self.num_rooms)
        if len(self.arrived) >= num_playing:
            arrived, self.arrived = self.arrived, []
            for turn in arrived:
                if not turn.done():
                    turn.set_result(None)
