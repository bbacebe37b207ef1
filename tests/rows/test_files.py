"""Rows out of files, with errors that name file and line."""

from __future__ import annotations

import json

import pytest

from aurify.errors import UserError
from aurify.rows.sources import load_rows


def test_jsonl_and_json(tmp_path):
    rows = [{"a": "one\u2028line, \x85 and \u00fc"}, {"a": 2}]  # characters at which str.splitlines would cut
    lines = tmp_path / "rows.jsonl"
    lines.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    loaded = load_rows(lines)
    assert loaded == rows
    assert [row.location for row in loaded] == [f"{lines}:1", f"{lines}:2"]
    whole = tmp_path / "rows.json"
    whole.write_text(json.dumps(rows, indent=1))
    assert load_rows(str(whole)) == rows


def test_what_windows_writes(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')
    assert load_rows(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file has no rows; expected one JSON object a line"),
        (b'{"a": 1}\n{"a": }\n', r"rows.jsonl:2: not JSON: Expecting value \(column 7\): '\{\"a\": \}'"),
        (b'{"a": 1}\n7\n', "rows.jsonl:2: a row is a JSON object; this is int"),
        (b'[{"a": 1}, 7]', "rows.jsonl: row 2: a row is a JSON object; this is int"),
        (b'[{"a": 1},\n', "rows.jsonl:2: not JSON"),
        (b'{"a": "\xff"}', "not UTF-8 text"),
    ],
)
def test_mistakes(tmp_path, content, expected):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        load_rows(path)


def test_a_missing_file(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"row.jsonl"):
        load_rows(tmp_path / "row.jsonl")
    with pytest.raises(UserError):
        load_rows(tmp_path)
