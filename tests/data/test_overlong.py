"""Rows that are too long: what is cut, where, and what is counted."""

from __future__ import annotations

import pytest
import tokenizers_in_code as made

from aurify.data.encode import Encoding, encode_rows
from aurify.errors import UserError
from aurify.renderer import Renderer

SYSTEM = {"role": "system", "content": "s"}


def turns(*numbers: int) -> list[dict[str, str]]:
    return [
        message
        for n in numbers
        for message in ({"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"})
    ]


@pytest.fixture
def renderer():
    return Renderer(made.byte_level())


def length(renderer: Renderer, messages: list[dict[str, str]]) -> int:
    return len(renderer.conversation(messages)[0])


@pytest.mark.parametrize(("how", "left"), [("cut_left", (2, 3)), ("cut_right", (1, 2))])
def test_chats_are_cut_at_messages(renderer, how, left):
    limit = length(renderer, [SYSTEM, *turns(*left)]) + 3  # not enough for one more message
    options = Encoding(limit=limit, overlong=how)
    encoded = encode_rows([{"messages": [SYSTEM, *turns(1, 2, 3)]}, {"messages": turns(1)}], renderer, options)
    [cut], [whole] = encoded.units
    assert (cut.tokens, cut.weights) == renderer.conversation([SYSTEM, *turns(*left)])
    assert (whole.tokens, whole.weights) == renderer.conversation(turns(1))
    assert encoded.tally.cut == {f"above {limit} tokens, {how}": 1} and not encoded.tally.dropped


def test_pairs_lose_the_beginning_of_their_prompt(renderer):
    row = {"prompt": [*turns(1, 2), {"role": "user", "content": "q3"}], "chosen": "yes", "rejected": "no"}
    short = [*turns(2), {"role": "user", "content": "q3"}]
    limit = length(renderer, [*short, {"role": "assistant", "content": "yes"}])
    options = Encoding(limit=limit, overlong="cut_left")
    [[chosen, rejected]] = encode_rows([row], renderer, options, "pairs").units
    start = chosen.weights.index(1.0)
    assert chosen.tokens[:start] == rejected.tokens[:start] == renderer.prompt(short)


def test_what_cannot_be_cut_is_dropped_and_counted(renderer):
    rows = [{"messages": turns(1)}, {"messages": [{"role": "user", "content": "x" * 99}, *turns(1)[1:]]}]
    for how in ("drop", "cut_left", "cut_right"):
        encoded = encode_rows(rows, renderer, Encoding(limit=60, overlong=how))
        assert len(encoded.units) == 1 and encoded.tally.dropped.total() == 1
    with pytest.raises(UserError, match=r"row 2: the row has \d+ tokens; at most 60 fit"):
        encode_rows(rows, renderer, Encoding(limit=60))


def test_plain_text_is_cut_anywhere(renderer):
    row = {"text": "abcdef"}
    [whole] = encode_rows([row], renderer, Encoding()).units[0]
    for how, part in (("cut_left", whole.tokens[-4:]), ("cut_right", whole.tokens[:4])):
        [[datum]] = encode_rows([row], renderer, Encoding(limit=4, overlong=how)).units
        assert (datum.tokens, datum.weights) == (part, [0.0, 1.0, 1.0, 1.0])


def test_a_tool_call_keeps_its_result(renderer):
    from aurify.data.encode import drop_newest_messages

    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    messages = [*turns(1), {"role": "user", "content": "q"}, call, {"role": "tool", "content": "r"}, turns(2)[1]]
    assert drop_newest_messages(messages) == [turns(1)]
