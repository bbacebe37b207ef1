"""Between messages and tokens. No other file knows chat templates.

A conversation becomes tokens piece by piece: what the template puts before a reply (the prompt) and the reply itself are encoded
separately, because that is how a sampler sees them. So supervised fine-tuning trains exactly the tokens that a rollout
would have, and after a sampled turn only the template's *delta* is appended: sampled tokens are never decoded and encoded again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from aurify.errors import UserError
from aurify.types import Message

log = logging.getLogger("aurify")

# for tokenizers that bring none: plain text, so that a base model has seen every piece of it
DEFAULT_TEMPLATE = (
    "{{ bos_token if bos_token else '' }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "Assistant: {{ message['content'] }}{{ eos_token }}\n{% else %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
PROBE: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


class Renderer:
    """Renders with the chat template of a tokenizer from transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if not getattr(tokenizer, "chat_template", None):
            log.warning("the tokenizer has no chat template: a plain 'User: ... Assistant: ...' one is used")
            tokenizer.chat_template = DEFAULT_TEMPLATE

    def text(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), *, generate: bool = False) -> str:
        """What the template writes; generate: with the opening of an assistant turn."""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=generate
                )
            )
        except Exception as error:
            raise UserError(f"the chat template refuses {describe(messages)}: {error}") from error

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids) if text else []

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Everything up to the place where the assistant begins to write."""
        return self.encode(self.text(messages, tools, generate=True))

    def conversation(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        train: Literal["assistant", "last"] = "assistant",
    ) -> tuple[list[int], list[float]]:
        """Tokens and their weights: 1 on what the assistant writes, its end token included, 0 elsewhere."""
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            raise UserError(f"no assistant message to train on in {describe(messages)}")
        tokens: list[int] = []
        weights: list[float] = []
        rendered, done = "", 0  # the conversation up to the last reply, and how many of its characters are encoded
        for i in turns:
            before = self.text(messages[:i], tools, generate=True)
            after = self.text(messages[: i + 1], tools)
            if not after.startswith(before) or not before.startswith(rendered[:done]):
                raise UserError(
                    f"the chat template rewrites earlier turns of {describe(messages)}, so they cannot all be trained at once; "
                    "set train_on: last"
                )
            said = after[len(before) :]
            # what the template writes after the end token belongs to the next piece of context
            end = said.rfind(self.end_text) + len(self.end_text) if self.end_text and self.end_text in said else len(said)
            context, reply = self.encode(before[done:]), self.encode(said[:end])
            if not self.end_text:  # the template closes no turns: the model must learn to stop all the same
                reply.append(self.tokenizer.eos_token_id)
            rendered, done = after, len(before) + end
            tokens += context + reply
            trained = train == "assistant" or i == turns[-1]
            weights += [0.0] * len(context) + [float(trained)] * len(reply)
        return tokens, weights

    def reply(self, text: str, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """The tokens of an assistant turn that says `text` after `messages`, with its end token."""
        tokens, _ = self.conversation([*messages, {"role": "assistant", "content": text}], tools, "last")
        return tokens[len(self.prompt(messages, tools)) :]

    def delta(
        self,
        before: Sequence[Message],
        reply_tokens: Sequence[int],
        new_messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
    ) -> list[int]:
        """What the template puts after a sampled turn: its end (unless the policy sampled it), `new_messages`, and the opening of
        the next assistant turn."""
        said = [*before, self.parse(reply_tokens)]
        previous, following = self.text(said, tools), self.text([*said, *new_messages], tools, generate=True)
        if not following.startswith(previous):  # a template that rewrites earlier turns: its delta is read off a short probe
            previous, following = self.text(PROBE, tools), self.text([*PROBE, *new_messages], tools, generate=True)
        closing = self.closing
        trailing = closing.partition(self.end_text)[2] if self.end_text else closing
        ended = bool(reply_tokens) and reply_tokens[-1] in self.stop_tokens
        return self.encode(("" if ended else self.end_text) + trailing + following[len(previous) :])

    @cached_property
    def closing(self) -> str:
        """What the template writes after the content of an assistant turn, such as an end token and a newline."""
        full, opening = self.text(PROBE), self.text(PROBE[:1], generate=True)
        return full[len(opening) :].partition("b")[2] if full.startswith(opening) else full.rpartition("b")[2]

    @cached_property
    def end_text(self) -> str:
        """The end token of a turn as text; "" where the template writes none."""
        special = set(self.tokenizer.all_special_ids) | {self.tokenizer.eos_token_id}
        found = [token for token in self.encode(self.closing) if token in special or token in self._added]
        return str(self.tokenizer.convert_ids_to_tokens(found[0])) if found else ""

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(getattr(self.tokenizer, "added_tokens_decoder", {}))

    @cached_property
    def stop_tokens(self) -> frozenset[int]:
        """Ids that end an assistant turn: the tokenizer's end token and that of the template."""
        ends = {self.tokenizer.eos_token_id}
        if self.end_text:
            ends.add(self.tokenizer.convert_tokens_to_ids(self.end_text))
        return frozenset(ends)

    def parse(self, tokens: Sequence[int]) -> Message:
        """The assistant message that these sampled tokens say, without its end."""
        kept = list(tokens)
        while kept and kept[-1] in self.stop_tokens:
            kept.pop()
        return {"role": "assistant", "content": self.tokenizer.decode(kept, skip_special_tokens=True)}

    def describe(self, tokens: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(tokens))
        return repr(text if len(text) < 200 else text[:120] + " ... " + text[-60:])


def describe(messages: Sequence[Message]) -> str:
    roles = ", ".join(str(message.get("role")) for message in messages)
    return f"a conversation of {len(messages)} messages ({roles})"
