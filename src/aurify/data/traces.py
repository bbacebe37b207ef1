"""Traces: answers that a stronger model, or a person, has written, thoughts included. A policy learns from them beside
its own answers (LUFFY, arXiv 2504.14945).

Files of several kinds are read, row by row: OpenR1's (`problem`, `generations`, `answer`), chats whose last turn is the
answer, with or without `reasoning_content`, LUFFY's own (`prompt`, `target`, `reward_model`), plain `prompt`, `trace`
or `traces`, `answer`, and GSM8K's. A column `logprobs` records how likely the guide's tokens were to it: for each trace
a list with a number for each token, as this model's tokenizer cuts it; the end token may be missing. Every trace is
judged by the task's own reward before it is used, and what is refused is counted by its reason. Kept are token ids and
such log-probs alone."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aurify.data.gsm8k import TIDIED, is_gsm8k, split_answer
from aurify.data.heldout import HeldOut
from aurify.data.sources import Row, iter_rows
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.rewards.rubric import Rubric
from aurify.types import Message, Segment, Task, Trajectory

QUESTIONS = ("prompt", "problem", "question", "instruction", "query")
TRACES = ("traces", "trace", "generations", "target_lst", "target", "response", "completion", "output")
ANSWERS = ("answer", "ground_truth", "final_answer", "expected_answer", "gold")
CHATS = ("messages", "conversations", "conversation")


@dataclass
class Traces:
    """Token ids, end token included, by the question they answer."""

    path: str
    by_question: dict[str, list[array[int]]] = field(default_factory=dict)
    recorded: dict[tuple[int, ...], array[float]] = field(default_factory=dict)  # log-probs, by the tokens of a trace
    refused: Counter[str] = field(default_factory=Counter)  # by reason
    first: dict[str, str] = field(default_factory=dict)  # reason -> the first place
    num_tidied: int = 0  # rows that were changed on reading, see aurify.data.gsm8k

    def of(self, messages: Sequence[Message]) -> list[array[int]]:
        """The traces for a prompt, whatever its system prompt says."""
        return self.by_question.get(question_of(messages), [])

    def refuse(self, reason: str, place: str) -> None:
        self.refused[reason] += 1
        self.first.setdefault(reason, place)

    @property
    def num(self) -> int:
        return sum(map(len, self.by_question.values()))

    def report(self) -> str:
        """One line: what was kept, and what was refused and why."""
        kept = f"{self.path}: {self.num} traces for {len(self.by_question)} questions"
        if self.num_tidied:
            kept += f" ({self.num_tidied:,} rows changed: {TIDIED})"
        if not self.refused:
            return kept
        reasons = (f"{num} {reason} (first: {self.first[reason]})" for reason, num in self.refused.most_common())
        return f"{kept}; refused: {', '.join(reasons)}"


async def load_traces(
    path: str,
    renderer: Renderer,
    rubric: Rubric,
    *,
    heldout: HeldOut | None = None,
    max_tokens: int | None = None,
    max_context: int | None = None,
    success: float = 1.0,
) -> Traces:
    """Reads a file and keeps the traces that the first reward of `rubric` gives at least `success`. Refused are those
    for held-out tasks, those above `max_tokens` or, with their prompt, `max_context`, copies, and traces without an
    answer to judge them by."""
    traces = Traces(path)
    check = Check(renderer, rubric, heldout or HeldOut(), max_tokens, max_context, success)
    for row in iter_rows(path, lambda bad: traces.refuse("that cannot be read", str(bad))):
        try:
            traces.num_tidied += row.tidied
            row = as_trace(row)
            task, texts = task_of(row), texts_of(row)
            reason = check.row(task, texts)
            if reason:
                traces.refuse(reason, row.place)
                continue
            known = traces.by_question.setdefault(question_of(task.prompt), [])
            for text, recorded in zip(texts, logprobs_of(row, len(texts)), strict=True):
                tokens = array("i", renderer.reply(renderer.prompt(task.prompt), text))
                reason = "a copy" if tokens in known else await check.trace(task, tokens)
                if recorded is not None and len(recorded) == len(tokens) - 1:
                    recorded = [*recorded, 0.0]  # the end token, which a guide's text does not show
                if recorded is not None and len(recorded) != len(tokens):
                    reason = "with log-probs of other tokens"
                if reason:
                    traces.refuse(reason, row.place)
                    continue
                known.append(tokens)
                if recorded is not None:
                    traces.recorded[tuple(tokens)] = array("f", recorded)
        except UserError as error:
            traces.refuse("that cannot be used", str(error))
    traces.by_question = {question: found for question, found in traces.by_question.items() if found}
    if not traces.by_question:
        raise UserError(f"{traces.report()}. None can be used; look at the answers, the task's reward and max_tokens")
    return traces


@dataclass(frozen=True)
class Check:
    """What a trace must pass. Both methods say why it does not."""

    renderer: Renderer
    rubric: Rubric
    heldout: HeldOut
    max_tokens: int | None
    max_context: int | None
    success: float

    def row(self, task: Task, texts: Sequence[str]) -> str | None:
        if not texts:
            return "without a trace"
        if self.heldout.holder(task.prompt) is not None:
            return "for a held-out task"
        return None if task.answer is not None else "without an answer to judge it by"

    async def trace(self, task: Task, tokens: Sequence[int]) -> str | None:
        segments = [Segment(self.renderer.prompt(task.prompt), "prompt"), Segment(list(tokens), "guidance")]
        messages = [*task.prompt, self.renderer.parse(tokens)]
        trajectory = Trajectory(segments, messages, len(task.prompt), source="guidance")
        for limit, length in ((self.max_tokens, len(tokens)), (self.max_context, len(trajectory.tokens))):
            if limit is not None and length > limit:
                return "too long"
        await self.rubric.score(task, [trajectory])
        return None if self.rubric.succeeded(trajectory, self.success) else "judged wrong"


def as_trace(row: Row) -> Row:
    """A row of GSM8K has its trace and its final answer in one column."""
    parts = split_answer(row["answer"]) if is_gsm8k(row) and not texts_of(row) else None
    return row if parts is None else Row({**row, "trace": row["answer"], "answer": parts[1]}, row.place, row.part)


def task_of(row: Row) -> Task:
    """The columns of the row reach rewards by their names, as those of a task do."""
    return Task(row.place, prompt_of(row), answer_of(row), {name: row[name] for name in row if name != "answer"})


def question_of(messages: Sequence[Message]) -> str:
    """What a prompt asks: its last user turn, white space aside. System prompts differ between a file and a task."""
    asked = [message["content"] for message in messages if message["role"] == "user"]
    return " ".join((asked[-1] if asked else messages[-1]["content"]).split())


def prompt_of(row: Row) -> list[Message]:
    for column in QUESTIONS:
        value = row.get(column)
        if isinstance(value, str) and value.strip():
            return [{"role": "user", "content": value}]
        if isinstance(value, list) and value:
            return chat(row, column, value)
    for column in CHATS:
        value = row.get(column)
        if isinstance(value, list) and len(value) > 1:
            return chat(row, column, value)[:-1]
    raise UserError(f"{row.place}: no question; expected one of the columns {', '.join((*QUESTIONS, *CHATS))}")


def texts_of(row: Row) -> list[str]:
    """The traces of a row; empty ones, which data sets use for "none", are left out."""
    reasoning = row.get("reasoning_content") or row.get("reasoning")
    for column in TRACES:
        value = row.get(column)
        if value is None or value in ("", []):
            continue
        if isinstance(value, str) and isinstance(reasoning, str) and reasoning.strip():
            return [thought(reasoning, value)]
        entries = value if isinstance(value, list) else [value]
        return [text for entry in entries if (text := text_of(row, column, entry)).strip()]
    for column in CHATS:
        value = row.get(column)
        if isinstance(value, list) and len(value) > 1:
            text = text_of(row, column, value[-1])
            return [text] if text.strip() else []
    return []


def logprobs_of(row: Row, num: int) -> list[list[float] | None]:
    """What was recorded of each of the row's traces."""
    value = row.get("logprobs")
    if value is None:
        return [None] * num
    rows = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    lists = [each if isinstance(each, list) else ["no list"] for each in rows]
    if len(rows) != num or not all(isinstance(v, int | float) and v <= 0 for each in lists for v in each):
        raise UserError(
            f"{row.place}: 'logprobs' holds {str(value)[:80]!r}; expected a list of log-probs for each of {num} traces"
        )
    return rows


def text_of(row: Row, column: str, entry: Any) -> str:
    """A text, a message, or a list with one message."""
    if isinstance(entry, str):
        return entry
    if entry is None:
        return ""
    if isinstance(entry, list) and len(entry) == 1:
        entry = entry[0]
    if isinstance(entry, dict):
        content = entry.get("content", entry.get("value"))
        reasoning = entry.get("reasoning_content") or entry.get("reasoning")
        if isinstance(content, str):
            return thought(reasoning, content) if isinstance(reasoning, str) and reasoning.strip() else content
    raise UserError(f"{row.place}: {column!r} holds {str(entry)[:80]!r}; expected a text or an assistant message")


def thought(reasoning: str, content: str) -> str:
    return f"<think>\n{reasoning.strip()}\n</think>\n\n{content.strip()}"


def answer_of(row: Row) -> str | None:
    judged = row.get("reward_model")
    values = [row.get(column) for column in ANSWERS]
    values.append(judged.get("ground_truth") if isinstance(judged, dict) else None)
    for value in values:
        if isinstance(value, str) and value.strip():
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
    return None


def chat(row: Row, column: str, value: Any) -> list[Message]:
    """Messages in the OpenAI form, or with `from` and `value`."""
    roles = {"human": "user", "gpt": "assistant"}
    messages: list[Message] = []
    for entry in value:
        role = entry.get("role", entry.get("from")) if isinstance(entry, dict) else None
        content = entry.get("content", entry.get("value")) if isinstance(entry, dict) else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise UserError(f"{row.place}: {column!r} holds {str(entry)[:80]!r}; expected a message: role and content")
        messages.append({"role": roles.get(role, role), "content": content})
    return messages
