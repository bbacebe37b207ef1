"""Conversations that a file keeps as one text: HH-RLHF's "Human: ... Assistant: ...", those that another chat template
has written, and Glaive's, with functions."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from aurify.data.calls import read_written_calls
from aurify.renderer.foreign import END_TEXTS
from aurify.rows.row import Row
from aurify.types import Message

ROLES = {
    **dict.fromkeys(("human", "user", "prompter", "instruction", "input", "inst", "question"), "user"),
    **dict.fromkeys(("assistant", "ai", "model", "response", "/inst", "answer"), "assistant"),
    "system": "system",
}
BEGINNINGS = re.compile(r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>)")
HEADER = re.compile(
    r"\s*(?:<\|im_start\|>assistant\n|<\|assistant\|>\n?|<start_of_turn>model\n|"
    r"<\|start_header_id\|>assistant<\|end_header_id\|>\s*)"
)
PREAMBLES = ("Below is an instruction", "A chat between a curious")  # of Alpaca and Vicuna: a system prompt
LLAMA_SYSTEM = re.compile(r"<<SYS>>\n?(.*?)\n?<</SYS>>\s*", re.DOTALL)


@dataclass(frozen=True)
class Notation:
    turn: re.Pattern[str]  # what begins a turn; its group is who speaks

    @property
    def is_marked(self) -> bool:
        """By tokens that no person writes."""
        return self.turn.pattern.startswith(("<", "(?:<s>)"))

    def read(self, text: str, least: int = 2) -> list[Message] | None:
        """The turns, `least` of them: a person's and the assistant's in turn, after a system prompt. None: the text is
        not so."""
        first = self.turn.search(text)
        before = text[: first.start()].strip() if first else text
        if before and not before.startswith(PREAMBLES):
            return None
        _, *parts = self.turn.split(text)
        messages: list[Message] = [{"role": "system", "content": before}] if before else []
        for speaker, said in zip(parts[::2], parts[1::2], strict=True):
            role, content = ROLES[speaker.lower()], strip_end_tokens(said)
            if speaker == "Input" and messages and messages[-1]["role"] == "user":
                messages[-1]["content"] += f"\n\n{content}"
            else:
                messages.append({"role": role, "content": content})
        messages = split_llama_system(messages)
        spoken = [message["role"] for message in messages if message["role"] != "system"]
        systems = len(messages) - len(spoken)
        in_turn = all(role == ("user", "assistant")[k % 2] for k, role in enumerate(spoken))
        one_system = systems == 0 or (systems == 1 and messages[0]["role"] == "system")
        return messages if len(spoken) >= least and in_turn and one_system else None


NOTATIONS = tuple(
    Notation(re.compile(turn))
    for turn in (
        r"(?:\A\s*|\r?\n\r?\n)(Human|Assistant|System):[ \t]*",
        r"(?:\A\s*|\r?\n)(Human|User|Assistant|AI|System):[ \t]*",
        r"(?:\A\s*|\r?\n)(USER|ASSISTANT|SYSTEM):[ \t]*",
        r"(?:\A|\s|</s>)(USER|ASSISTANT):(?=\s|\Z)",
        r"###[ \t]*(Human|User|Assistant|System|Instruction|Input|Response|Question|Answer):",
        r"<\|(user|assistant|system|prompter)\|>",
        r"<\|im_start\|>(user|assistant|system)\r?\n",
        r"<start_of_turn>(user|model)\r?\n",
        r"<\|start_header_id\|>(user|assistant|system)<\|end_header_id\|>",
        r"(?:<s>)?[ ]?\[(/?INST)\]",
    )
)


def strip_end_tokens(said: str) -> str:
    """Without end tokens and white space around."""
    said = said.strip()
    while end := next((end for end in END_TEXTS if said.endswith(end)), ""):
        said = said.removesuffix(end).rstrip()
    return said


def split_llama_system(messages: list[Message]) -> list[Message]:
    """Llama 2 writes the system prompt into the first user message."""
    found = LLAMA_SYSTEM.match(messages[0]["content"]) if messages else None
    if found is None:
        return messages
    first: Message = {**messages[0], "content": messages[0]["content"][found.end() :]}
    return [{"role": "system", "content": found[1].strip()}, first, *messages[1:]]


def read_transcript(text: Any, *, asked: bool = False, spoken: bool = False) -> list[Message] | None:
    """The turns of a conversation that was written out, the last of which may be empty: it is for the caller to judge.
    None: the text is no such conversation from its beginning to its end. asked: a question alone is one too, if tokens
    mark it, or if its answer begins with who speaks (spoken)."""
    if not isinstance(text, str):
        return None
    text = BEGINNINGS.sub("", text, count=1) if BEGINNINGS.match(text) else text
    found = (one.read(text, 1 if asked and (spoken or one.is_marked) else 2) for one in NOTATIONS)
    return next((messages for messages in found if messages), None)


def strip_transcript_header(answer: str) -> str:
    """Without what another chat template writes before an answer."""
    found = HEADER.match(answer)
    return answer[found.end() :] if found else answer


def is_transcript(text: Any) -> bool:
    return (read_hh(text) or read_transcript(text)) is not None


def read_hh(text: Any) -> list[Message] | None:
    """HH-RLHF's: its speakers may say several things in a row."""
    before, *parts = NOTATIONS[0].turn.split(text) if isinstance(text, str) else [""]
    if before.strip() or not {"Human", "Assistant"} <= set(parts[::2]):
        return None
    return [
        {"role": ROLES[speaker.lower()], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]


# ---------------------------------------------------------------------- Glaive

GLAIVE_TURN = re.compile(r"(?:\A|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):[ \t]*")
GLAIVE_CALL = re.compile(r"<functioncall>\s*")
WITH_TOOLS = re.compile(r",? with access to the following functions.*", re.DOTALL)


def split_transcript_turns(row: Row, column: str, turn: re.Pattern[str], expected: str) -> list[tuple[str, str]]:
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
    turns = split_transcript_turns(row, column, GLAIVE_TURN, "'USER: ...' and 'ASSISTANT: ...'")
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
            call for text in calls for call in read_written_calls(row, repr(column), f"<functioncall>{text}")
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
