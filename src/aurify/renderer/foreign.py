"""Keeps control tokens out of foreign text: contents of messages, arguments of calls, descriptions of tools.

Tokenizers read "<|im_end|>" as the control token wherever it occurs, so a tool that prints it would end its own turn.
Before a template sees a message, such a text is replaced by a word that occurs nowhere else. When the rendered text is
encoded, it is cut after the first character of each such text, so that the tokenizer reads ordinary characters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, cast

from aurify.thoughts import CLOSINGS
from aurify.types import Message

T = TypeVar("T")
THOUGHT_TAGS = frozenset({*CLOSINGS, *CLOSINGS.values()})
# end tokens of families of models: data sets made for one of them close answers with it
END_TEXTS = (
    "<|im_end|>", "<|endoftext|>", "</s>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "<|end|>",
    "<|eom_id|>", "<|return|>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
)  # fmt: skip
# tokens of families of models that begin a text
BEGIN_TEXTS = (
    "<|begin_of_text|>",
    "<bos>",
    "<|endoftext|>",
    "<|startoftext|>",
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
)


@dataclass(frozen=True)
class ControlTokens:
    """The control tokens of a tokenizer and a template: text -> id."""

    special: dict[str, int]  # special tokens of the tokenizer
    markers: dict[str, int]  # other added tokens that the template writes, and tags around thoughts

    @classmethod
    def of(cls, tokenizer: Any, source: str) -> ControlTokens:
        """source: the template's. Added tokens that it does not name, such as runs of spaces, are ordinary text."""
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = {str(entry): token for token, entry in added.items() if entry.special}
        special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        others = {str(entry): token for token, entry in added.items() if str(entry) not in special}
        named = {text: token for text, token in others.items() if text in source or text in THOUGHT_TAGS}
        markers = {text: token for text, token in named.items() if len(text) > 2 and not text[0].isspace()}
        return cls({text: token for text, token in special.items() if len(text) > 1}, markers)

    @cached_property
    def all(self) -> dict[str, int]:
        return {**self.special, **self.markers}

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return compile_token_pattern(self.all)

    @cached_property
    def ids(self) -> frozenset[int]:
        return frozenset(self.all.values())


def compile_token_pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds the longest of the texts, as tokenizers do."""
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)")


def find_unused_mark(word: str, *values: Any) -> str:
    """A word of letters that none of the values contains."""
    texts = [text for value in values for text in list_rendered_strings(value)]
    while any(word in text for text in texts):
        word += "x"
    return word


def list_rendered_strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from list_rendered_strings(key)
            yield from list_rendered_strings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from list_rendered_strings(inner)


class Shield:
    """Hides control tokens in foreign text, and cuts rendered text where they were."""

    def __init__(self, patterns: Mapping[str, re.Pattern[str]], *values: Any) -> None:
        """patterns: what to hide, by role; "" is for all other text. values: everything that will be hidden or
        rendered, so that the words for it occur in none of them."""
        self.patterns, self.values = patterns, values
        self.hidden: list[str] = []

    @cached_property
    def word(self) -> str:
        return find_unused_mark("aurifyhidden", *self.values)

    def hide(self, value: T, role: str = "") -> T:
        """Replaces control tokens by words, in all strings that the value holds."""
        if isinstance(value, str):
            return self.patterns.get(role, self.patterns[""]).sub(self._replace, value)  # type: ignore[return-value]
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(inner) for key, inner in value.items()}  # type: ignore[return-value]
        if isinstance(value, (list, tuple)):
            return [self.hide(inner) for inner in value]  # type: ignore[return-value]
        return value

    def hide_messages(self, messages: Sequence[Message]) -> list[Message]:
        return [self._hide_message(message) for message in messages]

    def _hide_message(self, message: Message) -> Message:
        return cast(Message, {key: self._hide_value(key, value, message["role"]) for key, value in message.items()})

    def _hide_value(self, key: str, value: Any, role: str) -> Any:
        if key in ("role", "weight", "goes_on"):
            return value
        if key == "pieces":  # of a turn that went on: what was put into it is foreign
            return [(self.hide(text, role if weight else "tool"), weight) for text, weight in value]
        return self.hide(value, role if key == "content" else "")

    def pieces(self, text: str) -> list[str]:
        """Restores the text, cut so that no piece contains a hidden control token."""
        if not self.hidden:
            return [text]
        pieces, position = [""], 0
        for found in re.finditer(rf"{self.word}(\d+)q", text):
            original = self.hidden[int(found[1])]
            pieces[-1] += text[position : found.start()] + original[0]
            pieces.append(original[1:])
            position = found.end()
        pieces[-1] += text[position:]
        return pieces

    def _replace(self, found: re.Match[str]) -> str:
        if found[0] not in self.hidden:
            self.hidden.append(found[0])
        return f"{self.word}{self.hidden.index(found[0])}q"
