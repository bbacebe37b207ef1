"""What a chat template does with messages, found out by rendering marked messages and looking where the marks are. No
family of models is known by name here."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any, cast

from aurify.errors import UserError
from aurify.renderer.foreign import THOUGHT_TAGS, ControlTokens, compile_token_pattern
from aurify.types import Message

log = logging.getLogger("aurify")
# for tokenizers without a template: plain text, which a base model has seen
DEFAULT_TEMPLATE = (
    "{{ bos_token if bos_token else '' }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}Assistant: {{ message['content'] }}{{ eos_token }}\n"
    "{% else %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
# what users are told of templates
SYSTEM_MOVED = "{name} has no place of its own for a system prompt: it begins the next user message"
THOUGHTS_DROPPED = (
    "{name} drops the thoughts of earlier turns; in a rollout of several turns they stay, because sampled tokens are "
    "never changed. Whoever serves the model should keep them too"
)
ROWS = (
    "{name} drops the thoughts of earlier turns: where it does, a rollout goes on in a further row, as the template "
    "writes it (rollouts.history: template)"
)
EARLIER_THOUGHTS = (
    "{name} drops the thoughts of earlier replies, so a conversation that is trained has those of its last reply alone"
)
MARK = "aurifymark"  # stands for a content if only the text around it is wanted
FIRST, SECOND = MARK + "0z", MARK + "1z"
CALL_ID = "a12345678"  # some templates accept nine letters and digits only
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": MARK + "tz", "description": "a", "parameters": {"type": "object", "properties": {}}},
}
# ends of a turn that some models sample although their template writes another one, or none
OTHER_ENDS = ("<|eom_id|>",)
FIXED = ("messages", "tools", "add_generation_prompt", "tokenize", "chat_template")  # no template_options


class TemplateRefusal(UserError):
    """The template raises an error for these messages."""


class Template:
    def __init__(self, tokenizer: Any, options: Mapping[str, Any]) -> None:
        self.tokenizer, self.options = tokenizer, dict(options)
        given = tokenizer.chat_template
        self.source: str = "\n".join(given.values()) if isinstance(given, Mapping) else str(given)
        name = str(getattr(tokenizer, "name_or_path", "") or "")
        self.name = f"the chat template of {name}" if name else "the chat template"
        for option in self.options:
            if option in FIXED or not re.search(rf"\b{re.escape(option)}\b", self.source):
                raise UserError(f"template_options: {self.name} reads no {option!r}; leave it out, or look at its text")

    def text(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), *, generate: bool = False) -> str:
        """What the template writes; generate: with the opening of an assistant turn."""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [{key: value for key, value in message.items() if key != "weight"} for message in messages],
                    tools=list(tools) or None,
                    tokenize=False,
                    add_generation_prompt=generate,
                    **self.options,
                )
            )
        except Exception as error:
            raise TemplateRefusal(f"{self.name} refuses {describe_roles(messages)}: {error}") from error

    def writes(self, messages: Sequence[Message], *marks: str, tools: Sequence[dict[str, Any]] = ()) -> bool:
        """Whether it takes the messages, and all marks stand in what it writes."""
        try:
            text = self.text(messages, tools)
        except UserError:
            return False
        return all(mark in text for mark in marks)

    @cached_property
    def keeps_system(self) -> bool:
        """Whether it writes a system prompt, and keeps it in position when the conversation goes on."""
        messages = [{"role": "system", "content": FIRST}, template_user(SECOND)]
        longer = [*messages, {"role": "assistant", "content": "a"}, template_user("b")]
        try:
            texts = [self.text(part, generate=True) for part in (messages, longer)]  # type: ignore[arg-type]
        except UserError:
            return False
        return FIRST in texts[0] and texts[0].partition(SECOND)[:2] == texts[1].partition(SECOND)[:2]

    @cached_property
    def takes_neighbours(self) -> bool:
        """Whether it takes two user messages in a row."""
        return self.writes([template_user(FIRST), template_user(SECOND)], FIRST, SECOND)

    @cached_property
    def wants_text_arguments(self) -> bool:
        """Whether it writes the arguments of a call as they are, and fails for an object."""
        as_object = [template_user("a"), template_call({"a": FIRST})]
        return not self.writes(as_object, tools=[TOOL]) and self.writes(
            [template_user("a"), template_call(FIRST)], FIRST, tools=[TOOL]
        )

    @cached_property
    def drops_thoughts(self) -> bool:
        """Whether it leaves out the thoughts of earlier replies."""
        thought: Message = {"role": "assistant", "content": f"<think>\n{FIRST}\n</think>\n\n{SECOND}"}
        messages = [template_user("a"), thought, template_user("b")]
        return self.writes(messages, SECOND) and not self.writes(messages, FIRST)

    @cached_property
    def thought_key(self) -> str:
        """The key of a message in which it takes thoughts, if it writes them between marks of its own; "" where
        <think> in the content is as good."""
        for key in ("thinking", "reasoning_content"):
            message = cast(Message, {"role": "assistant", "content": SECOND, key: FIRST})
            if self.writes([template_user("a"), message], FIRST, SECOND) and "<think>" not in self.text(
                [template_user("a"), message]
            ):
                return key
        return ""

    # ------------------------------------------------------------------ control tokens

    @cached_property
    def control(self) -> ControlTokens:
        return ControlTokens.of(self.tokenizer, self.source)

    @cached_property
    def patterns(self) -> dict[str, re.Pattern[str]]:
        """What each role may not say. Users and tools: no control token. A system prompt may describe tags of calls
        and thoughts, and an assistant may use those, and special tokens that the template itself writes into replies;
        neither may begin or end a turn."""
        control = self.control
        markers = {*control.markers} - self.frame
        spoken = {text for text in control.special if text in self.source} - self.frame - {*self.ends}
        return {
            "": control.pattern,
            "system": compile_token_pattern({*control.all} - markers),
            "assistant": compile_token_pattern({*control.all} - markers - spoken),
        }

    @cached_property
    def frame(self) -> frozenset[str]:
        """Control tokens around messages."""
        found = {*self._strings("bos_token", "eos_token", "pad_token", "unk_token")}
        probes: list[list[Message]] = [
            [template_user(FIRST)],
            [{"role": "system", "content": "a"}, template_user(FIRST)],
            [
                template_user("a"),
                {"role": "assistant", "content": "b"},
                template_user("c"),
                {"role": "assistant", "content": "d"},
            ],
            [
                template_user("a"),
                {"role": "assistant", "content": "b"},
                {"role": "tool", "content": "c", "tool_call_id": CALL_ID},
            ],
        ]
        for messages in probes:
            try:
                written = self.text(messages, generate=messages[-1]["role"] != "assistant")
            except UserError:
                continue
            found.update(self.control.pattern.findall(written))
        return frozenset(found - THOUGHT_TAGS)

    def _strings(self, *names: str) -> list[str]:
        return [str(text) for name in names if (text := getattr(self.tokenizer, name, None))]

    # ------------------------------------------------------------------ ends of turns

    @cached_property
    def closing(self) -> str:
        """What it writes after the content of an assistant's last message, such as an end token and a newline."""
        return self.text([template_user("a"), {"role": "assistant", "content": FIRST}]).rpartition(FIRST)[2]

    @cached_property
    def end_text(self) -> str:
        """The end token of a turn as text; "" if the template writes none."""
        found = [text for text in self.control.pattern.findall(self.closing) if text not in THOUGHT_TAGS]
        return found[0] if found else ""

    @cached_property
    def call_end_text(self) -> str:
        """What ends a turn that calls a tool; "" if nothing does, or the template has no calls."""
        try:
            written = self.text([template_user("a"), template_call(self._arguments(FIRST))], [TOOL])
        except UserError:
            return self.end_text
        following = written.rpartition(FIRST)[2] if FIRST in written else self.closing
        span = self.find_end(following, call=True)
        return following[slice(*span)] if span else ""

    @cached_property
    def openers(self) -> dict[str, str]:
        """If no token closes a turn, the one that opens the next message does: role of that message -> token."""
        found: dict[str, str] = {}
        if self.end_text:
            return found
        for role in ("user", "tool"):
            after: Message = {"role": role, "content": SECOND}
            try:
                written = self.text([template_user("a"), {"role": "assistant", "content": FIRST}, after])
            except UserError:
                continue
            between = written.rpartition(FIRST)[2].partition(SECOND)[0]
            begins = self.control.pattern.match(between)
            if begins and SECOND in written:
                found[role] = begins[0]
        return found

    @cached_property
    def ends(self) -> dict[str, int]:
        """All tokens that end an assistant turn: those of the template and the model's own."""
        texts = [self.end_text, *self.openers.values(), *self._strings("eos_token")]
        texts += [text for text in (self.call_end_text, *OTHER_ENDS) if text in self.control.special]
        return {text: self.control.all[text] for text in texts if text in self.control.all}

    def find_end(self, following: str, *, call: bool = False) -> tuple[int, int] | None:
        """The span of a turn's end token in what follows its reply. call: the rest of a call may come before it;
        otherwise only spaces may."""
        if self.end_text:
            found = self._known_ends.search(following)
            if found is None or (not call and following[: found.start()].strip()):
                found = self._special.search(following)  # another token ends turns in the middle of a conversation
        else:
            found = self._special.search(following)
            if found and found[0] not in self.openers.values():
                return None
        if found is None or (not call and following[: found.start()].strip()):
            return None
        return found.span()

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return compile_token_pattern({*self.control.special, *self.openers.values()})

    @cached_property
    def _known_ends(self) -> re.Pattern[str]:
        return compile_token_pattern({self.end_text, *self._strings("eos_token"), *OTHER_ENDS} - {""})

    def _arguments(self, text: str) -> Any:
        return text if self.wants_text_arguments else {"a": text}


def template_user(content: str) -> Message:
    return {"role": "user", "content": content}


def template_call(arguments: Any, content: str = "", name: str = "f", ids: Sequence[str] = (CALL_ID,)) -> Message:
    """An assistant message that calls a function."""
    calls = [{"id": own, "type": "function", "function": {"name": name, "arguments": arguments}} for own in ids]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def describe_roles(messages: Sequence[Message]) -> str:
    roles = ", ".join(str(message.get("role")) for message in messages)
    return f"a conversation of {len(messages)} messages ({roles})"


@cache
def warn_template_once(text: str) -> None:
    """Warns once in a process."""
    log.warning(text)
