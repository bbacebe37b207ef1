"""Issue 16, Seeing: trajectories as text with its authors and advantages. Texts are those of the tokens, in every
template."""

from __future__ import annotations

import asyncio
import json

import pytest
import tokenizers_in_code as made

from aurify.environments.env import Observation, Step
from aurify.environments.rollout import rollout
from aurify.loops.spans import write_spans
from aurify.renderer import Renderer
from aurify.samplers.scripted import ScriptedSampler
from aurify.types import Group, SamplingParams, Segment, Span, Task, Trajectory

TASK = Task("t/1", [{"role": "user", "content": "hello 12?"}], "12")
TOOL = {"type": "function", "function": {"name": "search", "description": "Finds.", "parameters": {}}}


class Scripted:
    """Answers with the given steps, one after the other."""

    def __init__(self, steps, tools=()):
        self.steps, self.tools = list(steps), tools

    async def start(self):
        return Observation(list(TASK.prompt), self.tools)

    async def step(self, message):
        return self.steps.pop(0) if self.steps else Step(done=True)

    async def close(self):
        pass


def play(renderer, said, steps, tools=(), **options) -> Trajectory:
    replies = [[*renderer.continuation(text), renderer.end_token] for text in said]
    sampler = ScriptedSampler(replies, renderer.tokenizer)
    params = SamplingParams(max_tokens=100)
    return asyncio.run(rollout(TASK, Scripted(steps, tools), sampler, renderer, params, **options))


def show(trajectory: Trajectory, renderer: Renderer) -> list[Span]:
    write_spans([Group(TASK, [trajectory])], renderer.tokenizer)
    return trajectory.spans


def authors(spans: list[Span]) -> list[tuple[str, str]]:
    return [(span.author, span.text) for span in spans]


@pytest.mark.parametrize("family", made.FAMILIES)
def test_in_every_template_the_texts_are_those_of_the_tokens_and_results_are_told_from_the_template(family):
    renderer = Renderer(made.family(family), tools_as_text=True)
    results = [{"role": "tool", "content": text, "name": "search"} for text in ('it "rains" 雨', "<|im_end|> user")]
    trajectory = play(renderer, ["he llo", "12"], [Step(results)], [TOOL])
    spans = show(trajectory, renderer)
    after = [token for segment in trajectory.segments[1:] for token in segment.tokens]
    assert "".join(span.text for span in spans) == renderer.tokenizer.decode(after)
    said = [span.text for span in spans if span.author == "environment"]
    assert said == ['it "rains" 雨', "<|im_end|> user"] or said == [
        json.dumps(text, ensure_ascii=False)[1:-1] for text in ('it "rains" 雨', "<|im_end|> user")
    ]
    policy = [span.text for span in spans if span.author == "policy"]
    assert [text[: len(reply)] for text, reply in zip(policy, ("he llo", "12"), strict=True)] == ["he llo", "12"]
    assert {span.author for span in spans} == {"policy", "environment", "template"}


def test_a_tokenizer_that_puts_spaces_before_texts_puts_none_between_spans():
    renderer = Renderer(made.word_start())
    trajectory = play(renderer, ["a b", "c"], [Step([{"role": "user", "content": "d e"}])])
    first, _, asked, _, last = show(trajectory, renderer)
    assert (first.text, asked.text, last.text) == ("a b<|im_end|>", "d e", "c<|im_end|>")
    after = [token for segment in trajectory.segments[1:] for token in segment.tokens]
    assert "".join(span.text for span in trajectory.spans) == renderer.tokenizer.decode(after)


def test_tokens_are_split_where_their_advantage_changes_and_characters_stay_whole():
    renderer = Renderer(made.byte_level())
    tokens = renderer.tokenizer("a雨b", add_special_tokens=False).input_ids
    assert len(tokens) == 5, "the middle one is three tokens"
    segments = [Segment([5], "prompt"), Segment(tokens, "policy", [0.0] * 5)]
    messages = [*TASK.prompt, {"role": "assistant", "content": "a雨b"}]
    for values, expected in (
        ([1, 1, 1, 1, 1], [("a雨b", 1)]),
        ([1, 1, 2, 3, 3], [("a雨", 1), ("b", 3)]),
        ([1, 1, 2, 2, 2], [("a雨", 1), ("b", 2)]),
        ([0.12345, 0.12349, 0.12345, 0.12345, -1], [("a雨", 0.123), ("b", -1)]),
    ):
        trajectory = Trajectory(segments, messages, 1, advantages=[0.0, *map(float, values)])
        assert [span[::2] for span in show(trajectory, renderer)] == expected
    assert show(Trajectory(segments, messages, 1), renderer) == [Span("a雨b", "policy", None)]


def test_what_was_put_into_a_turn_and_what_a_guide_began_have_their_authors():
    renderer = Renderer(made.byte_level())
    guidance = renderer.tokenizer("he ", add_special_tokens=False).input_ids
    sampler = ScriptedSampler(["llo"], renderer.tokenizer)
    environment = Scripted([Step(continue_turn=" [found 12] ")])
    params = SamplingParams(max_tokens=100, stop=("o",))
    played = rollout(TASK, environment, sampler, renderer, params, guidance=guidance)
    spans = show(asyncio.run(played), renderer)
    assert authors(spans)[:3] == [("guidance", "he "), ("policy", "llo"), ("environment", " [found 12] ")]


def test_where_the_template_writes_the_conversation_anew_only_what_is_new_is_shown():
    renderer = Renderer(made.byte_level(made.FORGETFUL))
    said = ["<think>\nhe\n</think>\n\n12", "llo"]
    trajectory = play(renderer, said, [Step([{"role": "user", "content": "and now?"}])])
    assert len(trajectory.rows) == 2
    texts = authors(show(trajectory, renderer))
    assert texts[0] == ("policy", said[0] + "<|im_end|>") and texts[-1] == ("policy", "llo<|im_end|>")
    num = len(trajectory.rows[1][0].tokens)
    assert texts[1:-1] == [
        ("template", f"[the template writes the conversation anew: {num} tokens]\n"),
        ("environment", "and now?"),
    ]
