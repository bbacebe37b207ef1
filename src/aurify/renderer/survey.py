"""Finds out whether a chat template writes everything, by rendering marks instead of contents, once for each sequence
of roles.

With a template that ignores a role, or raises for it, the model would train on conversations with holes. Every mark
must be there, and what comes before a new message must be what came there without it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from aurify.errors import UserError
from aurify.renderer.template import CALL_ID, MARK, TOOL, Template, TemplateRefusal, describe_roles, template_call
from aurify.types import Message

Tools = Sequence[dict[str, Any]]
Fold = Callable[[Sequence[Message], Tools], tuple[list[Message], list[dict[str, Any]]]]
MEND = (
    "set tools_as_text: true to write tools, calls and results into the text, or take a model whose template knows "
    "tools"
)
REPLY = "aurifyreply"
NAME = "aurifyname"
THOUGHT = "aurifythought"


class RewritesEarlier(UserError):
    """The template writes what came before a reply in another way once messages follow it."""


@dataclass(frozen=True)
class ReplyForm:
    """How replies before a tool's result are written: as plain text, or as messages with calls, which some templates
    demand."""

    calls: bool


class Survey:
    def __init__(self, template: Template, fold: Fold, tools_as_text: bool) -> None:
        self.template, self.fold, self.tools_as_text = template, fold, tools_as_text
        self._messages: dict[Any, str | None] = {}  # by sequence of roles: why it is refused; None: it is not
        self._deltas: dict[Any, ReplyForm | UserError] = {}

    # ------------------------------------------------------------------ whole conversations

    def check_messages(self, messages: Sequence[Message], tools: Tools) -> None:
        key = (*(template_shape(message) for message in messages), bool(tools))
        if key not in self._messages:
            self._messages[key] = self._lost(messages, tools)
        lost = self._messages[key]
        if lost:
            mend = "leave it out, write it into another message, or take a model whose template writes it"
            if template_uses_tools(messages, tools) and not self.tools_as_text and "tool" in lost:
                mend = MEND
            raise UserError(f"{self._whose()} leaves out {lost} of {describe_roles(messages)}; {mend}")

    def _writes(self, messages: Sequence[Message], tools: Tools) -> bool:
        try:
            self.check_messages(messages, tools)
        except UserError:
            return False
        return True

    def _whose(self) -> str:
        return self.template.name.replace("the chat template", "the model's chat template", 1)

    def _lost(self, messages: Sequence[Message], tools: Tools) -> str | None:
        marked = [mark_template_message(message, k) for k, message in enumerate(messages)]
        folded, offered = self.fold(marked, [TOOL] if tools else [])
        replied = bool(messages) and messages[-1]["role"] == "assistant"
        try:
            text = self.template.text(folded, offered, generate=not replied)
        except UserError as error:
            if not template_uses_tools(messages, tools):
                return None  # rendering the messages themselves raises the same
            raise UserError(f"{error}; {self._tool_mend()}") from None
        lost = ["the tools"] if tools and TOOL["function"]["name"] not in text else []
        calls = [(k, n) for k, message in enumerate(messages) for n in range(len(message.get("tool_calls") or ()))]
        if any(f"{MARK}{k}c{n}z" not in text for k, n in calls):
            lost.append("tool calls")
        for k, message in enumerate(messages):
            if f"{MARK}{k}z" in text or (message.get("tool_calls") and not message["content"]):
                continue
            kind = "the text beside a tool call" if message.get("tool_calls") else f"the {message['role']} message"
            if kind not in lost:
                lost.append(kind)
        found = [text.find(f"{MARK}{k}z") for k in range(len(messages))]
        if not lost and sorted(index for index in found if index >= 0) != [index for index in found if index >= 0]:
            lost = ["the order"]
        return " and ".join(lost) or None

    def _tool_mend(self) -> str:
        return MEND if not self.tools_as_text else "tools_as_text is set already; another model is needed"

    # ------------------------------------------------------------------ deltas

    def check_delta(self, before: Sequence[Message], new: Sequence[Message], tools: Tools) -> ReplyForm:
        """The form in which all of `new` survives and nothing before it changes."""
        shapes = tuple(template_shape(message) for message in before), tuple(template_shape(message) for message in new)
        names = [name_template_result(message, tools) for message in new if message["role"] == "tool"]
        key = (*shapes, bool(tools), None in names, len({*names}) > 1)
        if key not in self._deltas:
            self._deltas[key] = self._form(before, new, tools)
        form = self._deltas[key]
        if isinstance(form, UserError):
            raise type(form)(f"{form} ({describe_roles([*before, {'role': 'assistant'}, *new])})")
        return form

    def extends(self, before: Sequence[Message], reply: Message, new: Sequence[Message], tools: Tools) -> bool:
        """Whether what the template wrote before a reply, and a thought in it, is still there when `new` follows.
        Raises where the template loses one of `new`."""
        try:
            form = self.check_delta(before, new, tools)
        except RewritesEarlier:
            if not self._writes([*before, reply, *new], tools):
                raise
            return False
        said = mark_template_thought(reply, REPLY)
        prompt = self._text(form, before, None, tools, REPLY, thoughts=True)
        text = self._text(form, before, new, tools, said, thoughts=True)
        return text.startswith(prompt) and (said == REPLY or THOUGHT in text[len(prompt) :])

    def _form(self, before: Sequence[Message], new: Sequence[Message], tools: Tools) -> ReplyForm | UserError:
        answers = any(message["role"] == "tool" for message in (*before, *new)) and not self.tools_as_text
        forms = [ReplyForm(False), ReplyForm(True)] if answers else [ReplyForm(False)]
        reasons = [self._trouble(form, before, new, tools) for form in forms]
        for form, reason in zip(forms, reasons, strict=True):
            if reason is None:
                return form
        plain, last = reasons[0], reasons[-1]
        assert plain is not None and last is not None
        return last if isinstance(plain, TemplateRefusal) else plain

    def _trouble(
        self, form: ReplyForm, before: Sequence[Message], new: Sequence[Message], tools: Tools
    ) -> UserError | None:
        marked = [mark_template_message(message, len(before) + 1 + k) for k, message in enumerate(new)]
        roles = " and ".join(dict.fromkeys(message["role"] for message in new)) or "no"
        tooled = template_uses_tools([*before, *new], tools)
        mend = self._tool_mend() if tooled else "take a model with another template, or other messages"
        try:
            following = self.following(form, before, marked, tools, REPLY)
            span = self.template.find_end(following, call=form.calls)
            text = self._text(form, before, marked, tools, REPLY)
            prompt = self._text(form, before, None, tools, REPLY)
        except UserError as error:
            return type(error)(f"{error}; {mend}")
        for k, message in enumerate(new):
            if f"{MARK}{len(before) + 1 + k}z" not in following[span[1] if span else 0 :]:
                return UserError(f"{self._whose()} loses the {message['role']} message after a sampled turn; {mend}")
        if NAME in following:
            return UserError(
                f"{self._whose()} writes a function's name before its result; give the environment's tool messages a "
                "'name', or set tools_as_text: true"
            )
        marks = [mark for k in range(len(before)) if (mark := f"{MARK}{k}z") in prompt]
        if marks and text.partition(marks[-1])[:2] != prompt.partition(marks[-1])[:2]:
            return RewritesEarlier(
                f"{self._whose()} writes earlier turns in another way when {roles} messages follow, and tokens that "
                f"were sampled after them cannot change; {mend}"
            )
        names = {name_template_result(message, tools) for message in new if message["role"] == "tool"}
        if form.calls and len(names) > 1 and self._names_one_call(before, new):
            return UserError(f"{self._whose()} writes one call a turn, and these are results of {len(names)}; {mend}")
        return None

    def _names_one_call(self, before: Sequence[Message], new: Sequence[Message]) -> bool:
        """Whether it gives the results of several calls the name of the first."""
        named = [{**message, "name": f"{NAME}{k}z"} for k, message in enumerate(new)]
        following = self.following(ReplyForm(True), before, named, [], REPLY)  # type: ignore[arg-type]
        return f"{NAME}0z" in following and f"{NAME}1z" not in following

    def following(
        self, form: ReplyForm, before: Sequence[Message], new: Sequence[Message], tools: Tools, reply: str
    ) -> str:
        """What the template writes after a reply that `reply` stands for."""
        text = self._text(form, before, new, tools, reply)
        if reply not in text:
            raise UserError(f"{self.template.name} leaves out the reply in {describe_roles([*before, *new])}")
        return text.rpartition(reply)[2]

    def _text(
        self,
        form: ReplyForm,
        before: Sequence[Message],
        new: Sequence[Message] | None,
        tools: Tools,
        reply: str,
        *,
        thoughts: bool = False,
    ) -> str:
        """new: None for the prompt of the reply. thoughts: with those of earlier replies, marked as well."""
        history = [mark_template_message(message, k) for k, message in enumerate(before)]
        if thoughts:
            pairs = zip(before, history, strict=True)
            history = [cast(Message, {**m, "content": mark_template_thought(b, m["content"])}) for b, m in pairs]
        if form.calls:
            history = [
                self._as_call(f"{MARK}{k}z", following_template_results(before, k), tools) or message
                if message["role"] == "assistant" and not message.get("tool_calls")
                else message
                for k, message in enumerate(history)
            ]
        messages = list(history)
        if new is not None:
            said: Message = {"role": "assistant", "content": reply}
            if form.calls:
                said = self._as_call(reply, [m for m in new if m["role"] == "tool"], tools) or said
            messages += [said, *new]
        folded, _ = self.fold(messages, [])
        return self.template.text(folded, [TOOL] if tools and not self.tools_as_text else [], generate=True)

    def _as_call(self, mark: str, results: Sequence[Message], tools: Tools) -> Message | None:
        """The reply as a message with the calls that `results` answer."""
        if not results:
            return None
        called = template_call(mark if self.template.wants_text_arguments else {"a": mark})
        [call] = called["tool_calls"]
        called["tool_calls"] = [
            {
                **call,
                "id": result.get("tool_call_id", CALL_ID),
                "function": {**call["function"], "name": name_template_result(result, tools) or NAME},
            }
            for result in results
        ]
        return called

    # ------------------------------------------------------------------ contents

    def check_contents(
        self, form: ReplyForm, before: Sequence[Message], new: Sequence[Message], tools: Tools, following: str
    ) -> None:
        """Raises unless the contents of `new` are in `following`, in their order. Spaces around them may go, and a
        template may write them as JSON. An empty content cannot be searched for: then the text around it must be
        there."""
        start = 0
        for message in new:
            way = next((way for way in template_spellings(message["content"]) if following.find(way, start) >= 0), None)
            if way is None:
                self._refuse_content(message)
            start = following.index(way, start) + len(way)
        if all(message["content"].strip() for message in new):
            return
        marks = [f"{MARK}{len(before) + 1 + k}z" for k in range(len(new))]
        marked = [{**message, "content": mark} for message, mark in zip(new, marks, strict=True)]
        whole = self.following(form, before, marked, tools, REPLY)  # type: ignore[arg-type]
        span = self.template.find_end(whole, call=form.calls)
        if not fits_template_frame(
            following, whole[span[1] if span else 0 :], marks, [message["content"] for message in new]
        ):
            self._refuse_content(next(message for message in new if not message["content"].strip()))

    def _refuse_content(self, message: Message) -> NoReturn:
        content = message["content"]
        shown = repr(content if len(content) < 60 else content[:40] + " ... ")
        mend = "give it a text, such as '(no output)'" if not content.strip() else "write it in another way"
        raise UserError(f"{self._whose()} loses or changes the {message['role']} message {shown}; {mend}")


def template_shape(message: Message) -> tuple[Any, ...]:
    """What a template may read beside the contents."""
    calls = len(message.get("tool_calls") or ())
    beside = bool(message["content"]) if calls else None
    return message["role"], calls, beside, len(message.get("tool_call_id") or ""), "name" in message


def mark_template_message(message: Message, number: int) -> Message:
    """The message with marks for its content and for the arguments of calls."""
    marked: Message = {**message, "content": f"{MARK}{number}z"}
    if message.get("tool_calls"):
        marked["content"] = marked["content"] if message["content"] else ""
        marked["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": {"a": f"{MARK}{number}c{n}z"}}}
            for n, call in enumerate(message["tool_calls"])
        ]
    return marked


def mark_template_thought(message: Message, mark: str) -> str:
    """A content, with a mark for its thoughts and one for what follows them. Where the prompt has opened a thought, its
    closing tag stands alone."""
    thought = message["content"].rpartition("</think>")[0] if message["role"] == "assistant" else ""
    opening = "<think>\n" if "<think>" in thought else ""
    return f"{opening}{THOUGHT}\n</think>\n\n{mark}" if thought else mark


def template_uses_tools(messages: Sequence[Message], tools: Tools) -> bool:
    return bool(tools) or any(message["role"] == "tool" or message.get("tool_calls") for message in messages)


def following_template_results(messages: Sequence[Message], number: int) -> list[Message]:
    """The results of tools right after a message."""
    results: list[Message] = []
    for message in messages[number + 1 :]:
        if message["role"] != "tool":
            break
        results.append(message)
    return results


def name_template_result(message: Message, tools: Tools) -> str | None:
    """The function that a result belongs to: what the message says, or the only tool there is."""
    if message["role"] != "tool":
        return ""
    if "name" in message:
        return message["name"]
    return str(tools[0].get("function", tools[0])["name"]) if len(tools) == 1 else None


def template_spellings(content: str) -> Iterator[str]:
    """How a template may write a content."""
    for text in (content, content.strip(), content.rstrip(), content.lstrip()):
        yield text
        for ascii_only in (False, True):
            yield json.dumps(text, ensure_ascii=ascii_only)[1:-1]


def fits_template_frame(text: str, expected: str, marks: Sequence[str], contents: Sequence[str]) -> bool:
    """Whether `text` is `expected` with contents for marks."""
    rest = expected
    for mark, content in zip(marks, contents, strict=True):
        frame, _, rest = rest.partition(mark)
        if not text.startswith(frame):
            return False
        text = text[len(frame) :]
        following = rest[: rest.find(MARK)] if MARK in rest else rest
        fitting = [way for way in template_spellings(content) if text.startswith(way + following)]
        if not fitting:
            return False
        text = text[len(max(fitting, key=len)) :]
    return text == rest
