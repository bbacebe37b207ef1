from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from aurify.cli.main import app

EXAMPLES = str(Path(__file__).parents[2] / "examples" / "sop")


def run(*arguments):
    return CliRunner().invoke(app, ["sop", *arguments])


def test_list_show_and_check_the_examples(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    listed = run("list", EXAMPLES)
    assert listed.exit_code == 0
    assert "refund" in listed.output and "find_order, issue_refund" in listed.output
    shown = run("show", EXAMPLES, "refund")
    assert shown.output.startswith("## Procedure: refund") and "2. Look the order up (tool: find_order)" in shown.output
    assert "3 procedures, 0 with problems" in run("check", EXAMPLES).output


def test_check_names_every_problem_of_every_file(tmp_path):
    (tmp_path / "a.yaml").write_text("name: a b\nsteps: [x]\nextra: 1")
    (tmp_path / "b.md").write_text("# B\n\n## Steps\n1. x\n")
    (tmp_path / "c.yaml").write_text("name: c\nwhen: y\nsteps: [x]")
    checked = run("check", str(tmp_path))
    assert checked.exit_code == 1
    parts = ("a.yaml: unknown key 'extra'", "a.yaml: its name is 'a b'", "b.md: it has no 'when'", "c.yaml: c, 1 step,")
    assert [part for part in parts if part not in checked.output] == []
    assert "3 procedures, 2 with problems" in checked.output


@pytest.mark.parametrize(("query", "said"), [("money for a customer", "refund"), ("poem", "no procedure fits")])
def test_find_by_words(query, said):
    found = run("find", EXAMPLES, query, "--words")
    assert found.exit_code == 0 and said in found.output


def test_a_wrong_name_is_one_line(tmp_path):
    wrong = run("show", EXAMPLES, "refnd")
    assert wrong.exit_code == 2 and "did you mean 'refund'" in wrong.output
    assert run("list", str(tmp_path / "none")).exit_code == 2
