"""The embedded sampler: generates with the engine's own weights, no copy and no sync, on a CPU or a GPU, while
training goes on.

This file is its asynchronous side: requests, the thread that works on them, and their results. Tokens are drawn in
`continuous.py`, and for models that cannot do that in `recurrent.py`.

What is equal from run to run: the same request with the same seed draws with the same random numbers, whatever runs
beside it. The last bits of log-probs depend on the batch. Requests made at the same moment begin in the same batch, in
the order of `request_order`, so answers to plain questions (`SingleTurn`) are equal to the bit on the same machine with
the same options. After an environment has answered, its time decides which step the next request joins. Then log-probs
agree to rounding, and so do the tokens, unless a random number falls between two roundings of the same probability.
With `rollouts.in_rounds` (environments/rounds.py) these are equal to the bit too, for environments that answer within
the patience of `sessions.py`.

Every request ends, with its completions or with the error: see `_recover`."""

from __future__ import annotations

import asyncio
import logging
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
from aurify.models.embeddings import check_embedding_ids
from aurify.samplers.continuous import Continuous, Drawn
from aurify.samplers.recurrent import SameLength
from aurify.samplers.request import Request, Sequence
from aurify.samplers.sampler import current_session, request_order
from aurify.samplers.step import choose_decode_step, prepare_layouts
from aurify.types import Completion, SamplingParams

log = logging.getLogger("aurify")

CLOSED = "this sampler is closed"


class Decoder(Protocol):
    """What advances the sequences in flight."""

    active: list[Sequence]

    def admit(self, waiting: deque[Sequence]) -> list[Sequence]:
        """Takes those of `waiting` that fit now. UserError: the first one never will."""
        ...

    def begin(self, admitted: list[Sequence]) -> Drawn: ...

    def take_back(self, admitted: list[Sequence]) -> bool:
        """After a `begin` that failed: undoes the admission. False: the other sequences are lost too."""
        ...

    def advance(self) -> Drawn: ...

    def remove(self) -> None:
        """Lets go of sequences that have a `finish`."""
        ...

    def expire(self) -> float | None:
        """Gives up what it keeps of conversations that have waited long. Seconds until there is something to give up
        again; None: it keeps nothing."""
        ...

    def forget(self) -> None:
        """The weights have changed: what is kept of conversations holds no more."""

    def release(self) -> None:
        """Lets go of everything in flight and gives memory back."""
        ...

    def close(self) -> None: ...


class InProcessSampler:
    """Samples from an engine's model. `max_batch` sequences are in flight at once; more callers wait.

    max_context: prompt and completion together, at most the model's own limit. cache_bytes: for keys and values; by
    default half of the card's memory that is free at first use, on a CPU a quarter of the machine's. They are taken
    while there is something to sample."""

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
        self.weights = (self.version, engine.version)  # with which the last step was made
        self.stop_tokens = find_stop_tokens(engine)
        self.seeds = np.random.default_rng(seed)  # for requests without a seed
        self.arriving: list[Sequence] = []  # of the callers of this moment; see `_hand_over`
        self.waiting: deque[Sequence] = deque()
        self.beginning: list[Sequence] = []  # admitted, and their prompts not computed yet
        self.doubtful: set[Request] = set()  # a prefill of several failed: each is tried alone
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
        check_embedding_ids(prompt, self.engine.vocabulary, f"{self.engine.name}: the prompt")
        loop = asyncio.get_running_loop()
        session = current_session.get() if n == 1 else None
        request = Request(loop, loop.create_future(), n, on_token, request_order.get(), session)
        with self.wakeup:
            if self.closed:
                raise ValueError(CLOSED)
            seed = int(self.seeds.integers(2**63)) if params.seed is None else params.seed
            for index in range(n):
                generator = np.random.Generator(np.random.Philox(key=[seed % 2**64, index]))
                limit, stops = min(params.max_tokens, room), self.stop_tokens | set(params.stop_tokens)
                self.arriving.append(Sequence(request, index, prompt, params, limit, stops, generator))
        loop.call_soon(self._hand_over)
        return await request.future

    def _hand_over(self) -> None:
        """Called once all tasks that are ready have asked. Then all requests start in the same batch. If the worker
        began with the first, chance would batch the others, and the last bits of log-probs, which depend on the batch,
        would differ from run to run."""
        with self.wakeup:
            if not self.arriving or self.closed:
                return
            together = sorted([*self.waiting, *self.arriving], key=lambda sequence: sequence.request.order)
            self.waiting, self.arriving = deque(together), []
            if self.thread is None:
                self.thread = threading.Thread(target=self._work, name="aurify-sampler", daemon=True)
                self.thread.start()
            self.wakeup.notify()

    async def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes the new version of the engine's own weights; others are copied into the model."""
        with self.engine.lock, torch.no_grad():
            shared = isinstance(weights, Weights) and weights.module is self.engine.module
            if not shared and self.engine.quantized is not None:
                raise UserError(f"the sampler's model {self.engine.name} is quantised; load them into a whole one")
            if not shared and self.engine.adapter is not None:
                raise UserError(
                    f"the sampler's model {self.engine.name} has an adapter, which would be added to them; load other "
                    "weights into a model without one"
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

    async def rest(self) -> None:
        """It shares the engine's weights: there is nothing to put away."""

    async def close(self) -> None:
        """Requests that still wait get an error."""
        with self.wakeup:
            self.closed = True
            self.wakeup.notify()
        if self.thread is not None:
            await asyncio.to_thread(self.thread.join)
        self._fail(self._unfinished(), ValueError(CLOSED))
        if self.decoder is not None:
            self.decoder.close()
            self.decoder = None

    @torch.no_grad()
    def prepare(self) -> Decoder:
        """Finds out, once, how the model is decoded. Otherwise the first request does it."""
        with self.engine.lock:
            if self.decoder is None:
                layouts = prepare_layouts(self.engine)
                if layouts is None:
                    self.decoder = SameLength(self.engine, self.max_batch)
                else:
                    step = choose_decode_step(self.engine, *layouts)
                    self.decoder = Continuous(self.engine, *layouts, step, self.max_batch, self.cache_bytes)
            return self.decoder

    # ------------------------------------------------------------------ the worker thread

    def _work(self) -> None:
        if self.engine.device.type == "cuda":
            torch.cuda.set_device(self.engine.device)  # each thread has a current card of its own
        while True:
            with self.wakeup:
                while not (self.waiting or self.closed or (self.decoder is not None and self.decoder.active)):
                    self.wakeup.wait(self.decoder.expire() if self.decoder is not None else None)
                if self.closed:
                    return
            try:
                with self.engine.lock, torch.no_grad():
                    self._step(self.prepare())
            except BaseException as error:
                self._recover(error)

    def _step(self, decoder: Decoder) -> None:
        """Admits what fits and gives every sequence in flight its next tokens."""
        if self.weights != (self.version, self.engine.version):
            self.weights = (self.version, self.engine.version)
            decoder.forget()
        self._drop_ended(decoder)
        self.beginning = self._admit(decoder)
        if self.beginning:
            drawn = decoder.begin(self.beginning)
            self.doubtful -= {sequence.request for sequence in self.beginning}
            self.beginning = []
            self._extend(decoder, drawn)
        if decoder.active:
            self._extend(decoder, decoder.advance())
        with self.wakeup:
            idle = not (decoder.active or self.waiting)
        if idle:  # those who waited gave up
            decoder.release()

    def _drop_ended(self, decoder: Decoder) -> None:
        """Sequences of requests that failed, or whose caller gave up."""
        with self.wakeup:
            self.waiting = deque(s for s in self.waiting if not s.request.over)
        for sequence in decoder.active:
            if sequence.request.over:
                sequence.finish = "length"
        self._retire(decoder)

    def _admit(self, decoder: Decoder) -> list[Sequence]:
        with self.wakeup:
            while self.waiting:
                first = self.waiting[0].request
                alone = first in self.doubtful
                chosen = deque(s for s in self.waiting if not alone or s.request is first)
                others = [s for s in self.waiting if alone and s.request is not first]
                try:
                    admitted = decoder.admit(chosen)
                    self.waiting = deque([*chosen, *others])
                    return admitted
                except Exception as error:  # the first one never fits, or it is the only one that can be blamed
                    self.waiting = deque(s for s in self.waiting if s.request is not first)
                    self._fail([first], error)
        return []

    def _extend(self, decoder: Decoder, drawn: Drawn) -> None:
        for sequence, tokens, logprobs in drawn:
            try:
                sequence.extend(tokens, logprobs, self.version, self.engine.tokenizer)
            except Exception as error:  # its stop strings cannot be searched for, say: this concerns it alone
                sequence.request.fail(error)
                sequence.finish = "length"
        self._retire(decoder)

    def _retire(self, decoder: Decoder) -> None:
        """Hands over finished sequences. Memory is given back before the last of them: the caller may train next."""
        finished = [sequence for sequence in decoder.active if sequence.finish is not None]
        if not finished:
            return
        try:
            decoder.remove()
            with self.wakeup:
                idle = not (decoder.active or self.waiting)
            if idle:
                decoder.release()
        finally:  # these have all their tokens, even if the others are lost
            for sequence in finished:
                if sequence.hand_over() and not sequence.request.failed:
                    sequence.request.succeed()

    def _recover(self, error: BaseException) -> None:
        """After an exception in a step: the requests that it concerns get it, and the others go on.

        A prefill concerns the requests whose prompts were computed. If they were several, each is tried again alone. A
        decoding step concerns all that are in flight, since nothing tells them apart. If the model cannot be decoded
        at all, it concerns every request."""
        decoder, beginning = self.decoder, self.beginning
        self.beginning = []
        if decoder is None:
            self._fail(self._unfinished(), error)
            return
        if beginning and self._undo(decoder, beginning):
            requests = {sequence.request for sequence in beginning}
            if len(requests) == 1:
                self._fail(requests, error)
            else:
                self.doubtful |= requests
                with self.wakeup:
                    self.waiting.extendleft(reversed(beginning))
            return
        in_flight = [sequence for sequence in (*decoder.active, *beginning) if sequence.finish is None]
        self._fail({sequence.request for sequence in in_flight}, error)
        try:
            with self.engine.lock:
                decoder.release()
        except BaseException:  # the next step makes a new one
            log.warning("the sampler starts anew after an error", exc_info=True)
            self.decoder = None

    def _undo(self, decoder: Decoder, beginning: list[Sequence]) -> bool:
        """Takes back sequences whose prompts could not be computed. False: those in flight are lost as well."""
        try:
            with self.engine.lock, torch.no_grad():
                return decoder.take_back(beginning)
        except BaseException:
            return False

    def _unfinished(self) -> set[Request]:
        with self.wakeup:
            sequences = [*self.arriving, *self.waiting, *self.beginning]
            self.arriving, self.waiting, self.beginning = [], deque(), []
        return {sequence.request for sequence in (*sequences, *(self.decoder.active if self.decoder else ()))}

    def _fail(self, requests: Iterable[Request], error: BaseException) -> None:
        for request in requests:
            self.doubtful.discard(request)
            request.fail(error)


def find_stop_tokens(engine: Engine) -> frozenset[int]:
    """Ids that end a completion: those of the generation config and of the tokenizer."""
    generation = getattr(engine.module, "generation_config", None)
    found = [
        getattr(generation, "eos_token_id", None),
        engine.module.config.eos_token_id,
        engine.tokenizer.eos_token_id,
    ]
    return frozenset(i for ids in found for i in (ids if isinstance(ids, list) else [ids]) if i is not None)
