"""Small problems made by the dozen: enough to see a method learn on a laptop, without any download. The options of each
set how hard it is."""

from __future__ import annotations

import operator
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from string import ascii_lowercase
from typing import Any

from aurify.errors import UserError
from aurify.rewards.math import numbers_match
from aurify.rewards.rubric import Rubric
from aurify.rewards.text import exact_match
from aurify.tasks.taskset import Problem, TaskSet, generated
from aurify.types import Message, Task

# fmt: off
WORDS = [
    "apple", "river", "stone", "window", "garden", "silver", "thunder", "pencil", "orange", "winter", "bottle",
    "forest", "mirror", "summer", "rocket", "candle", "island", "monkey", "basket", "copper", "falcon", "hammer",
    "jacket", "kitten", "ladder", "market", "needle", "oyster", "pepper", "quartz", "ribbon", "saddle", "teapot",
    "umbrella", "velvet", "walnut", "yellow", "zipper", "anchor", "button", "cherry", "dragon", "engine", "feather",
    "ginger", "harbor",
]
# fmt: on


def check_task_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UserError(f"task.{name}: {value} is out of range; it must be from {low} to {high}")


def largest_number(count: int = 5, maximum: int = 99, num_heldout: int = 200) -> TaskSet:
    """The largest of `count` different numbers from 1 to `maximum`."""
    check_task_range("count", count, 2, maximum)

    def make(generator: random.Random) -> Problem:
        numbers = generator.sample(range(1, maximum + 1), count)
        listing = ", ".join(map(str, numbers))
        return Problem(f"Which is the largest of these numbers: {listing}? Answer with the number.", str(max(numbers)))

    return generated("largest_number", make, num_heldout=num_heldout)


def arithmetic(digits: int = 1, operators: str = "+", num_heldout: int | None = None) -> TaskSet:
    """a op b with numbers of up to `digits` digits; operators: some of + - *. Held out: a fifth, at most 200."""
    check_task_range("digits", digits, 1, 9)
    known = {"+": operator.add, "-": operator.sub, "*": operator.mul}
    if not operators or set(operators) - set(known):
        raise UserError(f"task.operators: {operators!r} must be made of some of '+', '-' and '*', such as '+-'")
    if num_heldout is None:
        num_heldout = min(200, 100**digits * len(set(operators)) // 5)

    def make(generator: random.Random) -> Problem:
        a, b = (generator.randrange(10**digits) for _ in range(2))
        sign = generator.choice(operators)
        return Problem(f"What is {a} {sign} {b}? Answer with the number.", str(known[sign](a, b)))

    return generated("arithmetic", make, num_heldout=num_heldout)


def addition(digits: int = 3, num_heldout: int = 200) -> TaskSet:
    """a + b with numbers of exactly `digits` digits. Its demonstration adds column by column, from the right."""
    check_task_range("digits", digits, 1, 9)
    num_heldout = min(num_heldout, (9 * 10 ** (digits - 1)) ** 2 // 5)

    def make(generator: random.Random) -> Problem:
        a, b = (generator.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
        return Problem(f"What is {a} + {b}? Add digit by digit from the right, then give the sum.", str(a + b))

    taskset = generated("addition", make, num_heldout=num_heldout)
    return replace(taskset, demonstration=add_by_columns)


def add_by_columns(task: Task) -> str:
    """247 + 385 -> "7+5=12, 4+8+1=13, 2+3+1=6, so 632": short, and each part says what the next one needs."""
    a, b = re.findall(r"\d+", task.prompt[-1]["content"])[:2]
    parts, carry = [], 0
    for x, y in zip(reversed(a), reversed(b), strict=True):
        total = int(x) + int(y) + carry
        parts.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        carry = total // 10
    return f"{', '.join(parts)}, so {task.answer}"


def multiplication(digits: int = 3, num_heldout: int = 200) -> TaskSet:
    """a * b with numbers of exactly `digits` digits: what a small model cannot do in its head, and a tool can. With
    `tools` its demonstration calls the first tool that takes an expression or two numbers."""
    check_task_range("digits", digits, 1, 9)
    num_heldout = min(num_heldout, (9 * 10 ** (digits - 1)) ** 2 // 5)

    def make(generator: random.Random) -> Problem:
        a, b = (generator.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
        return Problem(f"What is {a} times {b}?", str(a * b))

    taskset = generated("multiplication", make, num_heldout=num_heldout)
    return replace(taskset, tool_demonstration=demonstrate_product)


def demonstrate_product(task: Task, tools: Sequence[dict[str, Any]]) -> list[Message] | None:
    """A call, its result, and the answer. None: no tool takes an expression, or two numbers and nothing else."""
    a, b = map(int, re.findall(r"\d+", task.prompt[-1]["content"])[:2])
    for tool in tools:
        function = tool["function"]
        parameters = list(function["parameters"].get("properties", {}))
        arguments: dict[str, Any] = {"expression": f"{a} * {b}"}
        if parameters != ["expression"]:
            if len(parameters) != 2:
                continue
            arguments = dict(zip(parameters, (a, b), strict=True))
        called = {"id": "call00001", "type": "function", "function": {"name": function["name"], "arguments": arguments}}
        return [
            {"role": "assistant", "content": "", "tool_calls": [called]},
            {"role": "tool", "content": str(task.answer), "name": function["name"], "tool_call_id": "call00001"},
            {"role": "assistant", "content": f"{a} times {b} is {task.answer}."},
        ]
    return None


def sorting(count: int = 4, maximum: int = 99, num_heldout: int = 200) -> TaskSet:
    """`count` different numbers from 1 to `maximum` in ascending order."""
    check_task_range("count", count, 2, maximum)

    def make(generator: random.Random) -> Problem:
        numbers = generator.sample(range(1, maximum + 1), count)
        listing = ", ".join(map(str, numbers))
        answer = ", ".join(map(str, sorted(numbers)))
        return Problem(f"Sort these numbers from small to large: {listing}. Answer with the sorted numbers.", answer)

    return generated("sorting", make, num_heldout=num_heldout, rubric=Rubric([numbers_match]))


def count_letters(words: int = 2, num_heldout: int = 200) -> TaskSet:
    """How often a letter stands in a few words. All counts that occur are equally likely, so that no guess pays."""
    check_task_range("words", words, 1, len(WORDS))

    def make(generator: random.Random) -> Problem:
        text = " ".join(generator.sample(WORDS, words))
        counts = {letter: text.count(letter) for letter in ascii_lowercase}
        count = generator.choice(sorted(set(counts.values())))
        letter = generator.choice([letter for letter in counts if counts[letter] == count])
        return Problem(f"How many times is the letter {letter} in '{text}'? Answer with the number.", str(count))

    return generated("count_letters", make, num_heldout=num_heldout)


def reverse_words(count: int = 3, num_heldout: int = 200) -> TaskSet:
    """`count` words in reverse order."""
    check_task_range("count", count, 2, len(WORDS))

    def make(generator: random.Random) -> Problem:
        words = generator.sample(WORDS, count)
        return Problem(f"Write these words in reverse order: {' '.join(words)}", " ".join(reversed(words)))

    return generated("reverse_words", make, num_heldout=num_heldout, rubric=Rubric([exact_match]))
