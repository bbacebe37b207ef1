"""A sampler with canned replies, for tests that need no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from aurify.types import Completion, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

Reply = str | list[int]  # text, or exact token ids


class ScriptedSampler:
    """replies: taken in turn, and from the start again when used up; or a function of the prompt's token ids.

    A text is encoded and closed with the end token, or cut after a stop string, as a model would; log-probs are
    -1."""

    def __init__(self, replies: Sequence[Reply] | Callable[[list[int]], Reply], tokenizer: Any) -> None:
        self.replies, self.tokenizer, self.version = replies, tokenizer, 0
        self.prompts: list[list[int]] = []  # what it was asked, in order

    async def sample(
        self,
        prompt: list[int],
        params: SamplingParams,
        n: int = 1,
        *,
        on_token: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        completions = [self._complete(prompt, params) for _ in range(n)]
        if on_token is not None:
            for token in completions[0].tokens:
                on_token(token)
        return completions

    def _complete(self, prompt: list[int], params: SamplingParams) -> Completion:
        reply = self.replies(prompt) if callable(self.replies) else self.replies[len(self.prompts) % len(self.replies)]
        self.prompts.append(list(prompt))
        stopped = False
        if isinstance(reply, str):
            ends = [reply.index(stop) + len(stop) for stop in params.stop if stop in reply]
            stopped = bool(ends)
            text = reply[: min(ends)] if ends else reply
            reply = self.tokenizer(text, add_special_tokens=False).input_ids
            reply = reply if stopped else [*reply, self.tokenizer.eos_token_id]
        tokens = reply[: params.max_tokens]
        ended = bool(tokens) and tokens[-1] in (self.tokenizer.eos_token_id, *params.stop_tokens)
        ended |= stopped and len(tokens) == len(reply)
        return Completion(tokens, [-1.0] * len(tokens), "stop" if ended else "length", [self.version] * len(tokens))

    async def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.version = version

    async def rest(self) -> None:
        pass

    async def close(self) -> None:
        pass
