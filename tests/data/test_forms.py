"""Every form of data: a small file of each is recognised whatever it is called, and exactly the right tokens are
trained.

Expected is the text that the model sees, trained parts in double brackets; encoding its pieces one by one gives the
tokens and weights."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import pytest
import tokenizers_in_code as made
from marked import said, stream, turn

from aurify.data.encode import Encoding, encode_data, encode_rows
from aurify.data.forms import FORMS, detect_row_form
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.rows.row import Row
from aurify.rows.sources import load_rows

FIXTURES = Path(__file__).parent / "fixtures"


HI = turn("user", "hi")
SUM = turn("user", "2+2?")
CALL = '<call>weather {"city": "Oslo"}</call>'
RAIN = turn("user", "Rain in Oslo?") + said(CALL, last=False)
EARLIER = HI + turn("assistant", "hello") + SUM
# file -> the form, and each sequence
EXPECTED: dict[str, tuple[str, list[str]]] = {
    "messages.jsonl": (
        "messages",
        [
            turn("system", "Be brief.") + HI + said("hello", last=False) + turn("user", "more?") + said("no"),
            turn("user", "one") + turn("assistant", "1") + turn("user", "two") + said("2"),
        ],
    ),
    "messages_tools.jsonl": (
        "messages",
        [turn("system", "Tools: weather") + RAIN + turn("tool", "rain") + said("It rains.")],
    ),
    "sharegpt.jsonl": (
        "sharegpt",
        [
            turn("system", "Be brief.") + HI + said("hello"),
            turn("user", "two?") + said("2", last=False) + turn("user", "sure?") + said("yes"),
        ],
    ),
    "capybara.jsonl": (
        "capybara",
        [HI + said("hello", last=False) + turn("user", "more?") + said("no"), turn("user", "2+2") + said("4")],
    ),
    "glaive.jsonl": (
        "glaive",
        [
            turn("system", "Tools: weather")
            + turn("system", "You are a helpful assistant.")
            + RAIN
            + turn("tool", '{"sky": "rain"}')
            + said("It rains."),
            turn("system", "You are a helpful assistant, with no access to external functions.") + HI + said("hello"),
        ],
    ),
    "alpaca.jsonl": (
        "alpaca",
        [turn("user", "Add them.\n\n2 and 3") + said("5"), turn("user", "Say hello.") + said("hello")],
    ),
    "list.json": ("alpaca", [turn("user", "Say hello.") + said("hello")]),
    "prompt_completion.jsonl": ("prompt and answer", [SUM + said("4"), HI + said("hello")]),
    "question_answer.jsonl": ("prompt and answer", [SUM + said("4"), HI + said("hello")]),
    "trl_sft_conversational.jsonl": ("prompt and answer", [SUM + said("4")]),
    "trl_preference_explicit.jsonl": (
        "pairs",
        [SUM + said("4"), SUM + said("5"), HI + said("hello"), HI + said("he")],
    ),
    "trl_preference_explicit_chat.jsonl": ("pairs", [SUM + said("4"), SUM + said("5")]),
    "trl_preference_implicit.jsonl": (
        "implicit pairs",
        [
            turn("user", "The sky is") + said("blue."),
            turn("user", "The sky is") + said("black."),
            turn("user", "Two and two are") + said("4"),
            turn("user", "Two and two are") + said("5"),
        ],
    ),
    "trl_preference_implicit_chat.jsonl": ("dialogue pairs", [SUM + said("4"), SUM + said("5")]),
    "ultrafeedback.jsonl": ("dialogue pairs", [SUM + said("4"), SUM + said("5")]),
    "rated.jsonl": ("rated completions", [SUM + said("4"), SUM + said("5")]),
    "hh_rlhf.jsonl": (
        "hh",
        [
            EARLIER + said("4"),
            EARLIER + said("5"),
            turn("user", "why?") + said("so", last=False) + turn("user", "sure?") + said("yes"),
            turn("user", "why?") + said("no idea"),
        ],
    ),
    "hh_transcript.jsonl": ("hh transcript", [HI + said("hello")]),
    "transcript.jsonl": (
        "transcript",
        [
            HI + said("hello"),
            turn("system", "Be brief.") + HI + said("hello", last=False) + turn("user", "more?") + said("no"),
            HI + said("hello"),
        ],
    ),
    "xlam.jsonl": ("calls", [turn("system", "Tools: weather") + turn("user", "Rain in Oslo?") + said(CALL)]),
    "trl_kto.jsonl": ("labels", [SUM + said("4"), SUM + said("5")]),
    "trl_kto_chat.jsonl": ("labels", [SUM + said("5")]),
    "table.csv": (
        "labels",
        [turn("user", "2+2, please?") + said("4"), turn("user", 'say\n"hi"') + said("no")],
    ),
    "text.jsonl": ("text", ["h[[ello all<|im_end|>]]", "12[[<|im_end|>]]"]),
    "plain": ("text", ["h[[ello all\nof you<|im_end|>]]", "12[[<|im_end|>]]"]),
}
LABELS = {"trl_kto.jsonl": [1, -1], "trl_kto_chat.jsonl": [-1], "table.csv": [1, -1]}


@pytest.fixture
def renderer():
    return Renderer(made.byte_level(made.TOOLS))


def test_every_form_has_a_file_and_every_file_a_form():
    assert {path.name for path in FIXTURES.iterdir()} == set(EXPECTED)
    assert {form for form, _ in EXPECTED.values()} == set(FORMS)


def test_the_page_about_data_names_every_form():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    table = page.partition("| form |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)) == set(FORMS)


@pytest.mark.parametrize("file", EXPECTED)
def test_it_is_recognised_by_its_content_and_trains_the_right_tokens(file, renderer, tmp_path):
    form, texts = EXPECTED[file]
    anonymous = tmp_path / "x.bin"  # the name must not matter
    shutil.copy(FIXTURES / file, anonymous)
    rows = load_rows(anonymous)
    found = detect_row_form(rows)
    assert (found.form.name, found.num) == (form, len(rows))
    units = encode_rows(rows, renderer, Encoding(), found.lesson).units
    data = [datum for unit in units for datum in unit]
    if file in ("text.jsonl", "plain"):
        expected = [renderer.tokenizer(re.sub(r"\[\[|\]\]", "", text)).input_ids for text in texts]
        assert [datum.tokens for datum in data] == expected
        assert [datum.weights for datum in data] == [[0.0, *[1.0] * (len(ids) - 1)] for ids in expected]
    else:
        assert [(datum.tokens, datum.weights) for datum in data] == [stream(renderer, text) for text in texts]
    assert [len(unit) for unit in units] == [2 if found.lesson == "pairs" else 1] * len(units)
    assert [datum.label for datum in data] == LABELS.get(file, [1] * len(data))


@pytest.mark.parametrize("file", ["hh_rlhf.jsonl", "ultrafeedback.jsonl", "trl_preference_explicit.jsonl"])
def test_pairs_serve_every_method(file, renderer):
    rows = load_rows(FIXTURES / file)
    pairs = encode_data(rows, renderer, "pairs")
    assert [datum.tokens for datum in encode_data(rows, renderer)] == [datum.tokens for datum in pairs[::2]]
    labels = encode_data(rows, renderer, "labels")
    assert [datum.tokens for datum in labels] == [datum.tokens for datum in pairs]
    assert [datum.label for datum in labels] == [1.0, -1.0] * (len(pairs) // 2)


def test_a_method_says_what_it_cannot_learn_from(renderer):
    rows = load_rows(FIXTURES / "messages.jsonl")
    with pytest.raises(UserError, match=r"messages.jsonl:1: the rows are answers \('messages'\).*preference pairs"):
        encode_data(rows, renderer, "pairs")
    with pytest.raises(UserError, match=r"the rows are answers with labels"):
        encode_data([Row({"prompt": "a", "completion": "b", "label": True}, "")], renderer)


def test_a_form_can_be_given(renderer):
    rows = load_rows(FIXTURES / "ultrafeedback.jsonl")
    assert detect_row_form(rows, "answers").form.name == "messages"  # the method's own shape comes first
    assert detect_row_form(rows, "answers", "dialogue pairs").form.name == "dialogue pairs"
    with pytest.raises(UserError, match="unknown form of data 'sharegtp'; did you mean 'sharegpt'"):
        detect_row_form(rows, None, "sharegtp")


def test_train_marks_messages(renderer):
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "train": True},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    whole = turn("user", "a") + said("b", last=False) + turn("user", "c") + said("d")

    def data(train: str, *changes: tuple[int, dict]) -> tuple[list[int], list[float]]:
        row = {"messages": [{**m, **dict(changes).get(k, {})} for k, m in enumerate(messages)]}
        [datum] = encode_data([row], renderer, train_on=train)  # type: ignore[arg-type]
        return datum.tokens, datum.weights

    assert data("assistant") == stream(renderer, whole)
    assert data("marked") == stream(renderer, turn("user", "a") + said("b"))
    assert data("assistant", (1, {"train": False})) == data("last")
    tokens, weights = data("assistant", (3, {"weight": 0.5}))
    assert tokens == stream(renderer, whole)[0] and set(weights) == {0.0, 0.5, 1.0}
    with pytest.raises(UserError, match="no assistant message to train on that has a weight above 0"):
        data("marked", (1, {"train": False}))
    with pytest.raises(UserError, match=r"messages\[0\] is to be trained and is of role user"):
        data("assistant", (0, {"train": True}))


def test_a_template_that_forgets_tools_is_refused():
    plain = Renderer(made.byte_level())
    rows = load_rows(FIXTURES / "messages_tools.jsonl")
    with pytest.raises(UserError, match=r"leaves out the tools and tool calls.*tools_as_text: true"):
        encode_data(rows, plain)
    [[datum]] = encode_rows(rows, Renderer(plain.tokenizer, tools_as_text=True), Encoding()).units
    text = plain.tokenizer.decode(datum.tokens)
    trained = plain.tokenizer.decode([t for t, w in zip(datum.tokens, datum.weights, strict=True) if w])
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert trained == call + "<|im_end|>It rains.<|im_end|>"
    assert "<tool_response>\nrain\n</tool_response>" in text and '"description": "Weather of a city"' in text


def test_content_of_parts_and_thoughts(renderer):
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "2"}, {"type": "text", "text": "+2?"}]},
            {"role": "assistant", "content": "4", "reasoning_content": "easy"},
        ]
    }
    [datum] = encode_data([row], renderer)
    assert (datum.tokens, datum.weights) == stream(renderer, SUM + said("<think>\neasy\n</think>\n\n4"))


def test_gzip_and_parquet(tmp_path):
    rows = load_rows(FIXTURES / "sharegpt.jsonl")
    zipped = tmp_path / "x"
    zipped.write_bytes(gzip.compress((FIXTURES / "sharegpt.jsonl").read_bytes()))
    assert load_rows(zipped) == rows
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist([dict(row) for row in rows])
    parquet.write_table(table, tmp_path / "y")
    loaded = load_rows(tmp_path / "y")
    assert loaded == rows and loaded[1].location == f"{tmp_path / 'y'}: row 2"


def test_one_object_that_holds_the_rows(tmp_path):
    path = tmp_path / "x"
    path.write_text(json.dumps({"version": 1, "data": [{"prompt": "a", "completion": "b"}]}, indent=2))
    assert load_rows(path) == [{"prompt": "a", "completion": "b"}]


def test_real_files_where_they_are_here(renderer):
    folder = Path(__file__).parents[3] / "shared" / "data"
    expected = {
        "gsm8k/train.jsonl": ("prompt and answer", 1.0),
        "medquad/medquad.jsonl.gz": ("prompt and answer", 0.9),
        "hh_rlhf/harmless-base-test.jsonl.gz": ("hh", 0.99),
    }
    if not all((folder / name).is_file() for name in expected):
        pytest.skip("no shared data beside the repository")
    for name, (form, share) in expected.items():
        rows = load_rows(folder / name)[:300]
        found = detect_row_form(rows)
        encoded = encode_rows(rows, renderer, Encoding(on_bad_row="skip"), found.lesson)
        assert found.form.name == form
        assert len(encoded.units) >= share * len(rows)
        assert len(encoded.units) + encoded.tally.rejected.total() == len(rows)
