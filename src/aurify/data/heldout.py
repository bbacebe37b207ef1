"""What is held out of training: the questions that a model is measured on.

Two questions are the same if their normal forms are: Unicode NFC, no difference of case, white space or the shape of
quotation marks. A question is what the user says; system prompts differ from file to file. Only where many prompts of
one set share what the user says ("Go."), so that it tells nothing, the system prompt belongs to the question.

A row asks a held-out question if one of its user turns, a line or paragraph of it, or all turns up to one of them
together, are one. Plain text is searched in the same way."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from aurify.data.example import Chat, Example, Pair, Text
from aurify.types import Message, Task

# curly quotation marks are straight ones; spaces without width, byte order marks and soft hyphens are nothing
SAME = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"", "\u200b\ufeff\u00ad")
LABEL = re.compile(r"(?:question|problem|query|instruction|input|prompt|user|human|q)\s*\d*\s*[:.]\s*")
PHRASE, FEW = 0.1, 3  # a share, and a number, of the prompts of a set: what so many have in common is no question


def normalise_question(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFC", text.translate(SAME))
    text = text.casefold()
    return " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())


def list_user_questions(messages: Sequence[Message]) -> list[str]:
    """What the user says; of a prompt without a user, what it has."""
    said = [message["content"] for message in messages if message["role"] == "user"]
    return said or [message["content"] for message in messages if message["role"] != "assistant"] or [""]


def normalise_prompt(messages: Sequence[Message]) -> str:
    """The normal form of all but answers."""
    return "\n".join(normalise_question(message["content"]) for message in messages if message["role"] != "assistant")


def question_keys(prompts: Sequence[Sequence[Message]]) -> list[tuple[str, bool]]:
    """What each prompt of a set asks, in normal form. True: it is the whole prompt, for the user's turns tell
    nothing."""
    keys = ["\n".join(map(normalise_question, list_user_questions(messages))) for messages in prompts]
    whole = [normalise_prompt(messages) for messages in prompts]
    shared = Counter(key for key, _ in set(zip(keys, whole, strict=True)))
    bound = max(FEW, PHRASE * len(set(whole)))
    return [(text, True) if shared[key] >= bound else (key, False) for key, text in zip(keys, whole, strict=True)]


def example_keys(examples: Sequence[Example]) -> list[str]:
    """What each example of a set asks, or the plain text that it is, in normal form."""
    keys = iter(question_keys([example.prompt for example in examples if not isinstance(example, Text)]))
    return [normalise_question(example.text) if isinstance(example, Text) else next(keys)[0] for example in examples]


@dataclass(frozen=True)
class HeldOut:
    """Questions that must not be trained, each with who holds it out."""

    questions: dict[str, str] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)  # whole ones, where the user's turns tell nothing

    def add(self, prompts: Sequence[Sequence[Message]], holder: str, *, last_turn: bool = False) -> None:
        """All prompts of one set. last_turn: what comes last is a question of its own too, for worked examples may
        stand before it."""
        keys = question_keys(prompts)
        for key, is_whole in keys:
            (self.prompts if is_whole else self.questions).setdefault(key, holder)
        if last_turn:
            last = [normalise_question(list_user_questions(messages)[-1]) for messages in prompts]
            num = Counter(text for text, _ in set(zip(last, keys, strict=True)))
            for text, (_, is_whole) in zip(last, keys, strict=True):
                if text and not is_whole and num[text] == 1:
                    self.questions.setdefault(text, holder)

    def add_examples(self, examples: Sequence[Example], holder: str) -> None:
        self.add([example.prompt for example in examples if not isinstance(example, Text)], holder)
        for example in examples:
            if isinstance(example, Text):
                self.questions.setdefault(normalise_question(example.text), holder)

    def __bool__(self) -> bool:
        return bool(self.questions or self.prompts)

    def holder(self, messages: Sequence[Message], first: int = 0, but: Collection[str] = ()) -> str | None:
        """Who holds out what these messages ask; None: nobody. first: the messages before it are context, so only the
        last question among them is looked at. but: who does not count."""
        found = (self.questions.get(key) for key in list_turn_questions(messages, first))
        whole = (self.prompts.get(key) for key in (list_whole_prompts(messages) if self.prompts else ()))
        return first_heldout_holder(chain(found, whole), but)

    def holder_of_example(self, example: Example, but: Collection[str] = ()) -> str | None:
        if isinstance(example, Text):
            return first_heldout_holder(
                (self.questions.get(key) for key in normalise_question_parts(example.text)), but
            )
        if isinstance(example, Chat):
            return self.holder(example.messages, but=but)
        sides = (example.chosen, example.rejected) if isinstance(example, Pair) else (example.completion,)
        return first_heldout_holder(
            (self.holder([*example.prompt, *side], len(example.prompt), but) for side in sides), but
        )


def first_heldout_holder(holders: Iterable[str | None], but: Collection[str]) -> str | None:
    return next((holder for holder in holders if holder is not None and holder not in but), None)


def heldout_tasks(tasks: Sequence[Task], holder: str = "the task") -> HeldOut:
    result = HeldOut()
    result.add([task.prompt for task in tasks], holder, last_turn=True)
    return result


def list_turn_questions(messages: Sequence[Message], first: int = 0) -> Iterator[str]:
    """Each user turn and its parts; all turns up to one of them, together."""
    turns = list_user_questions(messages)
    skipped = max(0, len(list_user_questions(messages[:first])) - 1) if first else 0
    for turn in turns[skipped:]:
        yield from normalise_question_parts(turn)
    forms = list(map(normalise_question, turns)) if len(turns) > 1 else []
    yield from ("\n".join(forms[:num]) for num in range(max(2, skipped + 1), len(forms) + 1))


def list_whole_prompts(messages: Sequence[Message]) -> Iterator[str]:
    """The whole prompt before each turn of the assistant, and in all."""
    ends = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    yield from (normalise_prompt(messages[:end]) for end in (*ends, len(messages)))


def normalise_question_parts(text: str) -> Iterator[str]:
    """The normal forms of a text, of its paragraphs and of its lines, without a label such as "Question:"."""
    parts = [text]
    if "\n" in text:
        parts += [*re.split(r"\n\s*\n", text), *text.split("\n")]
    for part in parts:
        form = normalise_question(part)
        if form:
            yield form
            label = LABEL.match(form)
            if label is not None:
                yield form[label.end() :]
