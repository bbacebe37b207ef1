"""Any text through every form of data and the templates of ten families: what is trained decodes to the text, no
control token comes out of data, and nothing ends in a traceback."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import tokenizers_in_code as made

from aurify.data.encode import Encoding, encode_rows
from aurify.data.forms import detect_row_form
from aurify.data.sources import Part, read_data_source
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.rows.files import build_row
from aurify.rows.row import Row, Tally
from aurify.thoughts import TAGS
from aurify.types import Datum, Lesson

NUM = 12  # texts of each form and family
CONTROL = sorted({token for one in made.FAMILIES.values() for token in (*one["special"], *one.get("markers", ()))})
PIECES = [
    *CONTROL,
    "\u202e\u2066abc\u2069", "\u200b", "\u200d", "\ufeff", "\u00ad", "e\u0301", "\u00e9", "\u4e2d\u6587", "\U0001f327",
    "\u0644\u0627", "\u2028", "\u0085", "\0", "\x1b[31m", "\r\n", "\t", "{{ bos_token }}", "{% if %}", "\\n", '"', "'",
    "aurifymark0z", "aurifyhidden0q", "aurifyreply", "Human:", "Assistant:", "[INST]", "####", "<<1+1=2>>",
]  # fmt: skip
HARMLESS = "harmless"
# ways of writing forms that have other names
RECOGNISED = (
    "parts", "messages as JSON", "messages as Python prints them", "an open chat with its answer", "history",
    "a transcript as prompt", "a whole transcript", "transcripts", "a system prompt", "labelled chats", "a ranking",
)  # fmt: skip


def chats(asked: str, said: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]


FORMS: dict[str, tuple[Lesson, Any]] = {
    "messages": ("answers", lambda q, a: {"messages": chats(q, a)}),
    "sharegpt": (
        "answers",
        lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
    ),
    "capybara": ("answers", lambda q, a: {"conversation": [{"input": q, "output": a}]}),
    "alpaca": ("answers", lambda q, a: {"instruction": q, "output": a}),
    "prompt and answer": ("answers", lambda q, a: {"prompt": q, "completion": a}),
    "pairs": ("pairs", lambda q, a: {"prompt": q, "chosen": a, "rejected": HARMLESS}),
    "dialogue pairs": ("pairs", lambda q, a: {"chosen": chats(q, a), "rejected": chats(q, HARMLESS)}),
    "labels": ("labels", lambda q, a: {"prompt": q, "completion": a, "label": True}),
    "rated completions": (
        "pairs",
        lambda q, a: {"prompt": q, "completions": [{"response": a, "score": 2}, {"response": HARMLESS, "score": 1}]},
    ),
    "parts": (
        "answers",
        lambda q, a: {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": q}]},
                {"role": "assistant", "content": [{"type": "output_text", "text": a}]},
            ]
        },
    ),
    "messages as JSON": ("answers", lambda q, a: {"messages": json.dumps(chats(q, a))}),
    "messages as Python prints them": ("answers", lambda q, a: {"messages": str(chats(q, a))}),
    "an open chat with its answer": ("answers", lambda q, a: {"messages": chats(q, a)[:1], "answer": a}),
    "a transcript as prompt": (
        "pairs",
        lambda q, a: {"prompt": f"\n\nHuman: {q}\n\nAssistant:", "chosen": a, "rejected": HARMLESS},
    ),
    "a whole transcript": ("answers", lambda q, a: {"text": f"Human: {q}\n\nAssistant: {a}"}),
    "transcripts": (
        "pairs",
        lambda q, a: {side: f"\n\nHuman: {q}\n\nAssistant: {t}" for side, t in (("chosen", a), ("rejected", HARMLESS))},
    ),
    "history": ("answers", lambda q, a: {"instruction": q, "output": a, "history": [[q, a]]}),
    "a system prompt": ("answers", lambda q, a: {"system": q, "prompt": q, "completion": a}),
    "labelled chats": ("labels", lambda q, a: {"messages": chats(q, a), "kto_tag": "good"}),
    "a ranking": (
        "pairs",
        lambda q, a: {"messages": chats(q, a)[:1], "chosen": chats(q, a)[1], "rejected": chats(q, HARMLESS)[1]},
    ),
    "text": ("answers", lambda q, a: {"text": a}),
}  # fmt: skip


def random_text(generator: random.Random) -> str:
    """It begins and ends with a letter, so that nothing around it is white space or an end token of its own."""
    words = [
        generator.choice(PIECES) if generator.random() < 0.7 else "word 12" for _ in range(generator.randrange(1, 9))
    ]
    return f"q{generator.choice(('', ' ')).join(words)}z"


@pytest.fixture(scope="module")
def renderers():
    return {name: Renderer(made.family(name)) for name in made.FAMILIES}


def control_ids(renderer: Renderer, datum: Datum) -> list[int]:
    return [token for token in datum.tokens if token in renderer.template.control.ids]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", made.FAMILIES)
def test_any_text(family, form, renderers):
    renderer, generator = renderers[family], random.Random(f"{family} {form}")
    lesson, build = FORMS[form]
    [plain, *_] = encode_rows([build("question", "answer")], renderer, Encoding(), lesson).units[0]
    for _ in range(NUM):
        asked, answer = random_text(generator), random_text(generator)
        row = build_row(json.loads(json.dumps(build(asked, answer))), "here:1")
        assert isinstance(row, Row)
        reader = detect_row_form([row], lesson)
        assert reader.form.name == form or form in RECOGNISED
        [datum, *_] = encode_rows([row], renderer, Encoding(), lesson, reader).units[0]
        trained = [token for token, weight in zip(datum.tokens, datum.weights, strict=True) if weight]
        text = renderer.tokenizer.decode(trained, clean_up_tokenization_spaces=False)
        if form == "text":
            assert renderer.tokenizer.decode(datum.tokens, clean_up_tokenization_spaces=False).find(answer) >= 0
        else:
            parts = TAGS.split(answer)  # a template may write tags of thoughts in its own way
            assert all(part.strip() in text for part in parts) and asked in renderer.tokenizer.decode(datum.tokens)
        spoken = renderer.template.patterns["assistant"] if form != "text" else renderer.template.control.pattern
        allowed = set(renderer.template.control.all.values()) - {
            renderer.template.control.all[name] for name in renderer.template.control.all if spoken.search(name)
        }  # tags of thoughts and calls, which an assistant may write
        here = [token for token in control_ids(renderer, datum) if token not in allowed]
        assert here == [token for token in control_ids(renderer, plain) if token not in allowed]


@pytest.mark.parametrize("form", FORMS)
def test_halves_of_characters_are_refused_with_their_row(form, renderers, tmp_path):
    lesson, build = FORMS[form]
    path = tmp_path / "rows.jsonl"
    rows = [build("question", f"answer {k}") for k in range(3)] + [build("question", "a \ud83d b")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"rows.jsonl:4: column '\w+' holds half of a character"):
        read_data_source(Part(path=str(path)), Tally())
    tally = Tally()
    read = read_data_source(Part(path=str(path)), tally, skip_bad=True)
    assert len(encode_rows(read, renderers["smollm2"], Encoding(), lesson).units) == 3
    assert tally.rejected.total() == 1


def test_both_halves_are_a_character(renderers):
    row = json.loads('{"prompt": "a", "completion": "\\ud83c\\udf27"}')
    [[datum]] = encode_rows([row], renderers["smollm2"], Encoding()).units
    assert "\U0001f327" in renderers["smollm2"].tokenizer.decode(datum.tokens)


def test_a_token_without_an_embedding_is_named():
    """Added tokens that the template does not write: the text of a row brings them."""
    tokenizer = made.byte_level()
    tokenizer.add_tokens(["<image>"])
    renderer, vocabulary = Renderer(tokenizer), len(tokenizer) - 1
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a <image>?", "completion": "b"}]
    with pytest.raises(UserError, match=rf"row 2: a text holds '<image>', which is token {vocabulary}; .*resize_token"):
        encode_rows(rows, renderer, Encoding(vocabulary=vocabulary))
    encoded = encode_rows(rows, renderer, Encoding(vocabulary=vocabulary, on_bad_row="skip"))
    assert len(encoded.units) == 1 and encoded.tally.rejected == {"a token without an embedding": 1}
