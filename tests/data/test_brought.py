"""Rows that people bring, of every kind that was reported: read right, or refused with the row, the mend and the option
that mends all such rows (issue 15, *Data*)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers_in_code as made
from marked import said, stream, turn

from aurify.data.encode import Encoding, encode_rows
from aurify.data.forms import detect_row_form
from aurify.data.sources import Part, read_data_source
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.rows.row import Row, Tally
from aurify.rows.sources import load_rows
from aurify.types import Lesson

USER, BOT = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
SUM = turn("user", "2+2?")
FOUR = [SUM + said("4")]
BOTH = [SUM + said("4"), SUM + said("5")]
PRIME, COLOUR = turn("user", "Name a prime."), turn("user", "Name a colour.")
CHATS = [USER, BOT]
TOLD = turn("user", "Rain in Oslo?") + said('<call>weather {"city": "Oslo"}</call>', last=False)


def call(arguments: Any, **more: Any) -> list[dict[str, Any]]:
    function = {"name": "weather", "arguments": arguments}
    return [
        {"role": "user", "content": "Rain in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}], **more},
    ]


# name -> rows, what is learnt, and each sequence
RIGHT: dict[str, tuple[list[dict[str, Any]], Lesson, list[str]]] = {
    # conversations written as text
    "messages as JSON": ([{"messages": json.dumps(CHATS)}], "answers", FOUR),
    "messages as JSON twice": ([{"messages": json.dumps(json.dumps(CHATS))}], "answers", FOUR),
    "messages as Python prints them": ([{"messages": str(CHATS)}], "answers", FOUR),
    "sharegpt as JSON": (
        [{"conversations": json.dumps([{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}])}],
        "answers",
        FOUR,
    ),
    "prompt and completion as JSON": (
        [{"prompt": json.dumps([USER]), "completion": json.dumps([BOT])}],
        "answers",
        FOUR,
    ),
    "a completion that is one message": ([{"prompt": "2+2?", "completion": BOT}], "answers", FOUR),
    "pairs as JSON": (
        [{"chosen": json.dumps([USER, BOT]), "rejected": json.dumps([USER, {**BOT, "content": "5"}])}],
        "pairs",
        BOTH,
    ),
    "an answer that is JSON stays text": (
        [{"prompt": "2+2?", "completion": '{"sum": 4}'}, {"prompt": "2+2?", "completion": "[4, 4]"}],
        "answers",
        [SUM + said('{"sum": 4}'), SUM + said("[4, 4]")],
    ),
    # calls
    "arguments as JSON": ([{"messages": call('{"city": "Oslo"}')}], "answers", [TOLD.rstrip("\n")]),
    "arguments as JSON twice": ([{"messages": call(json.dumps('{"city": "Oslo"}'))}], "answers", [TOLD.rstrip("\n")]),
    "nulls in arguments": ([{"messages": call({"city": "Oslo", "unit": None})}], "answers", [TOLD.rstrip("\n")]),
    "a null that was meant": (
        [{"messages": call('{"city": null}')}],
        "answers",
        [turn("user", "Rain in Oslo?") + said('<call>weather {"city": null}</call>')],
    ),
    "a result that is an object": (
        [{"messages": [*call({"city": "Oslo"}), {"role": "tool", "content": {"sky": "snow"}}, BOT]}],
        "answers",
        [TOLD + turn("tool", '{"sky": "snow"}') + said("4")],
    ),
    "a result that is a list": (
        [{"messages": [*call({"city": "Oslo"}), {"role": "tool", "content": [1, None]}, BOT]}],
        "answers",
        [TOLD + turn("tool", "[1, null]") + said("4")],
    ),
    # transcripts as prompts
    "a transcript as the prompt of a pair": (
        [{"prompt": "\n\nHuman: Name a prime.\n\nAssistant:", "chosen": " Seven.", "rejected": " Eight."}],
        "pairs",
        [PRIME + said("Seven."), PRIME + said("Eight.")],
    ),
    "a transcript of several turns": (
        [{"prompt": "Human: Hi.\n\nAssistant: Hello.\n\nHuman: Name a colour.\n\nAssistant:", "completion": " Blue. "}],
        "answers",
        [turn("user", "Hi.") + said("Hello.", last=False) + COLOUR + said("Blue.")],
    ),
    "a transcript with a label": (
        [{"prompt": "\n\nHuman: Name a prime.\n\nAssistant: ", "completion": "Assistant: Eight.", "label": False}],
        "labels",
        [PRIME + said("Eight.")],
    ),
    # prompts that stand in the answers again
    "a pair that repeats the prompt": (
        [{"prompt": "Name a prime.", "chosen": "Name a prime. Seven.", "rejected": "Name a prime.\nEight."}],
        "pairs",
        [PRIME + said("Seven."), PRIME + said("Eight.")],
    ),
    "messages that repeat the prompt": (
        [{"prompt": [USER], "chosen": [USER, BOT], "rejected": [USER, {**BOT, "content": "5"}]}],
        "pairs",
        BOTH,
    ),
    "a prompt as text, and messages that repeat it": ([{"prompt": "2+2?", "completion": [USER, BOT]}], "answers", FOUR),
    "an answer that begins like a short prompt": (
        [{"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi you"}],
        "pairs",
        [turn("user", "Hi") + said("Hi there"), turn("user", "Hi") + said("Hi you")],
    ),
    "one answer alone that repeats the prompt": (
        [{"prompt": "Name a prime.", "chosen": "Name a prime. Seven.", "rejected": "Eight."}],
        "pairs",
        [PRIME + said("Name a prime. Seven."), PRIME + said("Eight.")],
    ),
    # rows of several forms in one file
    "two forms": (
        [{"prompt": "2+2?", "completion": "4"}, {"prompt": "2+2?", "completion": "5"}, {"messages": CHATS}],
        "answers",
        [*BOTH, *FOUR],
    ),
    "pairs among answers": (
        [{"messages": CHATS}, {"messages": CHATS}, {"prompt": "2+2?", "chosen": "5", "rejected": "4"}],
        "answers",
        [*FOUR, *FOUR, BOTH[1]],
    ),
    "two forms as parquet fills them up": (
        [{"messages": CHATS, "text": None}, {"messages": CHATS, "text": None}, {"messages": None, "text": "hello"}],
        "answers",
        [*FOUR, *FOUR, "h[[ello<|im_end|>]]"],
    ),
    # columns that change what a row means
    "a system prompt beside messages": (
        [{"system": "Be brief.", "messages": CHATS}],
        "answers",
        [turn("system", "Be brief.") + FOUR[0]],
    ),
    "earlier turns in a column": (
        [{"instruction": "2+2?", "input": "", "output": "4", "history": [["Hi.", "Hello."]]}],
        "answers",
        [turn("user", "Hi.") + said("Hello.", last=False) + FOUR[0]],
    ),
    "a thought in a column": (
        [{"question": "2+2?", "reasoning_content": "easy", "answer": "4"}],
        "answers",
        [SUM + said("<think>\neasy\n</think>\n\n4")],
    ),
    "a ranking of LLaMA-Factory": (
        [
            {
                "conversations": [{"from": "human", "value": "2+2?"}],
                "chosen": {"from": "gpt", "value": "4"},
                "rejected": {"from": "gpt", "value": "5"},
            }
        ],
        "pairs",
        BOTH,
    ),
    "its chosen answers": (
        [{"messages": [USER], "chosen": BOT, "rejected": {**BOT, "content": "5"}}],
        "answers",
        FOUR,
    ),
    "messages with a label": ([{"messages": CHATS, "label": False}], "labels", FOUR),
    "a label of LLaMA-Factory": ([{"messages": CHATS, "kto_tag": True}], "labels", FOUR),
    "choices that the prompt names": (
        [{"question": "2+2? A) 3 B) 4", "choices": ["3", "4"], "answer": "B"}],
        "answers",
        [turn("user", "2+2? A) 3 B) 4") + said("B")],
    ),
    "an empty column of images": ([{"messages": CHATS, "images": []}], "answers", FOUR),
    # tokens that stand there anyway
    "an end token after an answer": ([{"prompt": "2+2?", "completion": "4<|im_end|>"}], "answers", FOUR),
    "two of them, and a newline": ([{"messages": [USER, {**BOT, "content": "4</s><|im_end|>\n"}]}], "answers", FOUR),
    "one of another family": (
        [{"prompt": "2+2?", "chosen": "4<|eot_id|>", "rejected": "5<|endoftext|>"}],
        "pairs",
        BOTH,
    ),
    "HTML that looks like one": ([{"prompt": "2+2?", "completion": "<s>5</s>"}], "answers", [SUM + said("<s>5</s>")]),
    "an answer about one": ([{"prompt": "2+2?", "completion": "<|im_end|>"}], "answers", [SUM + said("<|im_end|>")]),
    "a text with its beginning and its end": ([{"text": "<s>hello all</s>"}], "answers", ["h[[ello all<|im_end|>]]"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def renderer():
    return Renderer(made.byte_level(made.TOOLS))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def hidden_stream(renderer: Renderer, text: str) -> tuple[list[int], list[float]]:
    """Control tokens of data are characters: only those that end a turn, or open one, are tokens."""
    tokens, weights = stream(renderer, text.replace("<s>", "<\0s>").replace("</s>", "<\0/s>"))
    hidden = renderer.tokenizer("\0", add_special_tokens=False).input_ids
    kept = [(t, w) for t, w in zip(tokens, weights, strict=True) if [t] != hidden]
    return [t for t, _ in kept], [w for _, w in kept]


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_read_right(name, renderer, tmp_path):
    rows, lesson, texts = RIGHT[name]
    loaded = read_data_source(Part(path=write(tmp_path / "rows.jsonl", rows)), Tally())
    encoded = encode_rows(loaded, renderer, Encoding(), lesson)
    data = [datum for unit in encoded.units for datum in unit]
    if name == "an answer about one":
        assert renderer.tokenizer.decode(data[0].tokens) == SUM + "<|im_start|>assistant\n<|im_end|><|im_end|>"
        assert data[0].tokens.count(renderer.end_token) == 2
        return
    for datum, text in zip(data, texts, strict=True):
        if "text" in rows[-1] and rows[-1]["text"] and not text.startswith("<|"):
            assert renderer.tokenizer.decode(datum.tokens) == text.replace("[[", "").replace("]]", "")
            assert datum.weights == [0.0, *[1.0] * (len(datum.tokens) - 1)]
        else:
            assert (datum.tokens, datum.weights) == hidden_stream(renderer, text)
    assert not encoded.tally.rejected


HALF = "\ud83d"
# name -> row (after two good ones), lesson, what the refusal says, and the option that it names
REFUSED: dict[str, tuple[dict[str, Any], Lesson, str, str]] = {
    "half of a character": ({"prompt": "hi", "completion": f"a {HALF}"}, "answers", "half of a character", "skip"),
    "half of a character inside": (
        {"messages": [USER, {**BOT, "tool_calls": [{"name": "f", "arguments": {HALF: 1}}]}]},
        "answers",
        "column 'messages' holds half of a character",
        "skip",
    ),
    "NaN": ({"prompt": "hi", "completion": float("nan")}, "answers", r"'completion' is empty \(nan\)", "skip"),
    "NaN as text": ({"prompt": "hi", "completion": "nan"}, "answers", r"'completion' is empty \('nan'\)", "skip"),
    "NaN as a message": (
        {"messages": [{"role": "user", "content": "NaN"}, BOT]},
        "answers",
        "'NaN', which stands for a missing value",
        "skip",
    ),
    "answers alike": (
        {"prompt": "hi", "chosen": "a b", "rejected": " a\n b "},
        "pairs",
        "differ by white space alone",
        "skip",
    ),
    "dialogues alike": (
        {"chosen": [USER, BOT], "rejected": [USER, {**BOT, "content": "4 "}]},
        "pairs",
        "differ by white space alone",
        "skip",
    ),
    "an answer that has begun": (
        {"prompt": "Human: Hi.\n\nAssistant: Well,", "completion": "hello"},
        "answers",
        "ends with an answer that has begun; end it with 'Assistant:'",
        "skip",
    ),
    "pictures": (
        {"messages": [{**USER, "content": "<image>What is it?"}, BOT], "images": ["a.png"]},
        "answers",
        "column 'images' holds what belongs to the text",
        "drop, columns: [images]",
    ),
    "a picture as bytes": (
        {"prompt": "hi", "chosen": "a", "rejected": "b", "image": {"bytes": "x", "path": None}},
        "pairs",
        "column 'image' holds what belongs to the text",
        "drop, columns: [image]",
    ),
    "choices that nobody reads": (
        {"question": "2+2?", "choices": ["3", "4"], "answer": 1},
        "answers",
        "column 'choices' holds choices that 'question' does not name",
        "drop, columns: [choices]",
    ),
    "earlier turns that are none": (
        {"instruction": "hi", "output": "a", "history": ["x"]},
        "answers",
        "no question with its answer",
        "skip",
    ),
    "a label among answers": (
        {"prompt": "hi", "completion": "a", "label": False},
        "answers",
        r"one of answers with labels \('labels'\)",
        "filters",
    ),
    "answers among pairs": (
        {"prompt": "hi", "completion": "a"},
        "pairs",
        r"one of answers \('prompt and answer'\); this method learns from preference pairs",
        "skip",
    ),
    "a chat without an answer to judge": (
        {"messages": [*CHATS, USER], "label": True},
        "labels",
        "ends without an answer that the label could judge",
        "skip",
    ),
    "a column with another name": ({"prompt": "hi", "complletion": "a"}, "answers", "did you mean", "rename"),
    "a prompt without an answer": ({"prompt": [USER], "chosen": [USER], "rejected": [USER, BOT]}, "pairs", "", "skip"),
}  # fmt: skip
GOOD = {
    "answers": [{"prompt": "2+2?", "completion": "4"}] * 2,
    "pairs": [{"prompt": "2+2?", "chosen": "4", "rejected": "5"}] * 2,
    "labels": [{"prompt": "2+2?", "completion": "4", "label": True}] * 2,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_the_row_the_mend_and_the_option(name, renderer, tmp_path):
    row, lesson, problem, option = REFUSED[name]
    path = write(tmp_path / "rows.jsonl", [*GOOD[lesson], row])

    def run(skip: bool) -> Tally:
        tally = Tally()
        rows = read_data_source(Part(path=path), tally, skip_bad=skip)
        encoded = encode_rows(rows, renderer, Encoding(on_bad_row="skip" if skip else "error"), lesson)
        tally.add(encoded.tally)
        assert len(encoded.units) == 2
        return tally

    with pytest.raises(UserError, match=rf"rows.jsonl:3: .*{problem}"):
        run(skip=False)
    tally = run(skip=True)
    [reason] = tally.rejected
    assert tally.rejected[reason] == 1 and str(path) not in reason
    assert option in tally.options[reason] and str(path) in tally.first[reason]


def test_what_was_changed_is_counted_with_its_first_row(renderer, tmp_path):
    rows = [
        {"prompt": "Name a prime.", "chosen": "Name a prime. Seven.", "rejected": "Name a prime. Eight."},
        {"prompt": "Name a prime.", "chosen": "Seven.<|im_end|>", "rejected": "Eight."},
        {"chosen": [USER, BOT], "rejected": [USER, {**BOT, "content": "5"}]},
    ]
    loaded = load_rows(write(tmp_path / "rows.jsonl", rows))
    tally = encode_rows(loaded, renderer, Encoding(), "pairs").tally
    firsts = {reason: Path(tally.first[reason]).name for reason in tally.changed}
    assert {next(word for word in ("prompt", "end token", "dialogue") if word in reason): first
            for reason, first in firsts.items()} == {
        "prompt": "rows.jsonl:1", "end token": "rows.jsonl:2", "dialogue": "rows.jsonl:3",
    }  # fmt: skip


def test_nulls_of_a_parquet_file_are_nothing(tmp_path, renderer):
    """Structs of a column have the fields of all of them: those that a row lacks are null."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    calls = [{"name": "weather", "arguments": {"city": "Oslo"}}, {"name": "news", "arguments": {"topic": {"of": "x"}}}]
    rows = [
        {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [one]}], "gold": one} for one in calls
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    loaded = load_rows(tmp_path / "rows.parquet")
    assert [row["gold"] for row in loaded] == calls
    assert set(loaded[0]) == {"messages", "gold"}
    texts = [renderer.tokenizer.decode(datum.tokens) for [datum] in encode_rows(loaded, renderer, Encoding()).units]
    assert '<call>weather {"city": "Oslo"}</call>' in texts[0]
    assert '<call>news {"topic": {"of": "x"}}</call>' in texts[1]


def test_tools_without_nulls(renderer):
    schema = {"type": "object", "properties": {"city": {"type": "string", "default": None}, "unit": None}}
    row = {"messages": CHATS, "tools": [{"type": "function", "function": {"name": "weather", "parameters": schema}}]}
    [example] = detect_row_form([Row(row)]).read(Row(row))
    assert example.tools[0]["function"]["parameters"]["properties"] == {"city": {"type": "string"}}


def test_rows_of_a_function_are_looked_at_too(monkeypatch, renderer):
    import aurify
    from aurify import registry
    from aurify.data.sources import load_dataset

    monkeypatch.setattr(registry, "ENTRIES", {kind: dict(entries) for kind, entries in registry.ENTRIES.items()})

    @aurify.dataset("halves")
    def halves():
        return [{"prompt": "a", "completion": "\ud83d"}]

    with pytest.raises(UserError, match="dataset 'halves': row 1: column 'completion' holds half of a character"):
        load_dataset("halves")


def test_conversations_in_a_table(tmp_path, renderer):
    path = tmp_path / "rows.csv"
    quoted = json.dumps(CHATS).replace('"', '""')
    path.write_text(f'messages,lang\n"{quoted}",en\n"{quoted}",de\n')
    [[first], _] = encode_rows(load_rows(path), renderer, Encoding()).units
    assert (first.tokens, first.weights) == stream(renderer, FOUR[0])


# ---------------------------------------------------------------------- thoughts

OPENED = turn("user", "2+2?") + "<|im_start|>assistant\n<think>\n"


@pytest.mark.parametrize(
    ("answer", "trained"),
    [
        ({"content": "4", "reasoning_content": "easy"}, "easy\n</think>\n\n4"),
        ({"content": "<think>\neasy\n</think>\n\n4"}, "easy\n</think>\n\n4"),
        ({"content": "<think>easy</think>4"}, "easy</think>4"),
        ({"content": "easy</think>4"}, "easy</think>4"),
    ],
)
def test_a_thought_that_the_template_opens_is_opened_once(answer, trained):
    renderer = Renderer(made.byte_level(made.THINKING))
    [[datum]] = encode_rows([{"messages": [USER, {"role": "assistant", **answer}]}], renderer, Encoding()).units
    assert (datum.tokens, datum.weights) == stream(renderer, f"{OPENED}[[{trained}<|im_end|>]]")


def test_an_answer_without_a_thought_is_refused_there_or_gets_an_empty_one(tmp_path):
    renderer = Renderer(made.byte_level(made.THINKING))
    rows = [
        {"messages": [USER, {**BOT, "reasoning_content": "easy"}]},
        {"messages": CHATS},
        {"prompt": "2+2?", "completion": "4"},
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=r"rows.jsonl:2: .* opens a thought \(<think>\) before each reply, and '4' has"):
        encode_rows(load_rows(path), renderer, Encoding())
    encoded = encode_rows(load_rows(path), renderer, Encoding(on_bad_row="skip"))
    [(reason, num)] = encoded.tally.rejected.items()
    assert num == 2 and "maps: [empty_thoughts]" in encoded.tally.options[reason]
    mended = read_data_source(Part(path=path, maps=["empty_thoughts"]), Tally())
    units = encode_rows(mended, renderer, Encoding()).units
    for [datum], trained in zip(units, ("easy\n</think>\n\n4", "\n</think>\n\n4", "\n</think>\n\n4"), strict=True):
        assert (datum.tokens, datum.weights) == stream(renderer, f"{OPENED}[[{trained}<|im_end|>]]")


def test_columns_can_be_taken_off(tmp_path, renderer):
    row = {"messages": CHATS, "images": ["a.png"], "label": False}
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UserError, match=r"answers with labels.*drop, columns"):
        encode_rows(load_rows(path), renderer, Encoding())
    rows = read_data_source(Part(path=path, maps=[{"name": "drop", "columns": ["images", "label"]}]), Tally())
    assert len(encode_rows(rows, renderer, Encoding()).units) == 1


def test_the_good_answers_of_a_file_with_labels_can_be_imitated(tmp_path, renderer):
    path = write(tmp_path / "rows.jsonl", [{"messages": CHATS, "label": label} for label in (True, False, True)])
    maps = [{"name": "rename", "columns": {"label": "good"}}]
    rows = read_data_source(
        Part(path=path, maps=maps, filters=[{"name": "equals", "column": "good", "value": True}]), Tally()
    )
    assert len(encode_rows(rows, renderer, Encoding()).units) == 2


# ---------------------------------------------------------------------- templates that leave something out


def forgetting(template: str, condition: str) -> str:
    """The template, which writes only messages for which the condition holds."""
    head, _, tail = template.partition("{% endfor %}{% if add_generation_prompt")
    head = head.replace("{% for m in messages %}", f"{{% for m in messages %}}{{% if {condition} %}}")
    return f"{head}{{% endif %}}{{% endfor %}}{{% if add_generation_prompt{tail}"


ASKED_TWICE, TELL = [*CHATS, USER, BOT], {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("template", "condition", "messages"),
    [
        (made.CHATML, "m['role'] != 'system' or loop.first", [*CHATS, TELL, *CHATS]),
        (made.CHATML, "loop.index != 3", ASKED_TWICE),
        (made.CHATML, "m['role'] == 'assistant' or loop.index > 2", [TELL, USER, *ASKED_TWICE]),
        (made.TOOLS, "m['role'] != 'tool'", [*call({"city": "Oslo"}), {"role": "tool", "content": "rain"}, BOT]),
        (made.TOOLS, "m['role'] != 'tool' or loop.last", [*call({}), {"role": "tool", "content": "rain"}, BOT]),
    ],
    ids=["a system message in the middle", "a question", "two at the beginning", "a result", "a result in the middle"],
)
def test_a_template_that_leaves_a_message_out_is_refused(template, condition, messages):
    renderer = Renderer(made.byte_level(forgetting(template, condition)))
    with pytest.raises(UserError, match=r"row 1: .*leaves out"):
        encode_rows([{"messages": messages}], renderer, Encoding())


def test_a_system_prompt_without_a_place_of_its_own_begins_the_question():
    renderer = Renderer(made.byte_level(forgetting(made.CHATML, "m['role'] != 'system'")))
    [[datum]] = encode_rows([{"messages": [TELL, *CHATS]}], renderer, Encoding()).units
    assert "s\n\n2+2?" in renderer.tokenizer.decode(datum.tokens)


def test_rows_that_a_template_cuts_short_can_be_skipped(tmp_path):
    renderer = Renderer(made.byte_level(forgetting(made.CHATML, "m['role'] != 'system' or loop.first")))
    path = write(tmp_path / "rows.jsonl", [{"messages": CHATS}, {"messages": [*CHATS, TELL, *CHATS]}])
    encoded = encode_rows(load_rows(path), renderer, Encoding(on_bad_row="skip"))
    assert len(encoded.units) == 1 and encoded.tally.rejected == {"the chat template leaves out a message": 1}


def test_two_templates_of_which_the_one_without_tools_forgets_calls():
    tokenizer = made.byte_level(made.CHATML)
    tokenizer.chat_template = {"default": made.CHATML, "tool_use": made.TOOLS}
    renderer = Renderer(tokenizer)
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    messages = [*call({"city": "Oslo"}), {"role": "tool", "content": "rain"}, BOT]
    assert encode_rows([{"messages": messages, "tools": tools}], renderer, Encoding()).units
    with pytest.raises(UserError, match=r"row 1: .*leaves out tool calls.*tools_as_text"):
        encode_rows([{"messages": messages}], renderer, Encoding())


def test_a_template_that_takes_thoughts_in_a_channel_of_their_own():
    """gpt-oss: between its marks, and not as tags in the answer; earlier thoughts are left out, so that is refused."""
    renderer = Renderer(made.family("gpt-oss"))
    assert renderer.template.thought_key == "thinking"
    thinking = {**BOT, "reasoning_content": "easy"}
    expected = "<|channel|>analysis<|message|>easy<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>"
    for said_so in (thinking, {**BOT, "content": "<think>\neasy\n</think>\n\n4"}):
        [[datum]] = encode_rows([{"messages": [USER, said_so]}], renderer, Encoding()).units
        trained = [token for token, weight in zip(datum.tokens, datum.weights, strict=True) if weight]
        assert renderer.tokenizer.decode(trained) == expected
    rows = [{"messages": [USER, thinking, USER, thinking]}]
    with pytest.raises(UserError, match=r"rewrites earlier turns.*train_on: last"):
        encode_rows(rows, renderer, Encoding())
    [[datum]] = encode_rows(rows, renderer, Encoding(train_on="last")).units
    assert renderer.tokenizer.decode(datum.tokens).endswith(expected)
    assert not any(Renderer(made.family(name)).template.thought_key for name in made.FAMILIES if name != "gpt-oss")


def test_a_template_that_leaves_out_a_thought_beside_a_call_is_refused():
    silent = made.family("gpt-oss")
    silent.chat_template = silent.chat_template.replace("elif message.thinking", "elif false")
    row = {"messages": [*call({"city": "Oslo"}, reasoning_content="hm"), {"role": "tool", "content": "rain"}, BOT]}
    with pytest.raises(UserError, match="leaves out the thought"):
        encode_rows([row], Renderer(silent), Encoding())


def test_a_template_that_writes_messages_in_another_order_is_refused():
    """DeepSeek writes every system prompt first, also one that stands after the question."""
    renderer = Renderer(made.family("deepseek"))
    with pytest.raises(UserError, match=r"row 1: .*leaves out the order of .*\(user, system, assistant\)"):
        encode_rows([{"messages": [USER, TELL, BOT]}], renderer, Encoding())


def test_an_empty_system_prompt_leaves_nothing_behind():
    renderer = Renderer(made.family("mistral"))
    rows = [{"messages": [{"role": "system", "content": ""}, USER, BOT]}, {"messages": CHATS}]
    [[first], [second]] = encode_rows(rows, renderer, Encoding()).units
    assert first.tokens == second.tokens
