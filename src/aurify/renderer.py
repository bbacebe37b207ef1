"""Between messages and tokens. No other file knows chat templates.

A conversation becomes tokens piece by piece: what the template puts before a reply (the prompt) and the reply itself
are encoded separately, because that is how a sampler sees them. So supervised fine-tuning trains exactly the tokens
that a rollout would have, and after a sampled turn only the template's *delta* is appended: sampled tokens are never
decoded and encoded again."""

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
    "{{ bos_token if bos_token else '' }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}Assistant: {{ message['content'] }}{{ eos_token }}\n"
    "{% else %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
THOUGHTS = ("<think>", "<thinking>", "<thought>", "<reasoning>")  # what some templates open an answer with
TrainOn = Literal["assistant", "last", "marked"]
MARK = "aurify-sampled-reply"  # stands for a reply where only the text around it is wanted
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": MARK, "description": "a", "parameters": {"type": "object", "properties": {}}},
}


class Renderer:
    """Renders with the chat template of a tokenizer from transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if not getattr(tokenizer, "chat_template", None):
            log.warning("the tokenizer has no chat template: a plain 'User: ... Assistant: ...' one is used")
            tokenizer.chat_template = DEFAULT_TEMPLATE

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Everything up to the place where the assistant begins to write."""
        return self._encode(self._text(messages, tools, generate=True))

    def conversation(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        train: TrainOn = "assistant",
    ) -> tuple[list[int], list[float]]:
        """Tokens and their weights: 1 on what the assistant writes, its end token included, 0 elsewhere. A message may
        have a `weight` of its own; one with 0 is context.

        "last": everything before the last reply is its prompt. "marked": only messages that have a weight are trained.
        What follows the last trained reply is left out, and a greeting that nothing comes before is context."""
        otherwise = 0.0 if train == "marked" else 1.0
        said_by_assistant = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i > 0]
        turns = [i for i in said_by_assistant if messages[i].get("weight", otherwise) > 0]
        if not turns:
            reason = " that has a weight above 0" if said_by_assistant else ""
            raise UserError(f"no assistant message to train on{reason} in {outline(messages)}")
        self._check_tools(messages, tools)
        tokens: list[int] = []
        weights: list[float] = []
        written = ""  # what the tokens so far say
        for i in turns[-1:] if train == "last" else turns:
            before = self._text(messages[:i], tools, generate=True)
            if not before.startswith(written):
                raise UserError(
                    f"the chat template rewrites earlier turns of {outline(messages)}, so they cannot all be trained "
                    "at once; set train_on: last"
                )
            said = self._said(before, messages[: i + 1], tools)
            context = self._encode(before[len(written) :], continued=bool(written))
            reply = [*self._encode(said, continued=True), self.end_token]
            tokens += context + reply
            weights += [0.0] * len(context) + [messages[i].get("weight", 1.0)] * len(reply)
            written = before + said + self._end_text
        return tokens, weights

    def text(self, text: str) -> tuple[list[int], list[float]]:
        """Plain text, as a base model reads it: every token is trained but the first, and the end token closes it."""
        tokens = list(self.tokenizer(text).input_ids)
        if tokens[-1:] != [self.tokenizer.eos_token_id]:
            tokens.append(self.tokenizer.eos_token_id)
        return tokens, [0.0, *[1.0] * (len(tokens) - 1)]

    def delta(
        self,
        before: Sequence[Message],
        reply_tokens: Sequence[int],
        new_messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
    ) -> list[int]:
        """What the template puts after a sampled turn: its end (unless the policy sampled it), `new_messages`, and the
        opening of the next assistant turn."""
        reply: Message = {"role": "assistant", "content": MARK}
        text = self._text([*before, reply, *new_messages], tools, generate=True)
        following = text.rpartition(MARK)[2]
        if self._end_text:
            following = following.partition(self._end_text)[2]
        ended = bool(reply_tokens) and reply_tokens[-1] in self.stop_tokens
        return ([] if ended else [self.end_token]) + self._encode(following, continued=True)

    def reply(self, prompt: Sequence[int], text: str) -> list[int]:
        """An answer that somebody else wrote, as a policy would sample it after `prompt`: its own text, which no
        template rewrites, and the end token. A thought that the prompt opens already is not opened once more."""
        opened = self.tokenizer.decode(list(prompt)[-16:])
        for tag in THOUGHTS:
            if opened.rstrip().endswith(tag) and text.lstrip().startswith(tag):
                text = text.lstrip()[len(tag) :]
                text = text if opened.endswith(tag) else text.lstrip("\n")
        closed = text.rstrip()
        if self._end_text and closed.endswith(self._end_text):
            text = closed.removesuffix(self._end_text)
        return [*self._encode(text, continued=True), self.end_token]

    def parse(self, tokens: Sequence[int]) -> Message:
        """The assistant message that these sampled tokens say, without special tokens."""
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return {"role": "assistant", "content": text}

    def describe(self, tokens: Sequence[int]) -> str:
        """The text of tokens for an error, shortened in the middle."""
        text = self.tokenizer.decode(list(tokens))
        return repr(text if len(text) < 200 else text[:120] + " ... " + text[-60:])

    @cached_property
    def end_token(self) -> int:
        """What closes an assistant turn. Where the template writes nothing that could, the model's own end token."""
        end = self.tokenizer.convert_tokens_to_ids(self._end_text) if self._end_text else self.tokenizer.eos_token_id
        return int(end)

    @cached_property
    def stop_tokens(self) -> frozenset[int]:
        """Ids that end an assistant turn: that of the template and the model's own end token."""
        return frozenset({self.end_token, self.tokenizer.eos_token_id})

    @cached_property
    def _closing(self) -> str:
        """What the template writes after the content of an assistant turn, such as an end token and a newline."""
        probe: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}]
        return self._text(probe).rpartition(MARK)[2]

    @cached_property
    def _end_text(self) -> str:
        """The end token of a turn as text; "" where the template writes none."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        special = {*self.tokenizer.all_special_ids, *(token for token, entry in added.items() if entry.special)}
        found = [token for token in self._encode(self._closing) if token in special]
        return str(self.tokenizer.convert_ids_to_tokens(found[0])) if found else ""

    def _check_tools(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> None:
        """Many templates leave calls and tools out without a word: then a model would learn to say nothing."""
        lost = []
        if tools and not self._writes_tools:
            lost.append("the tools")
        if any(message.get("tool_calls") for message in messages) and not self._writes_calls:
            lost.append("tool calls")
        if lost:
            raise UserError(
                f"the model's chat template leaves out {' and '.join(lost)} of {outline(messages)}; set "
                "data.tools_as_text: true to write them into the text, or take a model whose template knows tools"
            )

    @cached_property
    def _writes_tools(self) -> bool:
        return self._probe([{"role": "user", "content": "a"}], [TOOL])

    @cached_property
    def _writes_calls(self) -> bool:
        call = {"id": "a12345678", "type": "function", "function": {"name": MARK, "arguments": {}}}
        calling: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
        return self._probe([{"role": "user", "content": "a"}, calling], [TOOL])

    def _probe(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> bool:
        try:
            written = self._text(messages, tools)
        except UserError:  # what the template refuses is told for the row itself
            return True
        if messages[-1].get("tool_calls"):
            return written.count(MARK) > self._text(messages[:-1], tools).count(MARK)
        return MARK in written

    def _text(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), *, generate: bool = False
    ) -> str:
        """What the template writes; generate: with the opening of an assistant turn."""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [{key: value for key, value in message.items() if key != "weight"} for message in messages],
                    tools=list(tools) or None,
                    tokenize=False,
                    add_generation_prompt=generate,
                )
            )
        except Exception as error:
            raise UserError(f"the chat template refuses {outline(messages)}: {error}") from error

    def _said(self, before: str, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> str:
        """What the template makes of the last message, an assistant's, between `before` and its end token."""
        after = self._text(messages, tools)
        if not after.startswith(before):  # new replies are opened in another way than old ones, such as with a thought
            if not messages[-1].get("tool_calls"):
                return messages[-1]["content"]
            marked: Message = {"role": "assistant", "content": MARK}
            before = self._text([*messages[:-1], marked], tools).rpartition(MARK)[0]
            if not after.startswith(before):
                raise UserError(f"the chat template opens a tool call in a way of its own in {outline(messages)}")
        said = after[len(before) :]
        return said.rpartition(self._end_text)[0] if self._end_text else said.removesuffix(self._closing)

    def _encode(self, text: str, *, continued: bool = False) -> list[int]:
        """continued: the text follows other tokens, so a tokenizer that puts a space before every text must not."""
        if not text:
            return []
        if continued and self._puts_space:
            return list(self.tokenizer(self.tokenizer.eos_token + text, add_special_tokens=False).input_ids)[1:]
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    @cached_property
    def _puts_space(self) -> bool:
        first = self.tokenizer("a", add_special_tokens=False).input_ids
        later = self.tokenizer(self.tokenizer.eos_token + "a", add_special_tokens=False).input_ids
        return list(first) != list(later)[1:]


def outline(messages: Sequence[Message]) -> str:
    roles = ", ".join(str(message.get("role")) for message in messages)
    return f"a conversation of {len(messages)} messages ({roles})"
