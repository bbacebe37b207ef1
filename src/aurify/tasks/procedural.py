"""Small problems made by the dozen, easy to hard: enough to see a method learn on a laptop, without any download."""

from __future__ import annotations

import operator
import random

from aurify.errors import UserError
from aurify.rewards.rubric import Rubric
from aurify.rewards.text import exact_match
from aurify.tasks.taskset import Problem, TaskSet, generated

WORDS = (
    "apple river stone window garden silver thunder pencil orange winter bottle forest mirror summer rocket candle "
    "island monkey basket copper falcon hammer jacket kitten ladder market needle oyster pepper quartz ribbon saddle "
    "teapot umbrella velvet walnut yellow zipper anchor button cherry dragon engine feather ginger harbor"
).split()


def in_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UserError(f"task.{name}: {value} is out of range; it must be from {low} to {high}")


def largest_number(count: int = 5, maximum: int = 99, num_heldout: int = 200) -> TaskSet:
    """The largest of `count` different numbers from 1 to `maximum`."""
    in_range("count", count, 2, maximum)

    def make(generator: random.Random) -> Problem:
        numbers = generator.sample(range(1, maximum + 1), count)
        listing = ", ".join(map(str, numbers))
        return Problem(f"Which is the largest of these numbers: {listing}? Answer with the number.", str(max(numbers)))

    return generated("largest_number", make, num_heldout=num_heldout)


def arithmetic(digits: int = 1, operators: str = "+", num_heldout: int = 20) -> TaskSet:
    """a op b with numbers of up to `digits` digits; operators: some of + - *"""
    in_range("digits", digits, 1, 9)
    known = {"+": operator.add, "-": operator.sub, "*": operator.mul}
    if not operators or set(operators) - set(known):
        raise UserError(f"task.operators: {operators!r} must be made of some of '+', '-' and '*', such as '+-'")

    def make(generator: random.Random) -> Problem:
        a, b = (generator.randrange(10**digits) for _ in range(2))
        sign = generator.choice(operators)
        return Problem(f"What is {a} {sign} {b}? Answer with the number.", str(known[sign](a, b)))

    return generated("arithmetic", make, num_heldout=num_heldout)


def sorting(count: int = 4, maximum: int = 99, num_heldout: int = 200) -> TaskSet:
    """`count` numbers in ascending order, written with commas."""
    in_range("count", count, 2, maximum)

    def make(generator: random.Random) -> Problem:
        numbers = generator.sample(range(1, maximum + 1), count)
        asked = f"Sort these numbers from small to large: {', '.join(map(str, numbers))}. Answer with the sorted list."
        return Problem(asked, ", ".join(map(str, sorted(numbers))))

    return generated("sorting", make, num_heldout=num_heldout, rubric=Rubric([exact_match]))


def count_letters(num_heldout: int = 50) -> TaskSet:
    """How often a letter stands in a word."""

    def make(generator: random.Random) -> Problem:
        word = generator.choice(WORDS)
        letter = generator.choice(sorted(set(word)) + ["e", "t"])
        asked = f"How many times does the letter '{letter}' occur in the word '{word}'? Answer with the number."
        return Problem(asked, str(word.count(letter)))

    return generated("count_letters", make, num_heldout=num_heldout)


def reverse_words(count: int = 3, num_heldout: int = 200) -> TaskSet:
    """A few words in reverse order."""
    in_range("count", count, 2, len(WORDS))

    def make(generator: random.Random) -> Problem:
        words = generator.sample(WORDS, count)
        return Problem(f"Write these words in reverse order: {' '.join(words)}", " ".join(reversed(words)))

    return generated("reverse_words", make, num_heldout=num_heldout, rubric=Rubric([exact_match]))
