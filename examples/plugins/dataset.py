"""A data set of one's own: a function that gives rows, in any form that a file may have too.

    data: {dataset: {name: corrected, task: odd_or_even, num: 400}}

It is called when a stage begins, and may return a list or yield one row after the other. A function whose first
parameter is `row` filters the rows of any source, or changes them:

    data: {path: rows.jsonl, filters: [{name: answered_with, words: [odd, even]}]}"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import aurify


@aurify.dataset
def corrected(task: str, num: int = 400, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Conversations about the training tasks of a task set; in every second one the first answer is wrong, as if given
    to another task, and put right after a "No."."""
    generator = random.Random(seed)
    tasks = list(islice(aurify.make_task(task).train(seed), num))  # never held-out ones
    for number in range(num):
        asked, other = generator.choice(tasks), generator.choice(tasks)
        messages: list[Any] = list(asked.prompt)
        if number % 2 and other.answer != asked.answer:
            messages += [{"role": "assistant", "content": other.answer}, {"role": "user", "content": "No."}]
        yield {"messages": [*messages, {"role": "assistant", "content": asked.answer}]}


@aurify.dataset
def answered_with(row: Mapping[str, Any], words: list[str]) -> bool:
    """A filter: the conversation ends in one of these words. A map would return the new row."""
    return row["messages"][-1]["content"] in words
