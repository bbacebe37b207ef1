"""Rewrites messages for chat templates that have no tools, or refuse a role."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from aurify.errors import UserError
from aurify.thoughts import CLOSINGS
from aurify.types import Message

TOOLS_TEXT = 'Tools, one a line, each called as <tool_call>{"name": ..., "arguments": ...}</tool_call>:'


def join_template_turns(messages: Sequence[Message]) -> list[Message]:
    """A turn that went on is one message for a template. Its `pieces` are the texts, each with its weight, which become
    tokens one by one: as a rollout has them, in which one was sampled and the next one put after it."""
    joined: list[Any] = []
    for message in messages:
        if not (message.get("goes_on") and joined and joined[-1]["role"] == "assistant"):
            joined.append(message)
            continue
        before = joined[-1]
        pieces = before.get("pieces") or [(before["content"].lstrip(), before.get("weight", 1.0))]
        pieces = [*pieces, (message["content"], message.get("weight", 1.0))]
        content, weight = "".join(text for text, _ in pieces), max(weight for _, weight in pieces)
        joined[-1] = {**before, **message, "content": content, "weight": weight, "pieces": pieces}
    return joined


def split_template_reply(said: str, message: Message) -> list[tuple[str, float]]:
    """What the template writes for a message, as texts with weights: one, or the pieces of a turn that went on."""
    pieces: list[tuple[str, float]] = message.get("pieces", [])  # type: ignore[assignment]
    if not pieces:
        return [(said, message.get("weight", 1.0))]
    beginning, _, rest = said.partition(message["content"].rstrip())
    if beginning.strip() or rest.strip():
        raise UserError(
            f"the chat template changes a turn that went on after {pieces[0][0][-60:]!r}; a message with goes_on needs "
            "a template that writes answers as they are, and no tool calls"
        )
    return pieces


def write_tools_as_text(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
    """Puts tools into the system prompt, calls between <tool_call> tags, and results into user messages."""
    told: list[Message] = []
    for message in messages:
        plain = message.copy()
        calls = plain.pop("tool_calls", [])
        plain.pop("tool_call_id", None)
        written = [f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>" for call in calls]
        plain["content"] = "\n".join(part for part in (plain["content"], *written) if part)
        if plain["role"] == "tool":
            plain.pop("name", None)
            plain |= {"role": "user", "content": f"<tool_response>\n{plain['content']}\n</tool_response>"}
        told.append(plain)
    if tools:
        listing = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
        text = f"{TOOLS_TEXT}\n{listing}"
        if told and told[0]["role"] == "system":
            told[0]["content"] += "\n\n" + text
        else:
            told.insert(0, {"role": "system", "content": text})
    return told


def move_system_to_user(messages: Sequence[Message]) -> list[Message]:
    """Puts a system message at the beginning of the user message after it, or into a user message of its own."""
    moved: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting += [message["content"]] if message["content"].strip() else []
            continue
        if waiting and message["role"] == "user":
            message = message.copy()
            message["content"] = "\n\n".join([*waiting, message["content"]])
        elif waiting:
            moved.append({"role": "user", "content": "\n\n".join(waiting)})
        waiting = []
        moved.append(message)
    return [*moved, {"role": "user", "content": "\n\n".join(waiting)}] if waiting else moved


def join_user_messages(messages: Sequence[Message]) -> list[Message]:
    """Joins neighbouring user messages, for templates in which roles must alternate."""
    joined: list[Message] = []
    for message in messages:
        if joined and message["role"] == joined[-1]["role"] == "user":
            joined[-1] = {**joined[-1], "content": joined[-1]["content"] + "\n\n" + message["content"]}
        else:
            joined.append(message)
    return joined


def write_arguments_as_text(messages: Sequence[Message]) -> list[Message]:
    """For templates that write the arguments of a call as they are."""
    return [
        {**message, "tool_calls": [_with_text(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        return call
    return {**call, "function": {**function, "arguments": json.dumps(arguments, ensure_ascii=False)}}


def move_template_thoughts(messages: Sequence[Message], key: str) -> list[Message]:
    """Moves the thought at the beginning of a reply to the key in which the template takes it."""
    moved: list[Message] = []
    for message in messages:
        begun = message["role"] == "assistant" and message["content"].lstrip().startswith("<think>")
        thought, closing, answer = message["content"].lstrip().removeprefix("<think>").partition("</think>")
        parted = {**message, key: thought.strip(), "content": answer.lstrip()}
        moved.append(cast(Message, parted) if begun and closing and thought.strip() else message)
    return moved


def drop_thought_opening(opened: str, text: str) -> str:
    """The rest of a reply after a prompt that may have opened its thought."""
    for tag in CLOSINGS:
        if opened.rstrip().endswith(tag) and text.lstrip().startswith(tag):
            text = text.lstrip()[len(tag) :]
            text = text if opened.endswith(tag) else text.lstrip("\n")
    return text
