"""Every form of tests that people bring: the right program passes, wrong ones earn nothing, and tests that check
nothing pass nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from aurify.sandbox.sandbox import Limits, run_tests
from aurify.sandbox.texts import parse_test_texts

RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = {
    "another value": "def add(a, b):\n    return 'wrong'\n",
    "nothing": "",
    "an error": "def add(a, b):\n    raise ValueError\n",
    "None": "def add(*a, **k): pass\n",
    "an exit": "def add(a, b):\n    raise SystemExit(0)\n",
}


def forms(name):
    """title -> text of tests, from a file in which each stands below a line `#### title`."""
    text = (Path(__file__).parent / "forms" / f"{name}.txt").read_text()
    parts = [part.partition("\n") for part in ("\n" + text).split("\n#### ")[1:]]
    return {title: form for title, _, form in parts}


CHECKING, IDLE = forms("that_check"), forms("that_check_nothing")


@pytest.mark.parametrize("title", CHECKING)
def test_the_right_program_passes(title):
    report = run_tests(RIGHT, [CHECKING[title]])
    assert report.passed == report.total >= 1, report
    assert sum(text.count() for text in parse_test_texts([CHECKING[title]], "")) >= 1  # seen without running it


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("title", CHECKING)
def test_no_wrong_program_earns_anything(title, wrong):
    report = run_tests(WRONG[wrong], [CHECKING[title]])
    assert report.passed < report.total, report


@pytest.mark.parametrize("program", [RIGHT, WRONG["another value"]])
@pytest.mark.parametrize("title", IDLE)
def test_tests_that_check_nothing_pass_nobody(title, program):
    with pytest.raises(ValueError, match=r"none of them ran and checked anything|they never use the program"):
        run_tests(program, [IDLE[title]])


@pytest.mark.parametrize("then", ["time.sleep(1000)", "os._exit(0)", "sys.exit(0)"])
def test_what_does_not_come_to_its_end_has_not_passed(then):
    """Right once and then no more: the tests that did not run count against the share."""
    program = f"import os, sys, time\ndef add(a, b):\n    if a == 1: return a + b\n    {then}\n"
    two = "def test_two():\n    assert add(2, 2) == 4\ndef test_three():\n    assert add(1, 1) == 2"
    report = run_tests(program, ["assert add(1, 2) == 3", two], limits=Limits(seconds=0.5))
    assert (report.passed, report.total) == (2 if "sys" in then else 1, 3), report
