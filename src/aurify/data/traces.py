"""Traces: answers that a stronger model, or a person, has written, thoughts included. A policy learns from them beside
its own answers (LUFFY, arXiv 2504.14945).

Files of several kinds are read, row by row: OpenR1's (`problem`, `generations`, `answer`), chats whose last turn is the
answer, with or without `reasoning_content`, LUFFY's own (`prompt`, `target`, `reward_model`), plain `prompt`, `trace`
or `traces`, `answer`, and GSM8K's. A column `logprobs` records how likely the guide's tokens were to it: for each trace
a list with a number for each token, as this model's tokenizer cuts it; the end token may be missing. Every trace is
judged by the task's own reward before it is used, and what is refused is counted by its reason.

A trace may hold what an environment or a tool said: a list of messages (with `goes_on` and `weight: 0` for words that
an environment puts into the guide's turn), or, for an environment that tells them apart, a text. Of other traces only
token ids and log-probs are kept."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from aurify.data.heldout import HeldOut
from aurify.data.messages import read_message, read_messages
from aurify.data.prompts import build_task, last_question, read_gold, read_question
from aurify.data.thoughts import find_thought, join_thought
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.renderer.traces import render_trace
from aurify.rewards.rubric import Rubric
from aurify.rows.columns import CHAT, TRACE, find_column
from aurify.rows.gsm8k import is_gsm8k, split_answer
from aurify.rows.row import BadRow, Row, Tally
from aurify.rows.sources import open_file
from aurify.types import Message, Segment, Task, Trajectory

Trace = Sequence[int] | list[Message]  # token ids, end token included; or all that a guide and an environment said


def is_messages(trace: Trace) -> bool:
    return isinstance(trace[0], dict)


def is_conversation(messages: Sequence[Message]) -> bool:
    """Whether anybody but the guide speaks, or it calls a tool: more than an answer."""
    return len(messages) > 1 or bool(messages[0].get("tool_calls"))


def one_message(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


@dataclass
class Traces:
    """By the question they answer."""

    path: str
    by_question: dict[str, list[Trace]] = field(default_factory=dict)
    recorded: dict[tuple[int, ...], array[float]] = field(default_factory=dict)  # log-probs, by the tokens of a trace
    tally: Tally = field(default_factory=Tally)
    num_judged: int = 0

    def of(self, messages: Sequence[Message]) -> list[Trace]:
        """The traces for a prompt, whatever its system prompt says."""
        return self.by_question.get(last_question(messages), [])

    @property
    def num(self) -> int:
        return sum(map(len, self.by_question.values()))

    def report(self) -> str:
        """One line: what was kept, and what was refused and why."""
        kept = f"{self.path}: {self.num} traces for {len(self.by_question)} questions"
        kept += "".join(f" ({num:,} rows changed: {reason})" for reason, num in self.tally.changed.items())
        refused = [
            f"{num} {reason} (first: {self.tally.first[reason]})" for reason, num in self.tally.rejected.most_common()
        ]
        return f"{kept}; refused: {', '.join(refused)}" if refused else kept


async def load_traces(
    path: str,
    renderer: Renderer,
    rubric: Rubric,
    *,
    heldout: HeldOut | None = None,
    max_tokens: int | None = None,
    max_context: int | None = None,
    success: float = 1.0,
    split: Callable[[str], list[Message]] = one_message,
    tools: Sequence[dict[str, Any]] = (),
    max_judged: int | None = None,
) -> Traces:
    """Reads a file and keeps the traces that the first reward of `rubric` gives at least `success`. Refused are those
    for held-out tasks, those above `max_tokens` (of the guide) or, with all the rest, `max_context`, copies, and traces
    without an answer to judge them by. split: the messages of a trace that is a text. tools: that the task offers.
    max_judged: traces after the first so many are kept unjudged."""
    traces = Traces(path)
    check = TraceCheck(
        renderer, rubric, heldout or HeldOut(), max_tokens, max_context, success, split, tools, max_judged
    )
    for row in open_file(path):
        if isinstance(row, BadRow):
            traces.tally.reject("that cannot be read", str(row))
            continue
        try:
            traces.tally.change(row.location, row.changes)
            await keep_traces(with_trace(row), traces, check)
        except UserError as error:
            traces.tally.reject("that cannot be used", str(error))
    traces.by_question = {question: found for question, found in traces.by_question.items() if found}
    if not traces.by_question:
        raise UserError(f"{traces.report()}. None can be used; look at the answers, the task's reward and max_tokens")
    return traces


async def keep_traces(row: Row, traces: Traces, check: TraceCheck) -> None:
    """Adds those of a row that pass."""
    task, texts = build_task(row, read_question(row), read_gold(row), but=["answer"]), read_traces(row)
    if reason := check.refuse_row(task, texts):
        traces.tally.reject(reason, row.location)
        return
    known = traces.by_question.setdefault(last_question(task.prompt), [])
    for given, recorded in zip(texts, read_logprobs(row, len(texts)), strict=True):
        messages = check.split(given) if isinstance(given, str) else given
        trace, trajectory = check.encode(task, messages)
        num_tokens = sum(len(segment.tokens) for segment in trajectory.segments if segment.origin == "guidance")
        if recorded is not None and len(recorded) == num_tokens - 1:
            recorded = [*recorded, 0.0]  # the end token, which a guide's text does not show
        if recorded is not None and (len(recorded) != num_tokens or is_messages(trace)):
            reason = "with log-probs of other tokens"
        elif trace in known:
            reason = "a copy"
        elif not (reason := check.refuse_length(trajectory, num_tokens)) and traces.num_judged != check.max_judged:
            traces.num_judged += 1
            reason = await check.refuse_answer(task, trajectory)
        if reason:
            traces.tally.reject(reason, row.location)
            continue
        known.append(trace)
        if recorded is not None:
            traces.recorded[tuple(cast("Sequence[int]", trace))] = array("f", recorded)


@dataclass(frozen=True)
class TraceCheck:
    """What a trace must pass. What refuses says why."""

    renderer: Renderer
    rubric: Rubric
    heldout: HeldOut
    max_tokens: int | None
    max_context: int | None
    success: float
    split: Callable[[str], list[Message]]
    tools: Sequence[dict[str, Any]]
    max_judged: int | None

    def refuse_row(self, task: Task, texts: Sequence[str | list[Message]]) -> str | None:
        if not texts:
            return "without a trace"
        if self.heldout.holder(task.prompt) is not None:
            return "for a held-out task"
        return None if task.answer is not None else "without an answer to judge it by"

    def encode(self, task: Task, messages: list[Message]) -> tuple[Trace, Trajectory]:
        """The trace as it is kept, and as rewards see it."""
        prompt, num = self.renderer.prompt(task.prompt, self.tools), len(task.prompt)
        if not is_conversation(messages):
            tokens = array("i", self.renderer.reply(prompt, messages[0]["content"]))
            segments = [Segment(prompt, "prompt"), Segment(list(tokens), "guidance")]
            said = [*task.prompt, self.renderer.parse(tokens)]
            return tokens, Trajectory(segments, said, num, source="guidance")
        segments = render_trace(task.prompt, messages, self.tools, self.renderer)
        return messages, Trajectory(segments, [*task.prompt, *messages], num, source="guidance", tools=self.tools)

    def refuse_length(self, trajectory: Trajectory, num_tokens: int) -> str | None:
        for limit, length in ((self.max_tokens, num_tokens), (self.max_context, len(trajectory.tokens))):
            if limit is not None and length > limit:
                return "too long"
        return None

    async def refuse_answer(self, task: Task, trajectory: Trajectory) -> str | None:
        await self.rubric.score(task, [trajectory])
        return None if self.rubric.succeeded(trajectory, self.success) else "judged wrong"


# ---------------------------------------------------------------------- what a row holds


def with_trace(row: Row) -> Row:
    """A row of GSM8K has its trace and its final answer in one column."""
    parts = split_answer(row["answer"]) if is_gsm8k(row) and not read_traces(row) else None
    return row if parts is None else Row({**row, "trace": row["answer"], "answer": parts[1]}, row.location)


def read_traces(row: Row) -> list[str | list[Message]]:
    """The traces of a row; empty ones, which data sets use for "none", are left out."""
    column = find_column(row, TRACE, str, list, dict)
    texts: list[str | list[Message]]
    if column is None:
        chat = find_column(row, CHAT, list)
        texts = [read_messages(row, chat)[-1]["content"]] if chat and len(row[chat]) > 1 else []
    elif isinstance(row[column], str):
        texts = [join_thought(find_thought(row), row[column].strip()) if find_thought(row) else row[column]]
    else:
        several = isinstance(row[column], list) and not has_other_voices(row[column])
        texts = [read_trace(row, column, entry) for entry in (row[column] if several else [row[column]])]
    return [trace for trace in texts if not isinstance(trace, str) or trace.strip()]


def has_other_voices(value: Any) -> bool:
    """Messages of which not all are answers of their own."""
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(entry, Mapping) for entry in value):
        return False
    return any(entry.get("goes_on") or entry.get("role") not in (None, "assistant") for entry in value)


def read_trace(row: Row, column: str, entry: Any) -> str | list[Message]:
    """A text, a message, or a list of messages."""
    if has_other_voices(entry):
        return [read_message(row, column, message) for message in entry]
    if isinstance(entry, str) or entry is None:
        return entry or ""
    entry = entry[0] if isinstance(entry, list) and len(entry) == 1 else entry
    if not isinstance(entry, Mapping):
        raise row.bad(f"{column!r} holds {str(entry)[:80]!r}; expected a text or an assistant message")
    return read_message(row, column, {"role": "assistant", **entry})["content"]


def read_logprobs(row: Row, num: int) -> list[list[float] | None]:
    """What was recorded of each of the row's traces."""
    value = row.get("logprobs")
    if value is None:
        return [None] * num
    lists = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    numbers = [number for each in lists for number in (each if isinstance(each, list) else ["no list"])]
    if len(lists) != num or not all(isinstance(number, int | float) and number <= 0 for number in numbers):
        problem = f"expected a list of log-probs for each of {num} traces"
        raise row.bad(f"'logprobs' holds {str(value)[:80]!r}; {problem}")
    return lists
