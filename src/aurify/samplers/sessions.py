"""What the sampler keeps of conversations between their turns: keys and values, copied out of the slot that a turn has
left. The next turn takes them back and computes only what is new.

There is one kind of reuse: a conversation goes on. What other requests left behind is never searched, so what a request
computes does not depend on what the sampler did before, and a resumed run samples what the straight one would have."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from aurify.engine.packing import Ints, common_token_prefix
from aurify.samplers.cache import SlotCache
from aurify.samplers.request import Sequence
from aurify.samplers.sampler import Session

PATIENCE = 120.0  # seconds that keys and values wait for the next turn; after that, it computes them again


@dataclass(frozen=True, slots=True)
class Kept:
    tokens: Ints
    copied: Tensor  # keys and values of these tokens; see `SlotCache.copy_out`
    until: float  # on the monotonic clock


class Sessions:
    """Called by the sampler's thread only. A session may be closed in another one at any time."""

    def __init__(self, cache: SlotCache) -> None:
        self.cache = cache
        self.waiting: dict[Session, None] = {}  # those that may have something here, the longest waiting first

    def find(self, session: Session | None) -> Kept | None:
        return None if session is None else session.kept.get(self)

    @property
    def num_bytes(self) -> int:
        found = map(self.find, tuple(self.waiting))
        return sum(len(kept.tokens) for kept in found if kept is not None) * self.cache.token_bytes

    def count_known(self, sequence: Sequence) -> int:
        """How many tokens of a prompt need not be computed. The last one must be: it predicts what follows."""
        kept, prompt = self.find(sequence.request.session), sequence.prompt
        return 0 if kept is None else min(common_token_prefix(kept.tokens, np.asarray(prompt)), len(prompt) - 1)

    def keep(self, sequence: Sequence, slot: int, room: int) -> None:
        """After a turn. room: bytes for all sessions. If there is none left, those that wait already keep theirs: when
        conversations take turns, each would otherwise lose it to the one before it."""
        session, length = sequence.request.session, sequence.length
        if session is None or session.closed:
            return
        self.expire()
        self.give_up(session)
        if self.num_bytes + length * self.cache.token_bytes > room:
            return
        tokens = np.asarray([*sequence.prompt, *sequence.tokens][:length])
        self.waiting[session] = None
        session.keep(self, Kept(tokens, self.cache.copy_out(slot, length), time.monotonic() + PATIENCE))

    def take_back(self, sequence: Sequence, slot: int) -> int:
        """Before a turn: puts what is known of its prompt into its slot, and gives up the copy. How many tokens."""
        length, session = self.count_known(sequence), sequence.request.session
        kept = None if session is None else session.kept.pop(self, None)
        if kept is None or session is None:
            return 0
        self.waiting.pop(session, None)
        self.cache.copy_in(slot, length, kept.copied)
        return length

    def expire(self) -> float | None:
        """Gives up what has waited long. The seconds until the next one has; None: nobody waits."""
        now = time.monotonic()
        for session in tuple(self.waiting):
            kept = self.find(session)
            if kept is not None and kept.until > now:
                return kept.until - now
            self.give_up(session)
        return None

    def clear(self) -> None:
        for session in tuple(self.waiting):
            self.give_up(session)

    def give_up(self, session: Session) -> None:
        self.waiting.pop(session, None)
        session.kept.pop(self, None)
