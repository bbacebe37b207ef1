"""Rows of files into data to train on."""

from __future__ import annotations

import pytest
import tokenizers_in_code as made

from aurify.data.encode import encode_data
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.rows.sources import load_rows

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


@pytest.fixture
def renderer():
    return Renderer(made.byte_level())


def test_chats(renderer):
    two_turns = {"messages": CHAT["messages"] * 2}
    data = encode_data([CHAT, two_turns], renderer)
    assert (data[0].tokens, data[0].weights) == renderer.conversation(CHAT["messages"])
    assert sum(data[1].weights) == 2 * sum(data[0].weights)
    assert sum(encode_data([two_turns], renderer, train_on="last")[0].weights) == sum(data[0].weights)
    assert {datum.unit for datum in data} == {-1}


def test_preferences(renderer):
    rows = [
        {"prompt": "hi", "chosen": "hello", "rejected": "he", "margin": 2},
        {"prompt": CHAT["messages"] + [{"role": "user", "content": "and?"}], "chosen": "12", "rejected": "no"},
    ]
    data = encode_data(rows, renderer, "pairs")
    assert [datum.unit for datum in data] == [0, 0, 1, 1]
    assert [datum.margin for datum in data] == [2.0, 2.0, 0.0, 0.0]
    for row, chosen, rejected in zip(rows, data[::2], data[1::2], strict=True):
        start = chosen.weights.index(1.0)
        assert chosen.tokens[:start] == rejected.tokens[:start]  # what the pair shares is its prompt, token for token
        assert rejected.weights.index(1.0) == start
        said = [renderer.parse(datum.tokens[start:])["content"] for datum in (chosen, rejected)]
        assert said == [row["chosen"], row["rejected"]]
    assert data[0].tokens == encode_data([CHAT], renderer)[0].tokens


@pytest.mark.parametrize(
    ("lesson", "row", "expected"),
    [
        ("answers", {"message": []}, "row 2: no column 'messages'; did you mean 'message'"),
        ("answers", {"messages": "hi"}, "row 2: 'messages' holds str; expected a list of messages"),
        ("answers", {"messages": [{"role": "user"}]}, r"row 2: messages\[0\] \(user\) has no content"),
        ("answers", {"messages": CHAT["messages"][:1]}, "row 2: no assistant message to train on"),
        ("pairs", {"prompt": "a", "chosen": "b"}, "row 2: no column 'rejected'"),
        ("pairs", {"prompt": "a", "chosen": "b", "rejected": "b"}, "row 2: chosen and rejected are the same"),
        ("pairs", {"prompt": "a", "chosen": "b", "rejected": ["c"]}, "'rejected' holds list; expected text"),
        (
            "pairs",
            {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "big"},
            "row 2: column 'margin' is 'big'; expected a number",
        ),
    ],
)
def test_mistakes_name_the_row(renderer, lesson, row, expected):
    good = CHAT if lesson == "answers" else {"prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(UserError, match=expected):
        encode_data([good, row], renderer, lesson)


def test_mistakes_name_the_line(renderer, tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    with pytest.raises(UserError, match=r"chats.jsonl:1: no assistant message"):
        encode_data(load_rows(path), renderer)
