"""Conversations that a file keeps as one text: HH-RLHF's "Human: ... Assistant: ..." and Glaive's, with functions."""

from __future__ import annotations

import json
import re
from typing import Any

from aurify.data.messages import read_written
from aurify.renderer.foreign import END_TEXTS
from aurify.rows.row import Row
from aurify.types import Message

HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant|System):[ \t]*")
GLAIVE_TURN = re.compile(r"(?:\A|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):[ \t]*")
GLAIVE_CALL = re.compile(r"<functioncall>\s*")
HH_ROLES = {"Human": "user", "Assistant": "assistant", "System": "system"}
WITH_TOOLS = re.compile(r",? with access to the following functions.*", re.DOTALL)


def is_hh(text: Any) -> bool:
    """Begins with a speaker, and a person and an assistant both speak."""
    if not isinstance(text, str):
        return False
    return HH_TURN.match(text) is not None and {"Human", "Assistant"} <= set(HH_TURN.findall(text))


def read_hh(row: Row, column: str) -> list[Message]:
    """An empty answer at the end is left for the caller to judge."""
    turns = split_turns(row, column, HH_TURN, "'Human: ...' and 'Assistant: ...' after blank lines")
    return [{"role": HH_ROLES[speaker], "content": said} for speaker, said in turns]


def split_turns(row: Row, column: str, turn: re.Pattern[str], expected: str) -> list[tuple[str, str]]:
    """Who spoke, and what."""
    text = row.text(column)
    before, *parts = turn.split(text)
    if before.strip() or not parts:
        problem = f"{column!r} begins {text[:40]!r}; expected {expected}"
        raise row.bad(problem, f"{column!r} is no transcript with {expected}")
    return [(speaker, said.strip()) for speaker, said in zip(parts[::2], parts[1::2], strict=True)]


def is_glaive(text: Any) -> bool:
    return isinstance(text, str) and {"USER", "ASSISTANT"} <= set(GLAIVE_TURN.findall(text))


def read_glaive(row: Row, column: str) -> list[Message]:
    turns = split_turns(row, column, GLAIVE_TURN, "'USER: ...' and 'ASSISTANT: ...'")
    return [read_glaive_turn(row, column, speaker, said) for speaker, said in turns]


def read_glaive_turn(row: Row, column: str, speaker: str, said: str) -> Message:
    for end in END_TEXTS:
        said = said.removesuffix(end).rstrip()
    if speaker != "ASSISTANT":
        return {"role": "user" if speaker == "USER" else "tool", "content": said}
    words, *calls = GLAIVE_CALL.split(said)
    message: Message = {"role": "assistant", "content": words.strip()}
    if calls:
        message["tool_calls"] = [
            call for text in calls for call in read_written(row, repr(column), f"<functioncall>{text}")
        ]
    elif not message["content"]:
        raise row.bad(f"{column!r} holds an assistant turn without text", f"{column!r}: an assistant turn without text")
    return message


def read_glaive_system(row: Row, column: str) -> tuple[str, list[dict[str, Any]]]:
    """The system prompt without its list of functions, and these as tools."""
    text = row.text(column).strip().removeprefix("SYSTEM:").strip()
    said = WITH_TOOLS.sub(".", text)
    if said == text:
        return text, []
    functions, decoder = text[len(said) - 1 :], json.JSONDecoder()
    tools: list[dict[str, Any]] = []
    begin = functions.find("{")
    while begin >= 0:
        try:
            function, end = decoder.raw_decode(functions, begin)
        except (ValueError, RecursionError):
            raise row.bad(f"{column!r} lists a function that is no JSON", "a function that is no JSON") from None
        if not isinstance(function.get("name"), str):
            raise row.bad(f"{column!r} lists a function without a name", "a function without a name")
        tools.append({"type": "function", "function": function})
        begin = functions.find("{", end)
    return said, tools
