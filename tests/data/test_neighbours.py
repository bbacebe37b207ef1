"""Data sets that people bring, by their public forms and with their usual mistakes: what a model sees of each, or the
refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tokenizers_in_code as made
from marked import said, turn

from aurify.data.encode import Encoding, encode_rows
from aurify.data.filters import apply_row_filters
from aurify.data.forms import detect_row_form
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.rows.files import build_row
from aurify.rows.row import BadRow, Row, Tally
from aurify.types import Lesson

Q = "What is 2+2?"
USER, BOT = {"role": "user", "content": Q}, {"role": "assistant", "content": "4"}
ASKED = turn("user", Q)
FOUR = ASKED + said("4")
BOTH = [FOUR, ASKED + said("5")]
THOUGHT = ASKED + said("<think>\neasy\n</think>\n\n4")
HI = turn("user", "Hi")
CALL = '<call>weather {"city": "Oslo"}</call>'


def share(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in turns], **more}


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


def called(calls: Any, **more: Any) -> dict[str, Any]:
    return chat({"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": calls, **more})


def pair(chosen: Any, rejected: Any, prompt: Any = Q, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


ONE = {"name": "weather", "arguments": {"city": "Oslo"}}
ONE_CALL = [HI + said(CALL)]
# name -> a row, what is learnt, and each sequence
READ: dict[str, tuple[dict[str, Any], Lesson | None, list[str]]] = {
    # roles and keys of messages
    "roles with capitals": (share(("Human", Q), ("GPT", "4")), None, [FOUR]),
    "roles of FastChat": (share(("USER", Q), ("bard", "4")), None, [FOUR]),
    "text in place of content": (chat({"role": "user", "text": Q}, {"role": "assistant", "text": "4"}), None, [FOUR]),
    "a speaker": (chat({"speaker": "user", "text": Q}, {"speaker": "assistant", "text": "4"}), None, [FOUR]),
    "from and content": (chat({"from": "user", "content": Q}, {"from": "assistant", "content": "4"}), None, [FOUR]),
    "a content that is one part": (chat({**USER, "content": {"type": "text", "text": Q}}, BOT), None, [FOUR]),
    "parts of the Responses API": (
        chat(
            {**USER, "content": [{"type": "input_text", "text": Q}]},
            {**BOT, "content": [{"type": "output_text", "text": "4"}]},
        ),
        None,
        [FOUR],
    ),
    "a number as content": (chat(USER, {**BOT, "content": 4}), None, [FOUR]),
    "columns with capitals": ({"Question": Q, "Answer": "4"}, None, [FOUR]),
    # chats beside other columns
    "OpenR1": (
        {"problem": Q, "answer": "4", "generations": ["x"], "messages": [USER, {**BOT, "content": "It is 4."}]},
        None,
        [ASKED + said("It is 4.")],
    ),
    "Magpie, several turns": (
        {**share(("human", Q), ("gpt", "4"), ("human", "Hi"), ("gpt", "Hey")), "instruction": Q, "response": "4"},
        None,
        [ASKED + said("4", last=False) + HI + said("Hey")],
    ),
    "an open chat with its answer": ({"messages": [USER], "answer": "4"}, None, [FOUR]),
    "UltraChat": ({"prompt": Q, "prompt_id": "a", "messages": [USER, BOT]}, None, [FOUR]),
    "test cases are no chat": (
        {"question": Q, "solution": "4", "public_test_cases": '[{"input": "1", "output": "2"}]'},
        None,
        [FOUR],
    ),
    # thoughts
    "medical-o1": ({"Question": Q, "Complex_CoT": "easy", "Response": "4"}, None, [THOUGHT]),
    "a thought beside the text and in it": (
        chat(USER, {**BOT, "content": "<think>\neasy\n</think>\n\n4", "reasoning_content": "easy"}),
        None,
        [THOUGHT],
    ),
    "tags around the thought beside the text": (
        chat(USER, {**BOT, "reasoning_content": "<think>easy</think>"}),
        None,
        [THOUGHT],
    ),
    "a thought as a part": (
        chat(USER, {**BOT, "content": [{"type": "thinking", "thinking": "easy"}, {"type": "text", "text": "4"}]}),
        None,
        [THOUGHT],
    ),
    "a thought without the tag that opens it": (chat(USER, {**BOT, "content": "easy\n</think>\n\n4"}), None, [THOUGHT]),
    "... in a column": ({"prompt": Q, "completion": "easy\n</think>\n\n4"}, None, [THOUGHT]),
    "a tag that is spoken of": (
        chat(USER, {**BOT, "content": "Write </think> to end it."}),
        None,
        [ASKED + said("Write </think> to end it.")],
    ),
    # calls
    "one call, no list": (called(ONE), None, ONE_CALL),
    "calls as JSON": (called(json.dumps([ONE])), None, ONE_CALL),
    "a list of JSON": (called([json.dumps(ONE)]), None, ONE_CALL),
    "a call and a null": (called([{"id": None, "function": {"name": None, "arguments": None}}, ONE]), None, ONE_CALL),
    "function_call of OpenAI": (called(None, function_call={**ONE, "arguments": '{"city": "Oslo"}'}), None, ONE_CALL),
    "no calls, as text": (chat(USER, {**BOT, "tool_calls": "null"}), None, [FOUR]),
    "no calls, as pandas writes it": (chat(USER, {**BOT, "tool_calls": "None"}), None, [FOUR]),
    "no tools, as text": (chat(USER, BOT, tools="null"), None, [FOUR]),
    "a call in a turn of its own": (
        share(("human", "Hi"), ("gpt", "I look."), ("function_call", json.dumps(ONE))),
        None,
        [HI + said(f"I look.{CALL}")],
    ),
    "tags around a result": (
        chat(
            *called(ONE)["messages"],
            {"role": "tool", "content": "<tool_response>\nrain\n</tool_response>"},
            {"role": "assistant", "content": "Rain."},
        ),
        None,
        [HI + said(CALL, last=False) + turn("tool", "rain") + said("Rain.")],
    ),
    "arguments as Python prints them": (called([{**ONE, "arguments": "{'city': 'Oslo'}"}]), None, ONE_CALL),
    # conversations as text
    "a list of messages as JSON": ({"messages": [json.dumps(USER), json.dumps(BOT)]}, None, [FOUR]),
    "ShareGPT as Python prints it": (
        {"conversations": str(share(("human", Q), ("gpt", "4"))["conversations"])},
        None,
        [FOUR],
    ),
    # what another template wrote
    "sides of alignment-handbook": (
        pair("<|assistant|>\n4</s>\n", "<|assistant|>\n5</s>\n", f"<|user|>\n{Q}</s>\n"),
        None,
        BOTH,
    ),
    "an answer with its header": ({"prompt": Q, "completion": "<|im_start|>assistant\n4<|im_end|>"}, None, [FOUR]),
    "a question and answers with who speaks": (pair("Assistant: 4", "Assistant: 5", f"Human: {Q}"), None, BOTH),
    "questions and answers": ({"text": f"### Question: {Q}\n### Answer: 4"}, None, [FOUR]),
    "a text with the beginning of Llama": ({"text": "<|begin_of_text|>hi there"}, None, ["h[[i there<|im_end|>]]"]),
    # pairs
    "a pair that repeats the prompt without a space": (pair(f"{Q}4", f"{Q}5"), None, BOTH),
    "transcripts beside the prompt": (
        pair(f"\n\nHuman: {Q}\n\nAssistant: 4", f"\n\nHuman: {Q}\n\nAssistant: 5"),
        None,
        BOTH,
    ),
    "prompts that differ by white space": (
        {"chosen": [USER, BOT], "rejected": [{**USER, "content": f"{Q} "}, {**BOT, "content": "5"}]},
        None,
        BOTH,
    ),
    "a system prompt in the prompt alone": (
        pair([USER, BOT], [USER, {**BOT, "content": "5"}], [{"role": "system", "content": "Be."}, USER]),
        None,
        [turn("system", "Be.") + text for text in BOTH],
    ),
    "transcripts with single newlines": (
        {"chosen": f"Human: {Q}\nAssistant: 4", "rejected": f"Human: {Q}\nAssistant: 5"},
        None,
        BOTH,
    ),
    "HH-RLHF from Windows": (
        {"chosen": f"\r\n\r\nHuman: {Q}\r\n\r\nAssistant: 4", "rejected": f"\r\n\r\nHuman: {Q}\r\n\r\nAssistant: 5"},
        None,
        BOTH,
    ),
    "an answer that is a dialogue": (
        {"prompt": "Write a dialogue.", "completion": "User: Hi\nAssistant: Hey"},
        None,
        [turn("user", "Write a dialogue.") + said("User: Hi\nAssistant: Hey")],
    ),
    # labels
    **{
        f"label {good!r}": ({"prompt": Q, "completion": "4", "label": good}, None, [FOUR])
        for good in (True, 1, "True", "good", "bad", "thumbs_up", "-1", "chosen")
    },
    "a column that says whether the answer is right": (
        {"question": Q, "solution": "4", "is_correct": False},
        "labels",
        [FOUR],
    ),
}
# prompts that another template has written, each up to where the assistant speaks
WRITTEN = [
    "\n\nHuman: Hi\n\nAssistant:", "Human: Hi\nAssistant:", "Human: Hi\n\nAI:", "### Human: Hi### Assistant:",
    "USER: Hi\nASSISTANT:", "USER: Hi ASSISTANT:", "<|user|>\nHi</s>\n<|assistant|>\n",
    "<|user|>\nHi<|end|>\n<|assistant|>",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<s>[INST] Hi [/INST]",
    "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", "### Instruction:\nHi\n\n### Response:\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|prompter|>Hi<|endoftext|><|assistant|>",
]  # fmt: skip
# name -> a row (after two good ones), what is learnt, what the refusal says, and the option that it names
REFUSED: dict[str, tuple[dict[str, Any], Lesson, str, str]] = {
    "an unknown role": (
        share(("customer", Q), ("agent", "4")),
        "answers",
        "the role 'customer'; .*system",
        "rename_roles",
    ),
    "a picture as a part": (
        chat({**USER, "content": [{"type": "image_url", "image_url": {}}, {"type": "text", "text": Q}]}, BOT),
        "answers",
        r"messages\[0\] has a part of type 'image_url'; only text is trained",
        "skip",
    ),
    "a use of a tool as a part": (
        chat(USER, {**BOT, "content": [{"type": "tool_use", "name": "f", "input": {}}]}),
        "answers",
        "a part of type 'tool_use'",
        "skip",
    ),
    "no content": (chat({**USER, "content": None}, BOT), "answers", r"messages\[0\] \(user\) has no content", "skip"),
    "an empty question": (
        chat({**USER, "content": " "}, BOT),
        "answers",
        "a user message without text; fill it",
        "skip",
    ),
    "a content that is an object": (
        chat(USER, {**BOT, "content": {"a": 1}}),
        "answers",
        "a content that is dict",
        "skip",
    ),
    "a thought that never ends": (
        chat(USER, {**BOT, "content": "<think>hm 4"}),
        "answers",
        "a thought that never ends",
        "skip",
    ),
    "two thoughts": (
        chat(USER, {**BOT, "content": "<think>a</think>4", "reasoning_content": "b"}),
        "answers",
        "a thought beside the text and another one in it",
        "skip",
    ),
    "a thought alone": (
        chat(USER, {**BOT, "content": "", "thinking": "hm"}),
        "answers",
        "assistant message without",
        "skip",
    ),
    "a label of another kind": (
        {"prompt": Q, "completion": "4", "label": "spam"},
        "answers",
        "column 'label' is 'spam', which may say that the answer is a bad one",
        "drop, columns: [label]",
    ),
    "a wrong answer": (
        {"question": Q, "solution": "5", "is_correct": False},
        "answers",
        "one of answers with labels",
        "columns: {is_correct: good}",
    ),
    "no label": ({"prompt": Q, "completion": "4", "label": None}, "labels", "column 'label' is empty", "skip"),
    "a label of degrees": (
        {"prompt": Q, "completion": "4", "label": 0.7},
        "labels",
        "'label' is '0.7'; expected true",
        "",
    ),
    "a message in each row": (
        {"text": Q, "role": "prompter", "parent_id": None, "message_id": "a"},
        "answers",
        "one message of a conversation; join",
        "skip",
    ),
    "variables of the template": (
        chat(USER, BOT, chat_template_kwargs={"enable_thinking": True, "tools": None}),
        "answers",
        "'chat_template_kwargs' is {'enable_thinking': True}, which nobody reads",
        "template_options",
    ),
    "zero width": (pair("4", "\u200b4"), "pairs", "differ by white space alone, or by what nobody sees", "skip"),
    "forms of a letter": (pair("caf\u00e9", "cafe\u0301"), "pairs", "by what nobody sees", "skip"),
    "an end token": (pair("4", "4<|im_end|>"), "pairs", "by what nobody sees", "skip"),
    "an answer that nobody sees": (pair("4", "\u200b"), "pairs", "column 'rejected' is empty", "skip"),
    "a prompt of white space": (pair("4", "5", " "), "pairs", "column 'prompt' is empty", "skip"),
    "infinity": ({"prompt": Q, "completion": float("inf")}, "answers", "column 'completion' holds float", "skip"),
    "another prompt in the answers": (
        pair([{**USER, "content": "Hi"}, BOT], [{**USER, "content": "Hi"}, BOT]),
        "pairs",
        "begins with a message of role user; expected the assistant's",
        "skip",
    ),
    "the prompt alone": (
        pair(f"{Q} 4", Q),
        "pairs",
        "an answer that is the prompt alone, beside one that begins with it",
        "skip",
    ),
    "two chats, of which one is better": (
        {"conversation_a": [USER, BOT], "conversation_b": [USER, {**BOT, "content": "5"}], "winner": "model_b"},
        "answers",
        "no column 'prompt'",
        "rename",
    ),
}
GOOD: dict[str, list[dict[str, Any]]] = {
    "answers": [{"prompt": "Hi", "completion": "Hey"}] * 2,
    "pairs": [{"prompt": "Hi", "chosen": "Hey", "rejected": "No"}] * 2,
    "labels": [{"prompt": "Hi", "completion": "Hey", "label": True}] * 2,
}


@pytest.fixture(scope="module")
def renderer():
    return Renderer(made.byte_level(made.TOOLS))


def render(renderer: Renderer, rows: list[dict[str, Any]], lesson: Lesson | None) -> list[str]:
    """What the model sees, trained parts in double brackets."""
    located = [build_row(row, f"rows.jsonl:{k}") for k, row in enumerate(json.loads(json.dumps(rows)), 1)]
    assert all(isinstance(row, Row) for row in located)
    reader = detect_row_form(located, lesson)
    texts = []
    for unit in encode_rows(located, renderer, Encoding(), reader.lesson, reader).units:
        for datum in unit:
            text, before = "", 0.0
            for token, weight in zip(datum.tokens, datum.weights, strict=True):
                text += ("[[" if weight else "]]") * (weight != before) + renderer.tokenizer.decode([token])
                before = weight
            texts.append(text + "]]" * bool(before))
    return texts


@pytest.mark.parametrize("name", READ)
def test_what_is_read_right(name, renderer):
    row, lesson, texts = READ[name]
    assert render(renderer, [row], lesson) == texts


@pytest.mark.parametrize("prompt", WRITTEN)
def test_prompts_that_another_template_has_written(prompt, renderer):
    asked = turn("user", "Hi")
    assert render(renderer, [pair(" a.", " b.<|im_end|>", prompt)], "pairs") == [asked + said("a."), asked + said("b.")]
    assert render(renderer, [{"prompt": prompt, "completion": "a."}], "answers") == [asked + said("a.")]


@pytest.mark.parametrize(
    "text", ["User: a", "The User: a\nAssistant: b", "User: a\nUser: b\nAssistant: c", "x [INST] y"]
)
def test_what_only_looks_like_a_transcript_stays_text(text, renderer):
    assert render(renderer, [{"prompt": text, "completion": "a"}], None) == [turn("user", text) + said("a")]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_the_row_the_mend_and_the_option(name, renderer):
    row, lesson, problem, option = REFUSED[name]
    rows = [Row(each, f"rows.jsonl:{k}") for k, each in enumerate([*GOOD[lesson], row], 1)]
    with pytest.raises(UserError, match=f"rows.jsonl:3: .*{problem}"):
        encode_rows(rows, renderer, Encoding(), lesson)
    encoded = encode_rows(rows, renderer, Encoding(on_bad_row="skip"), lesson)
    [reason] = encoded.tally.rejected
    assert len(encoded.units) == 2 and option in encoded.tally.options[reason]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": Q}, "prompts without answers, .*they are tasks"),
        ({"prompt": [USER], "reward_model": {"ground_truth": "4"}}, "prompts without answers"),
        ({"data": [Q, "4"], "id": "0"}, r"no known form of data; columns: data \(list\), id \(str\).*rename"),
    ],
)
def test_a_file_in_no_form_says_what_to_do(row, problem):
    with pytest.raises(UserError, match=problem):
        detect_row_form([Row(row, "rows.jsonl:1")])


def test_columns_that_nobody_reads_are_told():
    rows = [Row({"prompt": Q, "completion": "4", "tools": [], "source": "x", "score": 1, "empty": None})]
    assert detect_row_form(rows).unread(rows) == ["score", "source"]


def test_a_column_that_a_row_of_another_form_reads_is_read():
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [Row({"prompt": "a", "completion": "b"}, f"r:{k}") for k in range(2)]
    rows.append(Row({"messages": said, "source": "x"}, "r:2"))
    assert detect_row_form(rows).unread(rows) == ["source"]
    assert not any(row.changes for row in rows)


def test_roles_are_renamed(renderer):
    rows = [Row(share(("customer", Q), ("agent", "4")), "rows.jsonl:1")]
    step = {"name": "rename_roles", "roles": {"customer": "user", "agent": "assistant"}}
    assert render(renderer, list(apply_row_filters(rows, [step], [], Tally())), None) == [FOUR]


def test_a_conversation_that_is_no_json_is_named():
    half = json.dumps([USER, BOT])[:-1]
    row = build_row({"messages": half}, "rows.jsonl:7")
    assert isinstance(row, BadRow) and "rows.jsonl:7: column 'messages' begins like JSON and is none" in str(row)
