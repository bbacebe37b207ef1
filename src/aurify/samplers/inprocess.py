"""The embedded sampler: generates with the engine's own weights, no copy and no sync, on a CPU or a GPU, while
training goes on.

This file is its asynchronous side: requests, the thread that works on them, and their results. How tokens come about
is in `continuous.py`, and for models that cannot do that in `recurrent.py`."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from aurify.engine.engine import Engine
from aurify.engine.weights import Weights
from aurify.errors import UserError
from aurify.samplers.continuous import Continuous, Drawn
from aurify.samplers.recurrent import SameLength
from aurify.samplers.request import Request, Sequence
from aurify.samplers.step import choose_step, prepare_layouts
from aurify.types import Completion, SamplingParams


class Decoder(Protocol):
    """What advances the sequences in flight."""

    active: list[Sequence]

    def admit(self, waiting: deque[Sequence]) -> list[Sequence]:
        """Those of `waiting` that fit now. UserError: the first one never will."""
        ...

    def begin(self, admitted: list[Sequence]) -> Drawn: ...

    def advance(self) -> Drawn: ...

    def remove(self) -> None:
        """Lets go of sequences that have a `finish`."""
        ...

    def release(self) -> None:
        """Nothing is in flight, or nothing is to be: gives memory back."""
        ...

    def close(self) -> None: ...


class InProcessSampler:
    """Samples from an engine's model. `max_batch` sequences are in flight at once; more callers wait.

    max_context: prompt and completion together, at most the model's own limit. cache_bytes: for keys and values; by
    default half of the card's memory that is free at first use, on a CPU a quarter of the machine's. They are taken
    while there is something to sample, and given back then."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_batch: int = 64,
        max_context: int | None = None,
        cache_bytes: int | None = None,
        seed: int = 0,
    ) -> None:
        if max_batch < 1:
            raise UserError(f"sampler.max_batch: {max_batch} must be at least 1")
        if engine.head is None:
            raise UserError(f"{engine.name} has a scalar head (a reward model): there are no tokens to sample from it")
        self.engine, self.max_batch, self.version = engine, max_batch, engine.version
        self.max_context = min(max_context or engine.max_context, engine.max_context)
        self.cache_bytes = cache_bytes
        self.decoder: Decoder | None = None  # see `prepare`
        self.stop_tokens = end_tokens(engine)
        self.seeds = np.random.default_rng(seed)  # for requests without a seed
        self.arriving: list[Sequence] = []  # of the callers of this moment; see `_hand_over`
        self.waiting: deque[Sequence] = deque()
        self.wakeup = threading.Condition()
        self.closed = False
        self.thread: threading.Thread | None = None

    async def sample(
        self,
        prompt: list[int],
        params: SamplingParams,
        n: int = 1,
        *,
        on_token: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """on_token: called with each token of a single completion as soon as it is drawn."""
        assert on_token is None or n == 1
        room = self.max_context - len(prompt)
        if not prompt or room < 1:
            raise UserError(
                f"the prompt has {len(prompt)} tokens; the context has room for 1 to {self.max_context - 1}: "
                "shorten the prompt, or raise sampler.max_context if the model allows more"
            )
        loop = asyncio.get_running_loop()
        request = Request(loop, loop.create_future(), n, on_token)
        with self.wakeup:
            if self.closed:
                raise ValueError("this sampler is closed")
            seed = int(self.seeds.integers(2**63)) if params.seed is None else params.seed
            for index in range(n):
                generator = np.random.Generator(np.random.Philox(key=[seed % 2**64, index]))
                limit, stops = min(params.max_tokens, room), self.stop_tokens | set(params.stop_tokens)
                self.arriving.append(Sequence(request, index, prompt, params, limit, stops, generator))
        loop.call_soon(self._hand_over)
        return await request.future

    def _hand_over(self) -> None:
        """Called when the event loop has let everybody ask who is ready to. All of them then start in the same
        batch: a worker that began with the first would batch the others by chance, and the last bits of log-probs,
        which depend on the batch, would differ from run to run."""
        with self.wakeup:
            self.waiting.extend(self.arriving)
            self.arriving = []
            if self.thread is None:
                self.thread = threading.Thread(target=self._work, name="aurify-sampler", daemon=True)
                self.thread.start()
            self.wakeup.notify()

    async def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """The engine's own weights need no copying, only their new version; others are copied into the model."""
        with self.engine.lock, torch.no_grad():
            shared = isinstance(weights, Weights) and weights.engine is self.engine
            if not shared and self.engine.adapter is not None:
                raise UserError(
                    f"the sampler's model {self.engine.name} has an adapter, which stays beside its weights; load "
                    "other weights into a model without one"
                )
            own = {} if shared else dict(self.engine.weights())
            for name, tensor in () if shared else weights:
                if name not in own or own[name].shape != tensor.shape:
                    raise UserError(
                        f"weight {name!r} {list(tensor.shape)} does not fit the sampler's model {self.engine.name}"
                    )
                if own[name].data_ptr() != tensor.data_ptr():
                    own[name].copy_(tensor)
            self.version = version

    async def close(self) -> None:
        with self.wakeup:
            self.closed = True
            self.wakeup.notify()
        if self.thread is not None:
            await asyncio.to_thread(self.thread.join)
        if self.decoder is not None:
            self.decoder.close()
            self.decoder = None

    @torch.no_grad()
    def prepare(self) -> Decoder:
        """Finds out, once, how the model is decoded; the first request would do it otherwise."""
        with self.engine.lock:
            if self.decoder is None:
                layouts = prepare_layouts(self.engine)
                if layouts is None:
                    self.decoder = SameLength(self.engine, self.max_batch)
                else:
                    step = choose_step(self.engine, *layouts)
                    self.decoder = Continuous(self.engine, *layouts, step, self.max_batch, self.cache_bytes)
            return self.decoder

    # ------------------------------------------------------------------ the worker thread

    def _work(self) -> None:
        if self.engine.device.type == "cuda":
            torch.cuda.set_device(self.engine.device)  # each thread has a current card of its own
        while True:
            with self.wakeup:
                while not (self.waiting or self.closed or (self.decoder is not None and self.decoder.active)):
                    self.wakeup.wait()
                if self.closed:
                    return
            try:
                with self.engine.lock, torch.no_grad():
                    self._step(self.prepare())
            except BaseException as error:
                with self.wakeup:
                    failed = {sequence.request for sequence in self.waiting}
                    self.waiting = deque()
                if self.decoder is not None:
                    failed |= {sequence.request for sequence in self.decoder.active}
                    self.decoder.release()
                for request in failed:
                    request.fail(error)

    def _step(self, decoder: Decoder) -> None:
        """Admits what fits and gives every sequence in flight its next tokens."""
        self._drop_cancelled(decoder)
        admitted = self._admit(decoder)
        if admitted:
            self._extend(decoder, decoder.begin(admitted))
        if decoder.active:
            self._extend(decoder, decoder.advance())

    def _drop_cancelled(self, decoder: Decoder) -> None:
        with self.wakeup:
            self.waiting = deque(s for s in self.waiting if not s.request.future.cancelled())
        for sequence in decoder.active:
            if sequence.request.future.cancelled():
                sequence.finish = "length"
        self._retire(decoder)

    def _admit(self, decoder: Decoder) -> list[Sequence]:
        with self.wakeup:
            while True:
                try:
                    return decoder.admit(self.waiting)
                except UserError as error:
                    refused = self.waiting[0].request
                    self.waiting = deque(s for s in self.waiting if s.request is not refused)
                    refused.fail(error)

    def _extend(self, decoder: Decoder, drawn: Drawn) -> None:
        for sequence, tokens, logprobs in drawn:
            sequence.extend(tokens, logprobs, self.version, self.engine.tokenizer)
        self._retire(decoder)

    def _retire(self, decoder: Decoder) -> None:
        """Hands over finished sequences. Before the last of them, memory is given back: the caller may train next."""
        finished = [sequence for sequence in decoder.active if sequence.finish is not None]
        if not finished:
            return
        decoder.remove()
        with self.wakeup:
            idle = not (decoder.active or self.waiting)
        if idle:
            decoder.release()
        for sequence in finished:
            if sequence.hand_over():
                sequence.request.succeed()


def end_tokens(engine: Engine) -> frozenset[int]:
    """Ids that end a completion: those of the generation config and of the tokenizer."""
    generation = getattr(engine.module, "generation_config", None)
    found = [
        getattr(generation, "eos_token_id", None),
        engine.module.config.eos_token_id,
        engine.tokenizer.eos_token_id,
    ]
    return frozenset(i for ids in found for i in (ids if isinstance(ids, list) else [ids]) if i is not None)
