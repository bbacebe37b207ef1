"""Conversations in report.html: who wrote what, advantages, outcomes; by lines and words as well as by colours."""

from __future__ import annotations

import re

import pytest
from report_pages import EVIL, Page, page_of, sample

from aurify.report.conversation import (
    LEVELS,
    MAX_TEXT,
    Run,
    build_span_markup,
    build_transcript_block,
    group_transcript_spans,
    shorten_transcript,
)
from aurify.report.report import write_report
from aurify.tracking import jsonl
from aurify.tracking.samples import Block
from aurify.types import Span

SPANS = [
    ["<call>", "policy", 2.0], ["<|im_end|>\n<|im_start|>user\n", "template", None], ["rain", "environment", None],
    ["<|im_start|>assistant\n", "template", None], ["It ", "guidance", 1.0], ["rains", "policy", -0.5],
]  # fmt: skip


def conversation(step=1, reward=3.0, spans=SPANS, **options) -> dict:
    turn = {"tokens": 4, "environment_tokens": 3, "rewards": {"called": 0.5}}
    messages = [
        {"role": "user", "content": "weather?"}, {"role": "assistant", "content": "<call>"},
        {"role": "tool", "content": "rain"}, {"role": "assistant", "content": "rains"},
    ]  # fmt: skip
    line = {"messages": messages, "num_prompt_messages": 1, "turns": [turn, turn], "tools": ["sky"], "spans": spans}
    return sample(step, reward) | line | {"outcome": "done", "source": "policy"} | options


def test_the_page_shows_the_whole_conversation(run):
    jsonl.append_log(run.stage("grpo").samples, conversation())
    jsonl.append_log(run.stage("grpo").samples, conversation(reward=-3.0, outcome="tool_errors", truncated=True))
    html = write_report(run.path).read_text()
    text = Page(html).text
    for words in ("assistant · advantage +2 · called 0.5 · 4 tokens", "tool · 3 tokens", "2 turns · tools: sky", "done",
                  "assistant · advantage -0.5 to +1", "too many failed calls", "weather?", "rain"):  # fmt: skip
        assert words in text, words
    marks = re.findall(r'<span( class="[^"]+")?( style="[^"]+")? title="([^"]+)">(\w|&lt;)', html)
    assert (' class="up"', f' style="--level:{LEVELS}"', "the policy, advantage +2", "&lt;") in marks
    assert (' class="guide up"', ' style="--level:2"', "a guide, advantage +1", "I") in marks
    assert (' class="down"', ' style="--level:1"', "the policy, advantage -0.5", "r") in marks
    assert '<i title="the chat template">&lt;|im_end|&gt; &lt;|im_start|&gt;user</i>rain' in html
    assert text.count("advantage above 0: made likelier") == 1


def test_marks_are_told_without_colours(run):
    """Lines of two forms, thicker by the size; a frame; titles; words above each turn."""
    style = write_report(run.path).read_text().partition("</style>")[0]
    assert re.search(r"\.up, \.down \{[^}]*underline var\(--tone\) calc\(\.5px \+ var\(--level\)", style)
    assert re.search(r"\.down \{[^}]*text-decoration-style: wavy", style)
    assert re.search(r"\.guide \{ outline: 1px dashed", style)


def test_a_page_without_conversations_explains_no_marks(run):
    assert "made likelier" not in page_of(run).text and "legend dim" not in write_report(run.path).read_text()


def test_what_a_guide_wrote_stands_beside_the_policys(run):
    jsonl.append_log(run.stage("grpo").samples, conversation(30, 77.0, source="guidance"))
    jsonl.append_log(run.stage("grpo").samples, conversation(20, None, source="guidance"))
    text = page_of(run).text
    assert text.count("with a guide") == 2 and "+77.00" in text and "no reward" in text
    assert "written by a guide" in text and "best of 2" in text


@pytest.mark.parametrize("where", ["text", "role", "tool", "reward", "outcome", "advantage"])
def test_hostile_words_in_a_conversation_stay_words(run, where):
    jsonl.append_log(run.stage("grpo").samples, conversation())
    plain = {tag for tag, _ in page_of(run).tags}
    hostile = conversation(reward=9.0)
    if where == "text":
        hostile["spans"] = [[EVIL, author, advantage] for _, author, advantage in SPANS]
    elif where == "role":
        hostile["messages"][0]["role"] = hostile["messages"][2]["role"] = EVIL
    elif where == "tool":
        hostile["tools"] = [EVIL]
    elif where == "reward":
        hostile["turns"] = [{"tokens": 1, "rewards": {EVIL: 1.0}}] * 2
    elif where == "outcome":
        hostile |= {"outcome": EVIL, "truncated": True}
    else:
        hostile["spans"] = [["a", EVIL, 1.0]]
    jsonl.append_log(run.stage("grpo").samples, hostile)
    page = page_of(run)
    assert {tag for tag, _ in page.tags} == plain and len(page.scripts) == 1 and "alert" not in page.scripts[0]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert ("alert('x')" in page.text) == (where not in ("outcome", "advantage"))


def test_neighbours_that_look_alike_are_one_mark():
    spans = [Span("a", "policy", 1.0), Span("b", "policy", 0.9), Span("c", "policy", -0.1), Span("d", "policy", 0.0)]
    runs = list(group_transcript_spans(spans, 1.0))
    assert [(run.text, run.level) for run in runs] == [("ab", LEVELS), ("c", -1), ("d", 0)]
    assert runs[0].title == "the policy, advantage +0.9 to +1"
    assert [run.level for run in group_transcript_spans([Span("a", "policy", 0.0)], 0.0)] == [0]
    assert [run.level for run in group_transcript_spans([Span("a", "policy")], 1.0)] == [0]
    assert (
        build_span_markup(Run("\n", "template")) == "\n" and build_span_markup(Run("a", "policy")) == "<span>a</span>"
    )


@pytest.mark.parametrize("sizes", [[MAX_TEXT], [MAX_TEXT + 1], [50_000], [1] * 20_000, [3000, 9000, 2], [9000, 9000]])
def test_a_long_turn_loses_its_middle_whatever_spans_it_has(sizes):
    runs = [Run(chr(97 + k % 26) * size, "policy") for k, size in enumerate(sizes)]
    whole, kept = "".join(run.text for run in runs), shorten_transcript(runs, MAX_TEXT)
    if len(whole) <= MAX_TEXT:
        assert kept == runs
        return
    text = "".join(run.text for run in kept)
    head, note, tail = re.fullmatch(r"(?s)(.*)\n\[… ([\d,]+) characters left out …\]\n(.*)", text).groups()  # type: ignore[union-attr]
    assert whole.startswith(head) and whole.endswith(tail) and len(head + tail) == MAX_TEXT
    assert int(note.replace(",", "")) == len(whole) - MAX_TEXT


def test_a_turn_of_many_tokens_with_advantages_of_their_own_is_a_small_page():
    spans = [Span("word ", "policy", (k * 37 % 101 - 50) / 50) for k in range(20_000)]
    assert len(build_transcript_block(Block("assistant", spans, said=True), 1.0)) < 200_000
