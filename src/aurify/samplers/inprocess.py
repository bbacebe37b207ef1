"""The embedded sampler: generates with the engine's own weights, no copy and no sync, on a CPU or a GPU, while
training goes on.

Continuous batching: a worker thread keeps the sequences in flight in the first slots of a preallocated cache; each
step samples one token for all of them, finished ones leave at once and waiting ones take their place. Prompts that
wait together are prefilled in one packed row, so a group's prompt, and even a common system prompt, is computed
once."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain, pairwise

import numpy as np
import torch
from torch import Tensor

from aurify.cores import Cores, Item, Result
from aurify.engine.division import Division
from aurify.engine.engine import Engine
from aurify.engine.packing import build_row
from aurify.engine.weights import Weights
from aurify.errors import UserError
from aurify.samplers.cache import Decoding, Prefill, SlotCache
from aurify.samplers.draw import draw
from aurify.samplers.llama import Step, step_of
from aurify.samplers.packed import PackedHead
from aurify.samplers.recurrent import ends_with_stop, generate_plainly
from aurify.types import Completion, SamplingParams

PREFILL_TOKENS = 4096  # of prompts computed at once: bounds their memory
PREFILL_PART = 64  # tokens of prompts for which a core of its own pays
PART = 16  # sequences in a part when all slots are in use
LEAST = 2  # sequences in a part for each part there is: every part reads all weights
Drawn = tuple[int, float]  # a token and its log-prob


@dataclass(eq=False)
class Request:
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[list[Completion]]
    left: int  # completions still to come
    on_token: Callable[[int], None] | None = None
    results: dict[int, Completion] = field(default_factory=dict)


@dataclass(eq=False)
class Sequence:
    """One completion in the making."""

    request: Request
    index: int
    prompt: list[int]
    params: SamplingParams
    max_tokens: int  # of the request, or what the context has room for
    generator: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def tell(self, token: int) -> None:
        """Lets a caller who listens know of a new token, in the caller's event loop."""
        if self.request.on_token is not None:
            self.request.loop.call_soon_threadsafe(heard, self.request, token)

    @property
    def length(self) -> int:
        """Tokens in the cache: the last one sampled is not in it yet."""
        return len(self.prompt) + len(self.tokens) - 1


class InProcessSampler:
    """Samples from an engine's model. `max_batch` sequences are in flight at once; more callers wait.

    max_context: prompt and completion together, at most the model's own limit."""

    def __init__(self, engine: Engine, *, max_batch: int = 64, max_context: int | None = None, seed: int = 0) -> None:
        if max_batch < 1:
            raise UserError(f"sampler.max_batch: {max_batch} must be at least 1")
        self.engine, self.max_batch, self.version = engine, max_batch, engine.version
        self.max_context = min(max_context or engine.max_context, engine.max_context)
        config = engine.module.config.get_text_config()
        num_kv_heads = int(getattr(config, "num_key_value_heads", 0) or getattr(config, "num_attention_heads", 1))
        embedding = engine.module.get_input_embeddings().weight
        self.cache = SlotCache(max_batch, num_kv_heads, embedding.device, embedding.dtype)
        self.step: Step | None = None  # checked against the model when it is first needed
        self.cores: Cores | None = None  # made when there is enough for several
        most = torch.get_num_threads() if embedding.device.type == "cpu" else 1
        self.parts = max(1, min(most, max_batch // PART))
        self.packed = PackedHead.of(engine.head, max_batch // self.parts)
        self.stop_tokens = end_tokens(engine)
        self.seeds = np.random.default_rng(seed)  # for requests without a seed
        self.arriving: list[Sequence] = []  # of the callers of this moment; see `_hand_over`
        self.waiting: deque[Sequence] = deque()
        self.active: list[Sequence] = []  # sequence k is in slot k
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
                limit = min(params.max_tokens, room)
                self.arriving.append(Sequence(request, index, prompt, params, limit, generator))
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
            own = {} if shared else dict(self.engine.weights())
            for name, tensor in () if shared else weights:
                if name not in own or own[name].shape != tensor.shape:
                    raise UserError(
                        f"weight {name!r} {list(tensor.shape)} does not fit the sampler's model {self.engine.name}"
                    )
                if own[name].data_ptr() != tensor.data_ptr():
                    own[name].copy_(tensor)
            if self.packed is not None:
                self.packed.forget()
            self.version = version

    async def close(self) -> None:
        with self.wakeup:
            self.closed = True
            self.wakeup.notify()
        if self.thread is not None:
            await asyncio.to_thread(self.thread.join)
        if self.cores is not None:
            self.cores.close()
        self.packed = self.step = None

    # ------------------------------------------------------------------ the worker thread

    def _work(self) -> None:
        while True:
            with self.wakeup:
                while not (self.waiting or self.active or self.closed):
                    self.wakeup.wait()
                if self.closed:
                    return
            try:
                with self.engine.lock, self._sampling():
                    self._step()
            except BaseException as error:
                with self.wakeup:
                    failed = {sequence.request for sequence in (*self.active, *self.waiting)}
                    self.active, self.waiting = [], deque()
                for request in failed:
                    request.loop.call_soon_threadsafe(fail, request.future, error)

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        """Holds for this thread alone. An adapter samples through its merged weights, whatever the trainer multiplies
        by."""
        adapter = self.engine.adapter
        with torch.inference_mode(), nullcontext() if adapter is None else adapter.using("adapter"):
            yield

    def _step(self) -> None:
        """Admits what fits and gives every sequence in flight its next token."""
        if not self.engine.body.packs:
            with self.wakeup:
                sequence = self.waiting.popleft()
            self.active = [sequence]
            generate_plainly(self.engine, sequence, self.stop_tokens, self.version)
            self._retire([self._finish(sequence) or "length"])
            return
        self._drop_cancelled()
        admitted = self._admit()
        if admitted:
            self._append(admitted, self._draw(self._prefill(admitted), admitted))
        if self.active:
            self._append(self.active, self._decode())

    def _drop_cancelled(self) -> None:
        with self.wakeup:
            self.waiting = deque(s for s in self.waiting if not s.request.future.cancelled())
        self._retire(["length" if s.request.future.cancelled() else None for s in self.active])

    def _admit(self) -> list[Sequence]:
        admitted: list[Sequence] = []
        prompts: set[tuple[int, ...]] = set()
        size = 0
        with self.wakeup:
            while self.waiting and len(self.active) + len(admitted) < self.max_batch:
                prompt = tuple(self.waiting[0].prompt)
                size += 0 if prompt in prompts else len(prompt)
                if admitted and size > PREFILL_TOKENS:
                    break
                prompts.add(prompt)
                admitted.append(self.waiting.popleft())
        return admitted

    def _prefill(self, admitted: list[Sequence]) -> Tensor:
        """Hidden state at the end of each admitted prompt, [admitted, hidden]; their keys and values go into free
        slots."""
        prompts: dict[tuple[int, ...], list[int]] = {}
        for offset, sequence in enumerate(admitted):
            prompts.setdefault(tuple(sequence.prompt), []).append(len(self.active) + offset)
        self.cache.reserve(max(len(prompt) for prompt in prompts) + 1)
        sequences, slots = [list(prompt) for prompt in prompts], list(prompts.values())
        alone = [[k] for k in range(len(prompts))]
        rows = Division(sequences, alone, True, [0.0] * len(alone)).rows(PREFILL_TOKENS, self.parts, PREFILL_PART)

        def compute(chosen: list[int]) -> list[tuple[tuple[int, ...], Tensor]]:
            row = build_row([sequences[k] for k in chosen], chosen)
            body = self.engine.body
            hidden = body.packed(row, Prefill(row, self.cache, [slots[k] for k in chosen], body.path))
            return [(tuple(sequences[k]), hidden[int(path[-1])]) for k, path in zip(chosen, row.nodes, strict=True)]

        ends = dict(chain.from_iterable(self._side_by_side(compute, rows)))
        self.active += admitted
        return torch.stack([ends[tuple(sequence.prompt)] for sequence in admitted])

    def _decode(self) -> list[Drawn]:
        """The next token of each sequence in flight. Cores share them out, if there are enough."""
        self.cache.reserve(max(sequence.length for sequence in self.active) + 1)
        if self.step is None:
            self.step = step_of(self.engine)
        num = len(self.active)
        parts = self.parts if num >= LEAST * self.parts**2 else 1
        ends = [num * part // parts for part in range(parts + 1)]
        slots = [range(start, stop) for start, stop in pairwise(ends)]
        return list(chain.from_iterable(self._side_by_side(self._decode_part, slots)))

    def _side_by_side(self, function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
        """A core an item; a single one has all of them."""
        if len(items) == 1:
            return [function(items[0])]
        if self.cores is None:
            self.cores = Cores(self.parts, "aurify-sample")

        def compute(item: Item) -> Result:
            with self._sampling():
                return function(item)

        return list(self.cores.map(compute, items))

    def _decode_part(self, slots: range) -> list[Drawn]:
        sequences = self.active[slots.start : slots.stop]
        step = Decoding(self.cache, [sequence.length for sequence in sequences], slots.start)
        tokens = torch.tensor([sequence.tokens[-1] for sequence in sequences], device=self.cache.device)
        assert self.step is not None
        return self._draw(self.step(tokens, step), sequences)

    def _draw(self, hidden: Tensor, sequences: list[Sequence]) -> list[Drawn]:
        head = self.packed or self.engine.head
        logits = head.logits(hidden)  # type: ignore[union-attr]
        params = [sequence.params for sequence in sequences]
        return list(zip(*draw(logits, params, [s.generator.random() for s in sequences]), strict=True))

    def _append(self, sequences: list[Sequence], drawn: list[Drawn]) -> None:
        """Gives each of `sequences` its token and lets finished ones go."""
        for sequence, (token, logprob) in zip(sequences, drawn, strict=True):
            sequence.tokens.append(token)
            sequence.logprobs.append(logprob)
            sequence.versions.append(self.version)
            sequence.tell(token)
        new = set(map(id, sequences))
        self._retire([self._finish(s) if id(s) in new else None for s in self.active])

    def _finish(self, sequence: Sequence) -> str | None:
        token = sequence.tokens[-1]
        if token in self.stop_tokens or token in sequence.params.stop_tokens:
            return "stop"
        if ends_with_stop(self.engine, sequence):
            return "stop"
        return "length" if len(sequence.tokens) >= sequence.max_tokens else None

    def _retire(self, finishes: list[str | None]) -> None:
        """Hands over finished sequences, and closes the gaps with the last ones in flight. finishes: one entry a
        slot."""
        for slot in reversed(range(len(finishes))):
            if finishes[slot] is None:
                continue
            sequence, moved = self.active[slot], self.active.pop()
            if moved is not sequence:
                self.active[slot] = moved
                self.cache.move(len(self.active), slot, moved.length)
            request = sequence.request
            finish = "stop" if finishes[slot] == "stop" else "length"
            request.results[sequence.index] = Completion(sequence.tokens, sequence.logprobs, finish, sequence.versions)  # type: ignore[arg-type]
            request.left -= 1
            if request.left == 0:
                completions = [request.results[index] for index in sorted(request.results)]
                request.loop.call_soon_threadsafe(succeed, request.future, completions)


def end_tokens(engine: Engine) -> frozenset[int]:
    """Ids that end a completion: those of the generation config and of the tokenizer."""
    generation = getattr(engine.module, "generation_config", None)
    found = [
        getattr(generation, "eos_token_id", None),
        engine.module.config.eos_token_id,
        engine.tokenizer.eos_token_id,
    ]
    return frozenset(i for ids in found for i in (ids if isinstance(ids, list) else [ids]) if i is not None)


def heard(request: Request, token: int) -> None:
    if request.on_token is not None and not request.future.done():  # a caller who gave up hears no more
        request.on_token(token)


def succeed(future: asyncio.Future[list[Completion]], completions: list[Completion]) -> None:
    if not future.done():
        future.set_result(completions)


def fail(future: asyncio.Future[list[Completion]], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
