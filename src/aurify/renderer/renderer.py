"""Messages to tokens and back.

A conversation becomes tokens piece by piece: what the template puts before a reply (the prompt) and the reply itself
are encoded separately, because that is how a sampler sees them. So supervised fine-tuning trains exactly the tokens
that a rollout would have. After a sampled turn only the template's *delta* is appended: sampled tokens are never
decoded and encoded again.

What a template would lose or change is refused. `Survey` checks each sequence of roles once, with marks for contents,
and searches the text of a delta for its contents."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from aurify.errors import UserError
from aurify.renderer import folding
from aurify.renderer.foreign import END_TEXTS, Shield, unused_word
from aurify.renderer.survey import Survey
from aurify.renderer.template import (
    CALL_ID,
    DEFAULT_TEMPLATE,
    EARLIER_THOUGHTS,
    ROWS,
    SYSTEM_MOVED,
    THOUGHTS_DROPPED,
    Template,
    describe_roles,
    warn_once,
)
from aurify.thoughts import CLOSINGS, TAGS
from aurify.types import Message

log = logging.getLogger("aurify")

TrainOn = Literal["assistant", "last", "marked"]
History = Literal["template", "sampled"]  # what later turns of a rollout see of earlier ones


class Renderer:
    """Renders with the chat template of a tokenizer from transformers.

    tools_as_text: tools, calls and results are written into system, assistant and user messages, for templates that
    have none. template_options: variables that the template reads, such as enable_thinking."""

    def __init__(
        self, tokenizer: Any, *, tools_as_text: bool = False, template_options: Mapping[str, Any] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        if not getattr(tokenizer, "chat_template", None):
            log.warning("the tokenizer has no chat template: a plain 'User: ... Assistant: ...' one is used")
            tokenizer.chat_template = DEFAULT_TEMPLATE
        self.tools_as_text = tools_as_text
        self.template = Template(tokenizer, template_options or {})
        self.survey = Survey(self.template, self._fold, tools_as_text)

    # ------------------------------------------------------------------ messages to tokens

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Everything before what the assistant writes next."""
        messages = folding.join_turns(messages)
        self.survey.check_messages(messages, tools)
        shield = Shield(self.template.patterns, messages, tools)
        folded, offered = self._fold(shield.hide_messages(messages), shield.hide(list(tools)))
        return self._encode(self.template.text(folded, offered, generate=True), shield)

    def conversation(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        train: TrainOn = "assistant",
    ) -> tuple[list[int], list[float]]:
        """Tokens and their weights: 1 on what the assistant writes, its end token included, 0 elsewhere. A message may
        have a `weight` of its own; one with 0 is context.

        "last": everything before the last reply is its prompt. "marked": only messages that have a weight are trained.
        What follows the last trained reply is left out. A greeting at the very beginning is context."""
        messages = folding.join_turns(messages)
        self.survey.check_messages(messages, tools)
        shield = Shield(self.template.patterns, messages, tools)
        folded, offered = self._fold(shield.hide_messages(messages), shield.hide(list(tools)))
        turns = self._turns(folded, train)
        earlier = (folded[i]["content"] for i in range(turns[-1]) if folded[i]["role"] == "assistant")
        if self.template.drops_thoughts and any("</think>" in content for content in earlier):
            warn_once(EARLIER_THOUGHTS.format(name=self.template.name))
        before = [self.template.text(folded[:i], offered, generate=True) for i in turns]
        tokens: list[int] = []
        weights: list[float] = []
        written = ""
        for number, i in enumerate(turns):
            said = self._said(before[number], folded[: i + 1], offered)
            self._check_thought(before[number], said)
            if number + 1 < len(turns) and not before[number + 1].startswith(before[number] + said):
                said = self._said_earlier(before[number], before[number + 1], folded[i], offered)
            following = before[number][len(written) :]
            if tokens:
                following = self._without_end(following, tokens[-1])
            context = self._encode(following, shield, after=tokens[-1] if tokens else None)
            tokens += context
            weights += [0.0] * len(context)
            for text, weight in folding.split_reply(said, folded[i]):
                piece = self._encode(text, shield, continued=True)
                tokens += piece
                weights += [weight] * len(piece)
            tokens.append(self._end_id(bool(folded[i].get("tool_calls"))))
            weights.append(weight)
            written = before[number] + said
        return tokens, weights

    def text(self, text: str) -> tuple[list[int], list[float]]:
        """Plain text, as a base model reads it: all tokens but the first are trained, and the end token closes it."""
        shield = Shield(self.template.patterns, text)
        first, *others = shield.pieces(shield.hide(text))
        eos = self.tokenizer.eos_token_id
        tokens = list(self.tokenizer(first).input_ids)
        if others and tokens[-1:] == [eos]:
            tokens.pop()
        tokens += self._encode_pieces(others, continued=True)
        if tokens[-1:] != [eos]:
            tokens.append(eos)
        return tokens, [0.0, *[1.0] * (len(tokens) - 1)]

    def delta(
        self,
        before: Sequence[Message],
        reply_tokens: Sequence[int],
        new_messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
    ) -> list[int]:
        """What the template puts after a sampled turn: its end (unless the policy sampled it), `new_messages`, and the
        opening of the next assistant turn. Raises if the template would lose one of the messages, or write earlier
        ones differently: then the sampled tokens would not belong to the conversation."""
        form = self.survey.check_delta(before, new_messages, tools)
        shield = Shield(self.template.patterns, new_messages)
        reply = unused_word("aurifyreply", new_messages)
        hidden = shield.hide_messages(new_messages)
        following = self.survey.following(form, before, hidden, tools, reply)
        span = self.template.find_end(following, call=form.calls)
        self.survey.check_contents(form, before, hidden, tools, following[span[1] if span else 0 :])
        said = self.parse(reply_tokens)
        if self.template.drops_thoughts and not self.survey.extends(before, said, new_messages, tools):
            warn_once(THOUGHTS_DROPPED.format(name=self.template.name))
        last = reply_tokens[-1] if reply_tokens else None
        if last is not None and self._is_end(last):
            return self._encode(self._without_end(following, last, call=form.calls), shield, after=last)
        if span:
            return self._encode(following[span[0] :], shield, continued=True)
        return [self.end_token, *self._encode(following, shield, after=self.end_token)]

    def _without_end(self, following: str, last: int | None, *, call: bool = False) -> str:
        """What follows a reply that ended with the token `last`. In templates without end tokens the opening of the
        next message ends a turn; it stays unless it was sampled itself."""
        span = self.template.find_end(following, call=call)
        if span is None:
            return following
        if self.template.openers and last != self.template.control.all[following[slice(*span)]]:
            return following[span[0] :]
        return following[span[1] :]

    def reply(self, prompt: Sequence[int], text: str) -> list[int]:
        """An answer that another model or a person wrote, as a policy would sample it after `prompt`: its own text,
        which no template rewrites, and the end token. A thought that the prompt has opened is not opened twice."""
        text = folding.drop_opening(self.tokenizer.decode(list(prompt)[-16:]), self.strip_end(text))
        shield = Shield(self.template.patterns, text)
        said = self._encode(shield.hide(text, "assistant"), shield, continued=True)
        return [*said, self.end_token]

    def opens_thought(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends with the tag that opens a thought."""
        return self.tokenizer.decode(list(prompt)[-16:]).rstrip().endswith(tuple(CLOSINGS))

    def continuation(self, text: str) -> list[int]:
        """Text that is put as it is into a turn after sampled tokens: no template, and no control tokens."""
        shield = Shield(self.template.patterns, text)
        return self._encode(shield.hide(text, "tool"), shield, continued=True)

    # ------------------------------------------------------------------ tokens to messages

    def parse(self, tokens: Sequence[int]) -> Message:
        """The assistant message of sampled tokens, without what ends the turn. Tokens that open a call, such as
        <|python_tag|>, stay: they are part of what the policy said."""
        kept = [token for token in tokens if token not in self._silent]
        text = self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return {"role": "assistant", "content": text}

    def describe(self, tokens: Sequence[int]) -> str:
        """The text of tokens for an error message, shortened in the middle."""
        text = self.tokenizer.decode(list(tokens))
        return repr(text if len(text) < 200 else text[:120] + " ... " + text[-60:])

    def notes(
        self, messages: Sequence[Message] = (), tools: Sequence[dict[str, Any]] = (), *, history: History | None = None
    ) -> list[str]:
        """For the user: what is done to messages so that the template can write them, and what it does itself. history:
        of rollouts of several turns."""
        said = []
        if self.tools_as_text:
            said.append("tools, calls and results are written into the text (tools_as_text)")
        systems = (tools and self.tools_as_text) or any(message["role"] == "system" for message in messages)
        if systems and not self.template.keeps_system:
            said.append(SYSTEM_MOVED.format(name=self.template.name))
        if history and self.template.drops_thoughts:
            said.append((ROWS if history == "template" else THOUGHTS_DROPPED).format(name=self.template.name))
        return said

    def check_turns(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> None:
        """Raises if no result of a tool could follow a conversation that begins like this."""
        if tools:
            name = str(tools[0].get("function", tools[0])["name"])
            result: Message = {"role": "tool", "content": "a", "tool_call_id": CALL_ID, "name": name}
            self.delta(messages, [self.end_token], [result], tools)

    # ------------------------------------------------------------------ beginnings and ends

    def strip_end(self, text: str) -> str:
        """Removes end tokens that close an answer: its turn has its own."""
        ends = (*self.template.ends, *END_TEXTS)
        said = text.rstrip()
        while end := next((end for end in ends if said.endswith(end)), ""):
            if said == end or (end == "</s>" and "<s>" in said):  # the answer consists of it, or is HTML
                return text
            said = said.removesuffix(end).rstrip()
        return text if said == text.rstrip() else said

    def strip_beginning(self, text: str) -> str:
        """Removes the token that begins a text: the tokenizer or the chat template writes it."""
        begin = self.tokenizer.bos_token
        rest = text.removeprefix(begin) if begin and len(begin) > 1 else text
        written_out = self.template.control.pattern.search(self.strip_end(rest))  # a conversation, which needs its own
        return text if written_out else rest

    @cached_property
    def end_token(self) -> int:
        """What closes an assistant turn: the template's end token, or else the model's own."""
        text = self.template.end_text or self.template.openers.get("user", "")
        return self.template.control.all[text] if text else int(self.tokenizer.eos_token_id)

    @cached_property
    def stop_tokens(self) -> frozenset[int]:
        """Ids that end an assistant turn: those of the template and the model's own end token."""
        return frozenset({self.end_token, *self.template.ends.values()})

    def _end_id(self, call: bool) -> int:
        text = (self.template.call_end_text or self.template.openers.get("tool", "")) if call else ""
        return self.template.control.all[text] if text else self.end_token

    def _is_end(self, token: int) -> bool:
        """Also for special tokens that the template does not name, such as another end token of the model."""
        text = self._special_texts.get(token)
        return token in self.stop_tokens or (text is not None and text not in self.template.source)

    @cached_property
    def _special_texts(self) -> dict[int, str]:
        return {token: text for text, token in self.template.control.special.items()}

    @cached_property
    def _silent(self) -> frozenset[int]:
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        ids = {token for name in names if (token := getattr(self.tokenizer, name, None)) is not None}
        return frozenset(ids) | self.stop_tokens

    # ------------------------------------------------------------------ texts

    def _fold(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]
    ) -> tuple[list[Message], list[dict[str, Any]]]:
        """Messages and tools in a form that the template can write."""
        folded, offered, changed = list(messages), list(tools), False
        if self.tools_as_text:
            folded, offered, changed = folding.write_tools_as_text(folded, offered), [], True
        if any(message["role"] == "system" for message in folded) and not self.template.keeps_system:
            folded, changed = folding.move_system_to_user(folded), True
            warn_once(SYSTEM_MOVED.format(name=self.template.name))
        if changed and not self.template.takes_neighbours:
            folded = folding.join_user_messages(folded)
        if self.template.thought_key:
            folded = folding.move_thoughts(folded, self.template.thought_key)
        if any(message.get("tool_calls") for message in folded) and self.template.wants_text_arguments:
            folded = folding.write_arguments_as_text(folded)
        return folded, offered

    def _turns(self, messages: Sequence[Message], train: TrainOn) -> list[int]:
        """The indices of the replies to train."""
        otherwise = 0.0 if train == "marked" else 1.0
        said_by_assistant = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i > 0]
        turns = [i for i in said_by_assistant if messages[i].get("weight", otherwise) > 0]
        if not turns:
            reason = " that has a weight above 0" if said_by_assistant else ""
            raise UserError(f"no assistant message to train on{reason} in {describe_roles(messages)}")
        return turns[-1:] if train == "last" else turns

    def _said(self, before: str, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> str:
        """What the template writes for the last message, an assistant's, between `before` and its end token."""
        after = self.template.text(messages, tools)
        calls = bool(messages[-1].get("tool_calls"))
        if not after.startswith(before):  # a new reply is opened differently from an old one, such as with a thought
            if not calls:
                return folding.drop_opening(before, messages[-1]["content"])
            mark = unused_word("aurifyreply", messages)
            marked: Message = {"role": "assistant", "content": mark}
            before = self.template.text([*messages[:-1], marked], tools).rpartition(mark)[0]
            if not after.startswith(before):
                raise UserError(
                    f"{self.template.name} opens a tool call in a way of its own in {describe_roles(messages)}"
                )
        said = after[len(before) :]
        end = self.template.call_end_text if calls else self.template.end_text
        said = said.rpartition(end)[0] if end else said.removesuffix(self.template.closing)
        content = messages[-1]["content"]
        if str(messages[-1].get(self.template.thought_key) or "") not in said:
            raise UserError(f"{self.template.name} leaves out the thought of {describe_roles(messages)}")
        if all(part.strip() in said for part in TAGS.split(content)):
            return said
        if calls:
            raise UserError(
                f"{self.template.name} leaves out thoughts beside a tool call in {describe_roles(messages)}"
            )
        return folding.drop_opening(before, content)  # it drops thoughts; the policy writes them all the same

    def _check_thought(self, before: str, said: str) -> None:
        opened = next((tag for tag in CLOSINGS if before.rstrip().endswith(tag)), "")
        if opened and CLOSINGS[opened] not in said:
            raise UserError(
                f"{self.template.name} opens a thought ({opened}) before each reply, and {said.strip()[:60]!r} has "
                "none: it would be trained as a thought. Give the thought (reasoning_content, or text between the "
                "tags), or an empty one"
            )

    def _said_earlier(self, before: str, later: str, message: Message, tools: Sequence[dict[str, Any]]) -> str:
        """What the template writes for a reply once the conversation has gone on, if it writes the last one
        differently: Qwen3 puts an empty thought before the last reply alone. All that was said must be there."""
        following = later[len(before) :] if later.startswith(before) else ""
        span = self.template.find_end(following, call=True)
        said = following[: span[0]] if span else ""
        parts = [message["content"].strip(), *(call["function"]["name"] for call in message.get("tool_calls") or ())]
        parts.append(str(message.get(self.template.thought_key) or ""))
        if not said or not all(part in said for part in parts):
            moved = ", or tools_as_text: true if it is the tools that it moves" if tools else ""
            raise UserError(
                f"{self.template.name} rewrites earlier turns, such as {message['content'][:60]!r}, so that they "
                f"cannot all be trained at once; set train_on: last{moved}"
            )
        return said

    def _encode(self, text: str, shield: Shield, *, continued: bool = False, after: int | None = None) -> list[int]:
        """continued: the text follows other tokens, so the tokenizer must put no space before it. after: the special
        token that it follows, which may swallow spaces."""
        first, *others = shield.pieces(text)
        if after is not None:
            tokens = self._encode_after(after, first)
        else:
            tokens = self._encode_pieces([first], continued=continued)
        tokens += self._encode_pieces(others, continued=True)
        control = self.template.control
        silent = getattr(self.tokenizer, "unk_token_id", None)
        found = Counter(token for token in tokens if token in control.ids and token != silent)
        found.subtract(control.all[name] for name in control.pattern.findall(text))
        if any(number > 0 for number in found.values()):
            token = next(token for token, number in found.items() if number > 0)
            raise UserError(
                f"{self.template.name}: the tokenizer makes the control token "
                f"{self.tokenizer.convert_ids_to_tokens(token)!r} of a message's text ({text[:80]!r} ...); take it out "
                "of the text"
            )
        return tokens

    def _encode_pieces(self, texts: Sequence[str], *, continued: bool) -> list[int]:
        texts = [text for text in texts if text]
        if continued and self._puts_space:
            return [token for text in texts for token in self._encode_after(self.tokenizer.eos_token_id, text)]
        encoded = self.tokenizer(texts, add_special_tokens=False).input_ids if texts else []
        return [token for tokens in encoded for token in tokens]

    def _encode_after(self, token: int, text: str) -> list[int]:
        before = self.tokenizer.convert_ids_to_tokens(token)
        tokens = list(self.tokenizer(before + text, add_special_tokens=False).input_ids)
        return tokens[1:] if tokens[0] == token else list(self.tokenizer(text, add_special_tokens=False).input_ids)

    @cached_property
    def _puts_space(self) -> bool:
        first = self.tokenizer("a", add_special_tokens=False).input_ids
        later = self.tokenizer(self.tokenizer.eos_token + "a", add_special_tokens=False).input_ids
        return list(first) != list(later)[1:]
