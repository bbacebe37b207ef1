"""Rewards of an agent that retrieves (github.com/chankahei/OpenReinforcedAgent): they need a retriever or an embedder.
Two departures: documents are counted once, however many of their passages stand before the right one; and likeness is
stretched from where unrelated texts lie, since cosines of an embedder fill a small part of [0, 1]."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, Literal

from aurify.environments.search_r1 import ACTION, open_search
from aurify.errors import UserError
from aurify.knowledge.embedding import MINILM, load_embedder
from aurify.rewards.answers import read_gold_answers, take_answer
from aurify.rewards.search import TAGS, read_last_answer
from aurify.tools.calls import read_tool_calls
from aurify.tools.tool import CallError
from aurify.types import Task, Trajectory

Which = Literal["first", "last", "best"]
EMBEDDING = threading.Lock()


def list_queries(trajectory: Trajectory) -> list[str]:
    """What the policy searched for, in <search> tags or by a tool with a `query`, as far as it was answered."""
    queries, said = list[str](), trajectory.completion
    for message, following in pairwise(said):
        content = message["content"]
        if message["role"] != "assistant" or not message.get("weight", 1.0):
            continue
        action = ACTION.search(content)
        if action is not None and action[1] == "search" and "<information>" in following["content"]:
            queries.append(action[2].strip())
        elif trajectory.tools and following["role"] == "tool":
            calls = read_tool_calls(content, trajectory.tools)
            queries += [str(q) for call in calls if (q := call["function"]["arguments"].get("query"))]
    return queries


def retrieval_mrr(
    kb: str | None = None, url: str | None = None, topk: int = 5, which: Which = "first"
) -> Callable[[Task, Trajectory], Any]:
    """1 / the rank of the first right document among those that a search finds; 0 without it, or without a search. The
    task's column `documents` names the right ones. which: of several searches, the first, the last, or the best."""

    async def rank(query: str, right: set[str]) -> float:
        try:
            passages = await open_search(kb, url, topk).find(query)
        except CallError:
            return 0.0
        found = list(dict.fromkeys(passage.document for passage in passages))
        return next((1 / rank for rank, document in enumerate(found, 1) if document in right), 0.0)

    async def reward(task: Task, trajectory: Trajectory) -> float | None:
        if not (right := set(task.info.get("documents") or ())):
            return None
        queries = list_queries(trajectory)
        chosen = queries if which == "best" else queries[:1] if which == "first" else queries[-1:]
        return max([await rank(query, right) for query in chosen], default=0.0)

    return reward


def answer_similarity(
    embedder: str = MINILM, low: float = 0.2, tags: bool = True
) -> Callable[[Task, Trajectory], float | None]:
    """The cosine of the answer with the right one, the best of several; what lies between `low` and 1 becomes 0 to 1.
    low: what unrelated texts have, about 0.2 with MiniLM and 0.7 with E5. tags: the answer stands between <answer>
    tags, else it is the reply after its thoughts."""
    if not 0 <= low < 1:
        raise UserError(f"reward 'answer_similarity': low is {low}; it must be at least 0 and below 1")

    def reward(task: Task, trajectory: Trajectory) -> float | None:
        golds = read_gold_answers(task)
        if not golds:
            return None
        answer = read_last_answer(trajectory) if tags else take_answer(trajectory)
        if not answer or not TAGS.sub("", answer).strip():
            return 0.0
        with EMBEDDING:
            vectors = open_embedder(embedder).embed_documents([answer, *golds])
        cosine = float((vectors[1:] @ vectors[0]).max())
        return min(1.0, max(0.0, (cosine - low) / (1 - low)))

    return reward


@cache
def open_embedder(name: str) -> Any:
    return load_embedder(name)
