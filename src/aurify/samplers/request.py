"""What callers ask of the in-process sampler, and the sequences that answer it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from aurify.samplers.sampler import Session
from aurify.types import Completion, SamplingParams


@dataclass(eq=False)
class Request:
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[list[Completion]]
    left: int  # completions still to come
    on_token: Callable[[int], None] | None = None
    order: tuple[int, ...] = ()
    session: Session | None = None  # of which it is a turn
    results: dict[int, Completion] = field(default_factory=dict)
    failed: bool = False

    @property
    def over(self) -> bool:
        """It failed, or its caller gave up: nobody waits for it."""
        return self.failed or self.future.cancelled()

    def succeed(self) -> None:
        completions = [self.results[index] for index in sorted(self.results)]
        self._call(lambda: self.future.set_result(completions))

    def fail(self, error: BaseException) -> None:
        self.failed = True
        self._call(lambda: self.future.set_exception(error))

    def tell(self, token: int) -> None:
        on_token = self.on_token
        if on_token is not None:
            self._call(lambda: on_token(token))

    def _call(self, function: Callable[[], None]) -> None:
        """Calls in the caller's event loop, unless the caller gave up or the loop is closed."""

        def unless_done() -> None:
            if not self.future.done():
                function()

        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(unless_done)


@dataclass(eq=False)
class Sequence:
    """One completion in the making."""

    request: Request
    index: int
    prompt: list[int]
    params: SamplingParams
    max_tokens: int  # of the request, or what the context has room for
    stop_tokens: frozenset[int]  # of the request and of the model
    generator: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None

    def __post_init__(self) -> None:
        self.start: Any = self.generator.bit_generator.state

    @property
    def length(self) -> int:
        """Tokens in the cache: the last one sampled is not in it yet."""
        return len(self.prompt) + len(self.tokens) - 1

    @property
    def max_length(self) -> int:
        """Positions of the cache that it may need."""
        return len(self.prompt) + self.max_tokens - 1

    def extend(self, tokens: list[int], logprobs: list[float], version: int, tokenizer: Any) -> None:
        """Takes new tokens, up to the one that ends it."""
        for token, logprob in zip(tokens, logprobs, strict=True):
            self.tokens.append(token)
            self.logprobs.append(logprob)
            self.versions.append(version)
            self.request.tell(token)
            if token in self.stop_tokens or self.ends_with_stop(tokenizer):
                self.finish = "stop"
            elif len(self.tokens) >= self.max_tokens:
                self.finish = "length"
            if self.finish is not None:
                return

    def ends_with_stop(self, tokenizer: Any) -> bool:
        """Whether the text so far contains a stop string, which may begin before the last token."""
        if not self.params.stop:
            return False
        tail = tokenizer.decode(self.tokens[-max(map(len, self.params.stop)) - 8 :])
        return any(text in tail for text in self.params.stop)

    def restart(self) -> None:
        """Begins the random numbers again, after no token was drawn."""
        self.generator.bit_generator.state = self.start

    def hand_over(self) -> bool:
        """Puts the completion among the request's results. True when the request has all of them."""
        finish = self.finish or "length"
        self.request.results[self.index] = Completion(self.tokens, self.logprobs, finish, self.versions)
        self.request.left -= 1
        return self.request.left == 0
