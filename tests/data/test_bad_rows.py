"""Hundreds of malformed rows of every form: each is rejected with a reason, counted, and nothing else is lost."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers_in_code as made

from aurify.data.encode import Encoding, encode_rows
from aurify.data.forms import detect_row_form
from aurify.data.sources import Part, read_data_source
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.rows.row import Tally
from aurify.rows.sources import load_rows

NUM = 300
FIXTURES = Path(__file__).parent / "fixtures"
FILES = sorted(path.name for path in FIXTURES.glob("*.jsonl"))
JUNK: list[Any] = [None, "", [], {}, 7, True, [None], [[]], [{}], {"a": {"b": []}}, [{"role": "user"}], [1, 2]]


def broken(row: dict[str, Any], generator: random.Random) -> str:
    """A line with one thing wrong in a column that matters."""
    row = json.loads(json.dumps(row))
    ways: list[Callable[[], str]] = [
        lambda: json.dumps(row)[: generator.randrange(1, 12)],  # cut off
        lambda: json.dumps(generator.choice([7, "text", [row], None, True])),  # no object
        lambda: "{" * generator.randrange(1, 5000),
        lambda: json.dumps({f"x{name}": 0 for name in row}),
        lambda: json.dumps(dict.fromkeys(row, generator.choice([junk for junk in JUNK if junk != 7]))),  # 7 is a text
        lambda: json.dumps({}),
    ]
    return generator.choice(ways)()


@pytest.fixture(scope="module")
def renderer():
    return Renderer(made.byte_level(made.TOOLS))


@pytest.mark.parametrize("file", FILES)
def test_each_malformed_row_is_counted_and_explained(file, renderer, tmp_path):
    good = (FIXTURES / file).read_text().splitlines()
    generator = random.Random(file)
    lines = [broken(json.loads(generator.choice(good)), generator) for _ in range(NUM)]
    path = tmp_path / "x"
    # most of the first 200 rows, which decide on the form, are good
    path.write_text("\n".join([*good * 99, *lines, *good]), encoding="utf-8")
    tally = Tally()
    rows = read_data_source(Part(path=str(path)), tally, skip_bad=True)
    found = detect_row_form(rows)
    assert found.form.name == detect_row_form(load_rows(FIXTURES / file)).form.name
    encoded = encode_rows(rows, renderer, Encoding(on_bad_row="skip"), found.lesson, found)
    clean = encode_rows(load_rows(FIXTURES / file), renderer, Encoding(), found.lesson).units
    tokens = [[datum.tokens for datum in unit] for unit in encoded.units]
    assert tokens == [[datum.tokens for datum in unit] for unit in clean] * 100
    tally.add(encoded.tally)
    assert tally.rejected.total() == NUM and tally.num_rows == NUM + 100 * len(good)
    assert 3 <= len(tally.rejected) <= 40  # kinds of reasons, not one a row
    for reason in tally.rejected:
        assert str(path) not in reason
        assert tally.first[reason].startswith(f"{path}:") and len(tally.first[reason]) < 600
    told = "\n".join(tally.lines())
    assert all(reason in told for reason in tally.rejected)


@pytest.mark.parametrize("file", FILES)
def test_mutations_never_crash(file, renderer):
    """Anything at any depth replaced by junk: a row is used or it is a user error that names it."""
    generator = random.Random(f"deep {file}")
    originals = load_rows(FIXTURES / file)
    found = detect_row_form(originals)
    num_refused = 0
    for _ in range(NUM):
        rows = load_rows(FIXTURES / file)
        row = rows[generator.randrange(len(rows))]
        mutate(row, generator)
        reader = detect_row_form([*originals, *rows], found.lesson, found.form.name)
        try:
            encoded = encode_rows([*originals, *rows], renderer, Encoding(on_bad_row="skip"), found.lesson, reader)
        except UserError as error:
            pytest.fail(f"not counted: {error}; the row is {row}")
        num_refused += encoded.tally.rejected.total()
        assert encoded.tally.rejected.total() <= 1
    assert num_refused > NUM / 10


def mutate(value: Any, generator: random.Random) -> None:
    """Replaces, or removes, one thing somewhere inside."""
    while True:
        key = generator.choice(list(value) if isinstance(value, dict) else range(len(value)))
        inner = value[key]
        if isinstance(inner, (dict, list)) and inner and generator.random() < 0.7:
            value = inner
            continue
        if generator.random() < 0.3:
            del value[key]
        else:
            value[key] = generator.choice(JUNK)
        return


def test_without_skip_the_first_bad_row_is_the_error(renderer, tmp_path):
    path = tmp_path / "x"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    with pytest.raises(UserError, match=r"x:2: no column 'completion'"):
        encode_rows(load_rows(path), renderer, Encoding())


@pytest.mark.parametrize(
    ("name", "content", "reason", "num"),
    [
        ("csv", "prompt,completion\na,b\nc\nd,e\nf,g,h\n", "another number of fields than columns", 2),
        ("jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt"\n7\n', "not JSON", 1),
    ],
)
def test_lines_that_are_no_rows(name, content, reason, num, tmp_path):
    path: Path = tmp_path / name
    path.write_text(content)
    tally = Tally()
    assert len(read_data_source(Part(path=str(path)), tally, skip_bad=True)) >= 1
    assert tally.rejected[reason] == num
