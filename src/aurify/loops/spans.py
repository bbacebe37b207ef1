"""Trajectories as text for people: who wrote each part, and with which advantage it was trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, cast

from aurify.renderer.survey import template_spellings
from aurify.types import Author, Group, Message, Segment, Span, Trajectory

UNFINISHED = "\ufffd"  # stands for bytes that are not a whole character yet
NUM_BEFORE = 4  # tokens that a text is decoded after: some tokenizers drop a space at the beginning


def write_spans(groups: Sequence[Group], tokenizer: Any) -> None:
    """Gives each trajectory its spans."""
    for group in groups:
        for trajectory in group.trajectories:
            trajectory.spans = list(merge_spans(make_spans(trajectory, tokenizer)))


def make_spans(trajectory: Trajectory, tokenizer: Any) -> Iterator[Span]:
    """What follows the prompt. Where the template wrote the conversation anew, in a further row, only what is new is
    shown."""
    messages, position, before = list(trajectory.completion), 0, list[int]()
    for number, segment in enumerate(trajectory.segments):
        begin, position = position, position + len(segment.tokens)
        if segment.origin in ("policy", "guidance"):
            author = cast(Author, segment.origin)
            for tokens, advantage in split_by_advantage(segment, trajectory.advantages, begin, tokenizer):
                yield Span(decode_after(before, tokens, tokenizer), author, advantage)
                before = [*before, *tokens][-NUM_BEFORE:]
        elif number:
            contents = take_span_contents(messages)
            if segment.origin == "prompt":
                yield Span(f"[the template writes the conversation anew: {len(segment.tokens)} tokens]", "template")
                yield from (part for text in contents for part in (Span("\n", "template"), Span(text, "environment")))
            else:
                yield from split_by_content(decode_after(before, segment.tokens, tokenizer), contents)
        before = segment.tokens[-NUM_BEFORE:] or before


def take_span_contents(messages: list[Message]) -> list[str]:
    """Removes the policy's next message and those that the environment said after it, and returns these."""
    while messages and is_own_span(messages[0]):
        messages.pop(0)
    contents = []
    while messages and not is_own_span(messages[0]):
        contents.append(messages.pop(0)["content"])
    return contents


def is_own_span(message: Message) -> bool:
    return message["role"] == "assistant" and bool(message.get("weight", 1.0))


def split_by_advantage(
    segment: Segment, advantages: Sequence[float] | None, begin: int, tokenizer: Any
) -> list[tuple[list[int], float | None]]:
    """Neighbouring tokens with one advantage together. A character that spans several tokens stays whole: it has the
    advantage of the first. begin: where the segment begins in the advantages."""
    if advantages is None:
        return [(segment.tokens, None)]
    values = [float(f"{value:.3g}") for value in advantages[begin : begin + len(segment.tokens)]]
    pairs = zip(values, segment.tokens, strict=True)
    pieces: list[tuple[list[int], float | None]] = []
    for value, run in groupby(pairs, key=lambda pair: pair[0]):
        tokens = [token for _, token in run]
        while pieces and tokens and tokenizer.decode(pieces[-1][0][-NUM_BEFORE:]).endswith(UNFINISHED):
            pieces[-1][0].append(tokens.pop(0))
        if tokens:
            pieces.append((tokens, value))
    return pieces


def decode_after(before: Sequence[int], tokens: Sequence[int], tokenizer: Any) -> str:
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    known = tokenizer.decode(list(before), **options)
    text = tokenizer.decode([*before, *tokens], **options)
    return text[len(known) :] if text.startswith(known) else tokenizer.decode(list(tokens), **options)


def split_by_content(text: str, contents: Sequence[str]) -> Iterator[Span]:
    """What an environment said, and what the template wrote around it. All of it is the environment's where none of it
    is found."""
    position, found = 0, False
    for content in contents:
        way = next((way for way in template_spellings(content) if way.strip() and text.find(way, position) >= 0), None)
        if way is not None:
            begin, found = text.index(way, position), True
            yield Span(text[position:begin], "template")
            yield Span(way, "environment")
            position = begin + len(way)
    said = found or not any(content.strip() for content in contents)
    yield Span(text[position:], "template" if said else "environment")


def merge_spans(spans: Iterator[Span]) -> Iterator[Span]:
    """Neighbours that look the same together, and none that is empty."""
    for (author, advantage), run in groupby(spans, key=lambda span: span[1:]):
        if text := "".join(span.text for span in run):
            yield Span(text, author, advantage)
