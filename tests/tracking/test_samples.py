"""Lines of samples.jsonl as conversations, and on the console."""

from __future__ import annotations

import io

import pytest
from rich.console import Console as RichConsole

from aurify.tracking.samples import (
    describe_sample_outcome,
    describe_sample_turn,
    find_largest_advantage,
    record_sample,
    split_sample_blocks,
)
from aurify.tracking.trackers.console import Console
from aurify.types import Group, Segment, Span, Task, Trajectory, Turn

ESCAPE = "\x1b"
TASK = Task("t", [{"role": "user", "content": "2 times 3?"}], "6")
CALL, RESULT, ANSWER = "<tool_call>2*3</tool_call>", "six", "It is 6."
SPANS = [
    Span(f"{CALL}<|im_end|>", "policy", 1.5),
    Span("\n<|im_start|>user\n", "template"),
    Span(RESULT, "environment"),
    Span("<|im_end|>\n<|im_start|>assistant\n", "template"),
    Span("It is ", "policy", -0.25),
    Span("6.<|im_end|>", "policy", 0.5),
]


def conversation(spans=SPANS, **options) -> Trajectory:
    said = {"role": "assistant", "content": CALL}, {"role": "tool", "content": RESULT}
    messages = [*TASK.prompt, *said, {"role": "assistant", "content": ANSWER}]
    turns = [Turn(5, 0.1, 0.2, 7, {"called": 1.0, "void": None}), Turn(6, 0.1)]
    known = {"turns": turns, "tools": [{"type": "function", "function": {"name": "calculator"}}]} | options
    return Trajectory([Segment([1] * 11, "policy")], messages, 1, {"match": 1.0}, 1.0, spans=list(spans), **known)


def blocks(trajectory: Trajectory):
    return split_sample_blocks(record_sample(Group(TASK, [trajectory]), trajectory))


def show(trajectories, **options) -> str:
    stream = io.StringIO()
    console = Console(RichConsole(file=stream, width=100, highlight=False, **options))
    console.show_samples = True
    console.samples(1, [Group(TASK, trajectories)])
    return stream.getvalue()


def test_a_conversation_is_told_turn_by_turn():
    found = blocks(conversation())
    assert [(block.role, block.said) for block in found] == [
        ("user", False), ("assistant", True), ("tool", False), ("assistant", True)
    ]  # fmt: skip
    assert [list(block.facts) for block in found] == [
        [], ["advantage +1.5", "called 1", "5 tokens"], ["7 tokens"], ["advantage -0.25 to +0.5", "6 tokens"]
    ]  # fmt: skip
    assert [span for block in found[1:] for span in block.spans] == SPANS
    assert find_largest_advantage(found) == 1.5 and find_largest_advantage([]) == 0


def test_a_line_names_the_tools_and_holds_what_is_shown():
    line = record_sample(Group(TASK, []), conversation())
    assert line["tools"] == ["calculator"] and line["spans"] == [list(span) for span in SPANS]
    assert line["num_prompt_messages"] == 1


def test_a_line_of_an_older_run_shows_its_messages():
    line = record_sample(Group(TASK, []), conversation([]))
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    old = {key: line[key] for key in ("reward", "rewards", "tokens", "truncated")} | {"messages": [*TASK.prompt, call]}
    assert [(block.role, block.said, block.spans[0].text) for block in split_sample_blocks(old)] == [
        ("user", False, "2 times 3?"), ("assistant", True, '[{"name": "f"}]')
    ]  # fmt: skip
    assert describe_sample_outcome(old) == "done" and describe_sample_outcome(old | {"truncated": True}) == "cut off"


def test_what_did_not_fit_into_the_context_is_shown_as_not_read():
    found = blocks(conversation(SPANS[:1], outcome="context", turns=[Turn(5, 0.1)]))
    assert (found[2].role, found[2].facts, found[2].spans[0].text) == ("tool", ["not read"], RESULT)


def test_a_replayed_line_has_forgotten_its_turns_and_a_guided_one_says_so():
    assert [block.facts for block in blocks(conversation(turns=[]))][1:3] == [["advantage +1.5"], []]
    assert describe_sample_turn([Span("x", "policy")], {}) == ["not trained"]
    guided = [Span("He ", "guidance", 0.5), *SPANS[1:]]
    assert blocks(conversation(guided, source="guidance"))[1].role == "guide"
    assert blocks(conversation([guided[0], *SPANS], source="guidance"))[1].role == "assistant"


@pytest.mark.parametrize("outcome", ["done", "turn_limit", "context", "time_limit", "tool_errors", "token_limit"])
def test_the_console_shows_a_whole_conversation_and_how_it_ended(outcome):
    text = show([conversation(outcome=outcome)])
    lines = [line.strip() for line in text.splitlines()]
    for line in ("+1.00  assistant · advantage +1.5 · called 1 · 5 tokens", "tool · 7 tokens", f"{CALL}<|im_end|>",
                 "<|im_start|>user six<|im_end|> <|im_start|>assistant", "It is 6.<|im_end|>",
                 "assistant · advantage -0.25 to +0.5 · 6 tokens"):  # fmt: skip
        assert line in lines
    assert lines[-1] == f"({describe_sample_outcome({'outcome': outcome, 'truncated': True})})" and ESCAPE not in text


def test_the_console_colours_tokens_by_origin_and_advantage():
    spans = [*SPANS[:4], Span("He ", "guidance", 0.5), *SPANS[4:]]
    text = show([conversation(spans)], force_terminal=True, color_system="standard")
    for code, words in (("1;32", CALL), ("36", RESULT), ("35", "He "), ("31", "It is "), ("32", "6."), ("2", "<|im_")):
        assert f"{ESCAPE}[{code}m{words}" in text, words


def test_an_answer_of_one_turn_says_its_advantage_in_words_too():
    one = Trajectory([Segment([1], "policy")], [*TASK.prompt, {"role": "assistant", "content": "6"}], 1,
                     {}, 1.0, turns=[Turn(1, 0.1)], spans=[Span("6<|im_end|>", "policy", 0.7)])  # fmt: skip
    assert "+1.00  6<|im_end|> (advantage +0.7)" in show([one])


@pytest.mark.parametrize("text", ["\x1b[2J\x1b]0;hi\x07", "[red]not markup[/red] [/]", "\u202egnp.exe", "half \ud83d"])
def test_nothing_of_a_conversation_steers_the_terminal(text):
    spans = [Span(text, author, 1.0) for author in ("policy", "template", "environment", "guidance", "policy")]
    hostile = conversation(spans, turns=[Turn(1, 0.1, rewards={text: 1.0}), Turn(1, 0.1)])
    hostile.messages[2]["role"] = text
    shown = show([hostile])
    assert ESCAPE not in shown and "\u202e" not in shown
    shown.encode()
    assert shown.count(text) == (7 if text.startswith("[red]") else 0)
