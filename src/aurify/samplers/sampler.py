"""What generates: a sampler turns a prompt (token ids) into completions (token ids with log-probs). It is
asynchronous, takes many callers at once and batches them itself. The weight version travels with every token."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from aurify.types import Completion, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

# Requests that wait are admitted in this order, not in that of their arrival. The order belongs to the asyncio task
# that asks, so a sampler that batches nothing need not know of it.
request_order: ContextVar[tuple[int, ...]] = ContextVar("request_order", default=())


class Session:
    """A conversation. Requests made inside `with session:` are its turns, one after the other. A sampler may keep here
    what it has computed, so that a turn costs only what is new in it; it may as well not know of sessions."""

    def __init__(self) -> None:
        self.kept: dict[object, Any] = {}  # by who keeps it
        self.closed = False

    def __enter__(self) -> None:
        current_session.set(self)

    def __exit__(self, *error: object) -> None:
        current_session.set(None)

    def keep(self, owner: object, kept: Any) -> None:
        self.kept[owner] = kept
        if self.closed:  # meanwhile, by another thread
            self.kept.clear()

    def close(self) -> None:
        """No turn follows: gives memory back at once."""
        self.closed = True
        self.kept.clear()


# Belongs to the asyncio task that asks, as the order does.
current_session: ContextVar[Session | None] = ContextVar("current_session", default=None)


class Sampler(Protocol):
    version: int

    async def sample(self, prompt: list[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        """n completions of one prompt. The same request with the same seed gives the same tokens."""
        ...

    async def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes new weights. Tokens sampled from now on carry `version`."""
        ...

    async def rest(self) -> None:
        """No request follows before the next `load_weights`: until then, memory belongs to training."""
        ...

    async def close(self) -> None: ...


class StreamingSampler(Sampler, Protocol):
    """What `open_sampler` opens: it also knows its context, and tells each token of a single completion at once."""

    max_context: int

    async def sample(
        self,
        prompt: list[int],
        params: SamplingParams,
        n: int = 1,
        *,
        on_token: Callable[[int], None] | None = None,
    ) -> list[Completion]: ...
