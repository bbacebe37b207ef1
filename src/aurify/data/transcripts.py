"""Conversations that a file keeps as one text: HH-RLHF's "Human: ... Assistant: ..." and Glaive's, with functions."""

from __future__ import annotations

import json
import re
from typing import Any

from aurify.data.messages import call_of, parsed
from aurify.data.sources import Row
from aurify.types import Message

HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant|System):[ \t]*")
GLAIVE_TURN = re.compile(r"(?:\A|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):[ \t]*")
GLAIVE_CALL = re.compile(r"<functioncall>\s*")
ARGUMENTS = re.compile(r"""["']arguments["']\s*:\s*'(.*)'\s*}\s*\Z""", re.DOTALL)
NAME = re.compile(r"""["']name["']\s*:\s*["']([^"']+)["']""")
ENDS = ("<|endoftext|>", "</s>", "<|im_end|>")
HH_ROLES = {"Human": "user", "Assistant": "assistant", "System": "system"}
WITH_TOOLS = re.compile(r",? with access to the following functions.*", re.DOTALL)


def is_hh(text: Any) -> bool:
    """Begins with a speaker, and a person and an assistant both speak."""
    if not isinstance(text, str):
        return False
    begin = HH_TURN.match(text)
    return begin is not None and {"Human", "Assistant"} <= set(HH_TURN.findall(text))


def hh_messages(row: Row, column: str) -> list[Message]:
    """An empty answer at the end is left for the caller to judge."""
    turns = turns_of(row, column, HH_TURN, "Human", "Assistant", " after blank lines")
    return [{"role": HH_ROLES[speaker], "content": said} for speaker, said in turns]


def is_glaive(text: Any) -> bool:
    return isinstance(text, str) and {"USER", "ASSISTANT"} <= set(GLAIVE_TURN.findall(text))


def glaive_messages(row: Row, column: str) -> list[Message]:
    turns = turns_of(row, column, GLAIVE_TURN, "USER", "ASSISTANT")
    return [glaive_message(row, column, speaker, said) for speaker, said in turns]


def turns_of(
    row: Row, column: str, turn: re.Pattern[str], person: str, assistant: str, where: str = ""
) -> list[tuple[str, str]]:
    """Who spoke, and what. The last three are for the error."""
    text = row.text(column)
    before, *parts = turn.split(text)
    if before.strip() or not parts:
        raise row.bad(
            f"{column!r} begins {text[:40]!r}; expected '{person}: ...' and '{assistant}: ...'{where}",
            f"{column!r} is no transcript of {person} and {assistant}",
        )
    return [(speaker, said.strip()) for speaker, said in zip(parts[::2], parts[1::2], strict=True)]


def glaive_message(row: Row, column: str, speaker: str, said: str) -> Message:
    for end in ENDS:
        said = said.removesuffix(end).rstrip()
    if speaker != "ASSISTANT":
        return {"role": "user" if speaker == "USER" else "tool", "content": said}
    words, *calls = GLAIVE_CALL.split(said)
    message: Message = {"role": "assistant", "content": words.strip()}
    if calls:
        message["tool_calls"] = [glaive_call(row, column, call.strip()) for call in calls]
    elif not message["content"]:
        raise row.bad(f"{column!r} holds an assistant turn without text", f"{column!r}: an assistant turn without text")
    return message


def glaive_call(row: Row, column: str, text: str) -> dict[str, Any]:
    """Arguments stand in single quotes, which is no JSON: {"name": "f", "arguments": '{"a": 1}'}."""
    found = parsed(text)
    if found is None:
        name, arguments = NAME.search(text), ARGUMENTS.search(text)
        if name is None or arguments is None:
            raise row.bad(f"{column!r}: the call {text[:80]!r} cannot be read", "a call of a function cannot be read")
        found = {"name": name[1], "arguments": arguments[1].replace("\\'", "'")}
    return call_of(row, column, found)


def glaive_system(row: Row, column: str) -> tuple[str, list[dict[str, Any]]]:
    """The system prompt without its list of functions, and these as tools."""
    text = row.text(column).strip().removeprefix("SYSTEM:").strip()
    said = WITH_TOOLS.sub(".", text)
    if said == text:
        return text, []
    functions, decoder = text[len(said) - 1 :], json.JSONDecoder()
    tools: list[dict[str, Any]] = []
    place = functions.find("{")
    while place >= 0:
        try:
            function, end = decoder.raw_decode(functions, place)
        except (ValueError, RecursionError):
            raise row.bad(f"{column!r} lists a function that is no JSON", "a function that is no JSON") from None
        if not isinstance(function.get("name"), str):
            raise row.bad(f"{column!r} lists a function without a name", "a function without a name")
        tools.append({"type": "function", "function": function})
        place = functions.find("{", end)
    return said, tools
