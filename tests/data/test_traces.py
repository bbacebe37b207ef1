"""Files of traces: every kind is read, every trace judged, every refusal counted."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers_in_code as made

from aurify.data.heldout import heldout_tasks
from aurify.data.traces import Traces, load_traces
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.rewards.math import number_match
from aurify.rewards.rubric import Rubric
from aurify.types import Message, Task

RENDERER = Renderer(made.byte_level())


def ask(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def load(path: Path, rows: list[dict[str, Any]], **options: Any) -> Traces:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    renderer = options.pop("renderer", RENDERER)
    return asyncio.run(load_traces(str(path), renderer, Rubric([number_match]), **options))


def said(tokens) -> str:
    return RENDERER.parse(list(tokens))["content"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "1+1?", "trace": "<think>a</think> 2", "answer": "2"},
        {"question": "1+1?", "traces": ["<think>a</think> 2"], "answer": 2},
        {"problem": "1+1?", "solution": "no", "answer": "2", "generations": ["<think>a</think> 2", "", "it is 3"]},
        {"messages": [*ask("1+1?"), {"role": "assistant", "content": "<think>a</think> 2"}], "answer": "2"},
        {
            "conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "<think>a</think> 2"}],
            "answer": "2",
        },
        {
            "prompt": [{"role": "system", "content": "think"}, *ask("1+1?")],
            "target": [{"role": "assistant", "content": "<think>a</think> 2"}],
            "reward_model": {"style": "rule", "ground_truth": "2"},
            "data_source": "openr1",
        },
        {
            "prompt": ask("1+1?"),
            "answer": "2",
            "target_lst": [[{"role": "assistant", "content": "<think>a</think> 2"}]],
        },
    ],
    ids=["plain", "several", "openr1", "chat", "sharegpt", "luffy", "luffy_list"],
)  # fmt: skip
def test_kinds_of_rows(row, tmp_path):
    traces = load(tmp_path / "t.jsonl", [row])
    [tokens] = traces.of([{"role": "system", "content": "whatever"}, *ask(" 1+1?\n")])
    assert said(tokens) == "<think>a</think> 2" and tokens[-1] == RENDERER.end_token


def test_reasoning_in_a_column_of_its_own(tmp_path):
    rows = [
        {"prompt": "1+1?", "reasoning_content": "one and one", "response": "2", "answer": "2"},
        {"messages": [*ask("2+2?"), {"role": "assistant", "content": "4", "reasoning_content": "hm"}], "answer": "4"},
    ]
    traces = load(tmp_path / "t.jsonl", rows)
    assert said(traces.of(ask("1+1?"))[0]) == "<think>\none and one\n</think>\n\n2"
    assert said(traces.of(ask("2+2?"))[0]) == "<think>\nhm\n</think>\n\n4"


def test_what_is_refused_is_counted_with_its_reason(tmp_path):
    right = {"prompt": "1+1?", "traces": ["2", "it is 2", "2"], "answer": "2"}
    rows = [
        right,
        {"prompt": "3+3?", "trace": "7", "answer": "6"},
        {"prompt": "4+4?", "trace": "8" * 50 + " is wrong, 8", "answer": "8"},
        {"prompt": "5+5?", "target": None, "answer": "10"},
        {"prompt": "6+6?", "trace": "12"},
        {"prompt": "7+7?", "trace": "14", "answer": "14"},
        {"trace": "14", "answer": "14"},
        {"prompt": 5, "trace": ["14"], "answer": "14"},
        {"prompt": "8+8?", "trace": [[1]], "answer": "16"},
        {"prompt": ["?"], "trace": "1", "answer": "16"},
    ]
    traces = load(tmp_path / "t.jsonl", rows, heldout=heldout_tasks([Task("h", ask("7+7?"), "14")]), max_tokens=40)
    assert traces.tally.rejected == {
        "judged wrong": 1, "too long": 1, "without a trace": 1, "without an answer to judge it by": 1,
        "for a held-out task": 1, "a copy": 1, "that cannot be used": 4,
    }  # fmt: skip
    assert [said(tokens) for tokens in traces.of(ask("1+1?"))] == ["2", "it is 2"]
    assert traces.num == 2 and "2 traces for 1 questions" in traces.report()
    assert "1 judged wrong (first: " in traces.report() and "t.jsonl:2)" in traces.report()
    assert traces.of(ask("7+7?")) == []


def test_prompt_and_trace_must_fit_the_context(tmp_path):
    row = {"prompt": "1+1?", "trace": "2", "answer": "2"}
    length = len(RENDERER.prompt(ask("1+1?"))) + 2
    assert load(tmp_path / "t.jsonl", [row], max_context=length).num == 1
    with pytest.raises(UserError, match=r"1 too long .*None can be used"):
        load(tmp_path / "t.jsonl", [row], max_context=length - 1)


def test_a_thought_that_the_prompt_opens_is_not_opened_again(tmp_path):
    closed = made.THINKING.replace("<think>\n", "<think>")
    for template, expected in (
        (made.THINKING, "a</think> 2"),
        (closed, "\na</think> 2"),
        (made.CHATML, "<think>\na</think> 2"),
    ):
        tokenizer = made.byte_level(template)
        row = {"prompt": "1+1?", "trace": "<think>\na</think> 2", "answer": "2"}
        traces = load(tmp_path / "t.jsonl", [row], renderer=Renderer(tokenizer))
        assert said(traces.of(ask("1+1?"))[0]) == expected


def test_an_end_token_inside_a_trace_cuts_nothing_and_one_at_its_end_is_not_doubled(tmp_path):
    """T17: the reference cuts at the first one. Here it is text like any other: control tokens never come from data."""
    end = RENDERER.tokenizer.convert_ids_to_tokens(RENDERER.end_token)
    traces = load(tmp_path / "t.jsonl", [{"prompt": "1+1?", "trace": f"a{end}b 2{end}\n", "answer": "2"}])
    [tokens] = traces.of(ask("1+1?"))
    assert tokens.count(RENDERER.end_token) == 1 == (tokens[-1] == RENDERER.end_token)
    assert RENDERER.tokenizer.decode(tokens) == f"a{end}b 2{end}"


def test_parquet_and_damaged_lines(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [
        {"problem": f"{k}+{k}?", "generations": [f"<think>x</think> {2 * k}", "?"], "answer": str(2 * k)}
        for k in (1, 2)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    traces = asyncio.run(load_traces(str(tmp_path / "t.parquet"), RENDERER, Rubric([number_match])))
    assert traces.num == 2 and traces.tally.rejected == {"judged wrong": 2}
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(rows[0]) + "\n{ not json\n[1]\n" + json.dumps(rows[1]) + "\n")
    traces = asyncio.run(load_traces(str(path), RENDERER, Rubric([number_match])))
    assert traces.num == 2 and traces.tally.rejected["that cannot be read"] == 2
