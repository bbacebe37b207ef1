"""Search-R1 (arXiv 2503.09516): the model thinks, searches and answers within one turn.

It writes `<search>query</search>`; sampling stops there, the passages are put after it between `<information>` tags,
and the same turn goes on. What is retrieved is context and never trained. Three departures from the reference: the
sampled tokens stay as they are (it decodes, cuts and encodes them again), the turn after the last search tells the
model to answer (the reference lets it write a search that nobody runs), and passages that are too long for the room
share it (the reference cuts what comes last)."""

from __future__ import annotations

import re
import threading
from functools import cache

from aurify.environments.env import Step
from aurify.environments.multi_turn import MultiTurnEnvironment
from aurify.errors import UserError
from aurify.tools.search import Passage, Search, write_passages
from aurify.tools.tool import CallError
from aurify.types import Message, Task

INSTRUCTIONS = (
    "Answer the question below. Think between <think> and </think> whenever you learn something new. If you need to "
    "know more, write a query as <search> query </search>; what is found comes back between <information> and "
    "</information>, and you may search again. Then give a short answer between <answer> and </answer>, without an "
    "explanation, such as <answer> Lima </answer>. Question: "
)
SHORT_INSTRUCTIONS = (
    "Answer the question. To look something up, write <search> words </search>; what is found comes back between "
    "<information> and </information>. Then write <answer> answer </answer>. Question: "
)  # for small models: no thoughts
CORRECTION = (
    "\nThat was neither a search nor an answer. To search, write <search> query </search>. To answer, write "
    "<answer> answer </answer>.\n"
)
LAST_TURN = "\nNo searches are left. Write <answer> answer </answer> now.\n"
OPENING = threading.Lock()
MAX_CHARS = 2000  # of what a search brings back, shared by its passages
FOUND = re.compile(r"(\s*<information>.*?</information>\s*)", re.DOTALL)
ACTION = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)


class SearchR1(MultiTurnEnvironment):
    """The model searches within its turn, between `<search>` tags, as in Search-R1. kb, url, topk: see the tool
    `search`; neither kb nor url: no search at all, a control. max_searches: of a trajectory. max_chars: of what a
    search brings back, shared by its passages; one that is cut ends with "...". instructions: stand before the
    question."""

    stop = ("</search>", "</answer>")
    counts = ("searches", "searches_refused", "invalid_actions", "answers")

    @staticmethod
    def split_trace(text: str) -> list[Message]:
        """A written answer with searches inside: what stands between <information> tags is context, never a target."""
        pieces = [piece for piece in FOUND.split(text) if piece]
        messages: list[Message] = [
            {"role": "assistant", "content": piece, "weight": 0.0 if FOUND.fullmatch(piece) else 1.0, "goes_on": True}
            for piece in pieces
        ]
        messages[0].pop("goes_on")
        return messages

    def __init__(
        self,
        task: Task,
        kb: str | None = None,
        url: str | None = None,
        topk: int = 3,
        max_searches: int = 4,
        max_chars: int = MAX_CHARS,
        instructions: str = INSTRUCTIONS,
    ) -> None:
        super().__init__(task)
        if max_searches < 0 or max_chars < 1:
            raise UserError(f"search_r1: max_searches is {max_searches} and max_chars {max_chars}; at least 0 and 1")
        self.search = open_search(kb, url, topk) if kb or url else None
        self.left, self.max_chars, self.instructions = max_searches, max_chars, instructions

    def begin(self) -> list[Message]:
        *before, last = self.task.prompt
        return [*before, {**last, "content": self.instructions + last["content"]}]

    async def step(self, message: Message) -> Step:
        """message: what was sampled since the last step."""
        action = ACTION.search(message["content"])
        if action is None:
            return Step(continue_turn=CORRECTION, metrics={"invalid_actions": 1})
        kind, content = action[1], action[2].strip()
        if kind == "answer":
            return Step(done=True, metrics={"answers": 1})
        if self.left < 1 or self.search is None:
            return Step(continue_turn=LAST_TURN, metrics={"searches_refused": 1})
        self.left -= 1
        try:
            passages = await self.search.find(content)
        except CallError as error:
            return Step(continue_turn=f"\n{error}\n", metrics={"invalid_actions": 1})
        return Step(continue_turn=inform(passages, self.max_chars), metrics={"searches": 1})


def inform(passages: list[Passage], max_chars: int) -> str:
    """What is put into the turn."""
    return f"\n\n<information>{write_passages(passages, max_chars)}</information>\n\n"


def open_search(kb: str | None, url: str | None, topk: int) -> Search:
    """One for the process: trajectories share a knowledge base, and its embedder, also those that begin together."""
    with OPENING:
        return open_once(kb, url, topk)


@cache
def open_once(kb: str | None, url: str | None, topk: int) -> Search:
    return Search(kb, url, topk)
