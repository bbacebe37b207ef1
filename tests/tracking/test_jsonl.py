"""Lines that survive a kill, and what a resumed run cuts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from aurify.files import replace_text
from aurify.tracking import jsonl

KILLED = """
import os, signal, sys
from pathlib import Path
from aurify.tracking import jsonl
for step in range(1, 6):
    jsonl.append_log(Path(sys.argv[1]), {"step": step, "loss": 1 / step})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_every_line_before_a_kill_is_on_disk(tmp_path):
    file = tmp_path / "metrics.jsonl"
    result = subprocess.run([sys.executable, "-c", KILLED, str(file)])
    assert result.returncode == -9
    assert [row["step"] for row in jsonl.read_log(file)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("torn", [b'{"step": 3, "lo', '{"step": 3, "text": "é'.encode()[:-1], b"\n", b"3\n"])
def test_a_torn_line_is_left_out_and_cut(tmp_path, torn):
    file = tmp_path / "metrics.jsonl"
    jsonl.append_log(file, {"step": 1}, {"step": 2})
    whole = file.read_bytes()
    file.write_bytes(whole + torn)
    assert [row["step"] for row in jsonl.read_log(file)] == [1, 2]
    jsonl.drop_log_after(file, 2)
    assert file.read_bytes() == whole


def test_cut_keeps_the_lines_up_to_a_step_byte_for_byte(tmp_path):
    file = tmp_path / "samples.jsonl"
    jsonl.append_log(file, {"step": 1, "text": "é\u2028\x85"}, {"step": 1, "loss": 0.1 + 0.2}, {"step": 2})
    kept = b"".join(file.read_bytes().splitlines(keepends=True)[:2])
    jsonl.drop_log_after(file, 1)
    assert file.read_bytes() == kept
    jsonl.drop_log_after(file, 0)
    assert file.read_bytes() == b""
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]  # no scratch file is left


def test_cutting_what_is_not_there_makes_no_file(tmp_path):
    jsonl.drop_log_after(tmp_path / "ledger.jsonl", 3)
    assert list(tmp_path.iterdir()) == [] and list(jsonl.read_log(tmp_path / "ledger.jsonl")) == []


@pytest.mark.parametrize("text", ["two\nlines", "\u2028\u2029\x85\x0b\x0c\r", '"quoted" \\', "日本 🜚", "\x00\x1b[31m"])
def test_any_text_is_one_line_and_comes_back(tmp_path, text):
    file = tmp_path / "samples.jsonl"
    jsonl.append_log(file, {"text": text}, {"text": "next"})
    assert file.read_bytes().count(b"\n") == 2
    assert [row["text"] for row in jsonl.read_log(file)] == [text, "next"]


def test_half_a_surrogate_pair_comes_back_too(tmp_path):
    file = tmp_path / "samples.jsonl"
    jsonl.append_log(file, {"text": "half \ud83d here"})
    assert json.loads(file.read_text(encoding="utf-8"))["text"] == "half \ud83d here"


def test_a_replaced_file_is_whole_and_leaves_nothing_beside_it(tmp_path):
    file = tmp_path / "results.json"
    replace_text(file, "old")
    replace_text(file, "new é\n")
    assert file.read_bytes() == "new é\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
