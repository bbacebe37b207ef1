"""Columns of tests as data sets have them, and tests that are refused before a run starts."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
from said import rewarded, said, task_of

from aurify.errors import UserError
from aurify.pipeline.check import check_recipe
from aurify.pipeline.recipe import build_recipe
from aurify.rewards.auto import auto, kind_of
from aurify.rewards.code import code
from aurify.rewards.code_tests import read_code_tests
from aurify.rewards.rubric import Rubric, build_rubric

RIGHT, WRONG = "```python\ndef add(a, b):\n    return a + b\n```", "```python\ndef add(a, b):\n    return [a + b]\n```"
METHOD = "```python\nclass Solution:\n    def add(self, a, b):\n        return a + b\n```"
SCRIPT = "```python\nprint(sum(map(int, input().split())))\n```"
SILENT = "```python\ninput()\n```"


def packed(text):
    return base64.b64encode(zlib.compress(pickle.dumps(text))).decode()


LCB = [
    {"input": "1\n2", "output": "3", "testtype": "functional"},
    {"input": "0\n0", "output": "0", "testtype": "functional"},
]
LCB_SCRIPT = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
CHECK = "def check(candidate):\n    assert candidate(1, 2) == 3\n"
CASES = [{"input": [1, 2], "output": 3}, {"input": [0, 0], "output": 0}]
VERIFIED = {"language": "python", "test_cases": [{"input": "1 2", "output": "3", "type": "stdin_stdout"}]}
FUNCTIONS = {
    "MBPP": {"test_list": ["assert add(1, 2) == 3"], "test_setup_code": "", "challenge_test_list": []},
    "MBPP, only challenges": {"test_list": [], "challenge_test_list": ["assert add(1, 2) == 3"]},
    "MBPP, sanitised": {"test_list": ["assert math.isclose(add(1, 2), 3)"], "test_imports": ["import math"]},
    "MBPP in an array": {"test_list": np.array(["assert add(1, 2) == 3"], dtype=object)},
    "one JSON text": {"tests": json.dumps(["assert add(1, 2) == 3"])},
    "a JSON text of one text": {"tests": json.dumps("assert add(1, 2) == 3")},
    "a list as Python writes it": {"test_list": str(["assert add(1, 2) == 3", 'assert add("a", "b") == "ab"'])},
    "HumanEval": {"test": f"METADATA = {{}}\n\n{CHECK}", "entry_point": "add"},
    "HumanEval without an entry point": {"test": CHECK},
    "KodCode": {"test": "from solution import add\n\ndef test_add():\n    assert add(1, 2) == 3\n"},
    "APPS": {"input_output": json.dumps({"fn_name": "add", "inputs": [[1, 2], [0, 0]], "outputs": [[3], [0]]})},
    "TACO, results as they are": {"input_output": {"fn_name": "add", "inputs": [[1, 2], [0, 0]], "outputs": [3, 0]}},
    "arguments by name": {"inputs": [{"a": 1, "b": 2}], "outputs": [3], "fn_name": "add"},
    "a function without a name": {"inputs": [[1, 2], [0, 0]], "outputs": [3, 0]},
    "arrays": {"inputs": np.array([[1, 2], [0, 0]]), "outputs": np.array([3, 0])},
    "lists of floats": {"inputs": [[0.1, 0.2]], "outputs": [0.3], "fn_name": "add"},
    "LiveCodeBench": {"public_test_cases": json.dumps(LCB), "metadata": json.dumps({"func_name": "add"})},
    "LiveCodeBench, packed": {
        "public_test_cases": json.dumps(LCB[:1]), "private_test_cases": packed(json.dumps(LCB)),
        "metadata": '{"func_name": "add"}',
    },
    "a list of test cases": {"tests": CASES, "fn_name": "add"},
}  # fmt: skip
SCRIPTS = {
    "APPS": {"input_output": json.dumps({"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]})},
    "APPS, lines in lists": {"input_output": {"inputs": [["1 2"]], "outputs": [["3"]], "fn_name": None}},
    "lists": {"inputs": ["1 2", "3 4"], "outputs": ["3", "7"]},
    "numbers": {"inputs": [1], "outputs": [1]},
    "outputs as numbers": {"inputs": ["1 2", "3 4"], "outputs": [3, 7]},
    "one text each": {"inputs": "1 2\n", "outputs": "3\n"},
    "JSON texts": {"inputs": json.dumps(["1 2", "3 4"]), "outputs": json.dumps(["3", "7"])},
    "CRLF": {"inputs": ["1 2\r\n"], "outputs": ["3\r\n"]},
    "tests as an object": {"tests": {"input": ["1 2"], "output": ["3"]}},
    "CodeContests": {
        "public_tests": {"input": ["1 2\n"], "output": ["3\n"]}, "private_tests": {"input": [], "output": []},
        "generated_tests": {"input": ["5 5\n"], "output": ["10\n"]},
    },
    "LiveCodeBench": {
        "public_test_cases": json.dumps(LCB_SCRIPT), "private_test_cases": packed(json.dumps(LCB_SCRIPT)),
    },
    "verification_info": {"verification_info": VERIFIED},
    "a list of test cases": {"test_cases": json.dumps([{"input": "1 2", "expected_output": "3"}])},
}  # fmt: skip


@pytest.mark.parametrize("title", FUNCTIONS)
def test_tests_of_a_function(title):
    info = FUNCTIONS[title]
    assert rewarded(code(), RIGHT, **info) == 1.0
    assert rewarded(code(), WRONG.replace("[a + b]", "str(a)"), **info) == 0.0
    assert rewarded(code(), "I do not know.", **info) == 0.0
    assert kind_of(task_of(**info)) == "code"
    build_rubric(["code"]).check_tasks([task_of(**info)])


@pytest.mark.parametrize("title", SCRIPTS)
def test_tests_of_a_script(title):
    info = SCRIPTS[title]
    assert rewarded(code(), SCRIPT, **info) == 1.0
    assert rewarded(code(), SILENT, **info) == 0.0
    assert kind_of(task_of(**info)) == "code"
    build_rubric(["code"]).check_tasks([task_of(**info)])


def test_a_method_of_the_class_solution():
    for title in ("APPS", "LiveCodeBench", "a function without a name", "HumanEval"):
        assert rewarded(code(), METHOD, **FUNCTIONS[title]) == 1.0
    test = {"test": "def check(candidate):\n    assert candidate(a=1, b=2) == 3", "entry_point": "Solution().add"}
    assert rewarded(code(), METHOD, **test) == 1.0
    assert rewarded(code(), METHOD.replace("add", "sub"), **FUNCTIONS["APPS"]) == 0.0


def test_only_apps_wraps_results_and_then_all_of_them():
    wrapped = {"fn_name": "add", "inputs": [[1, 2], [0, 0]], "outputs": [[3], [0]]}
    assert rewarded(code(), RIGHT, **wrapped) == rewarded(code(), WRONG, **wrapped) == 1.0  # either may be meant
    mixed = {"fn_name": "add", "inputs": [[1, 2], [[0], [1]]], "outputs": [[3], [0, 1]]}
    assert rewarded(code(), RIGHT, **mixed) == 0.0


def test_which_function_is_meant():
    """Without an entry point: the one that the question begins, else the last one."""
    several = "```python\ndef add(a, b):\n    return a + b\n\ndef helper():\n    return 0\n```"
    assert rewarded(code(), several, test=CHECK) == 0.0
    assert rewarded(code(), several, test=CHECK, starter_code="def add(a, b):\n") == 1.0
    own = "```python\ndef sum(a, b):\n    return a * b\n```"  # MBPP asks for functions with names of builtins
    assert rewarded(code(), own, test_list=["assert sum(2, 3) == 6"], code="def sum(a,b):\r\n    return a*b") == 1.0
    with pytest.raises(ValueError, match="they never use the program"):  # this is Python's own sum
        rewarded(code(), own, test_list=["assert sum([2, 3]) == 5"])


@pytest.mark.parametrize(
    ("printed", "expected", "reward"),
    [
        ("5", "5.0", 1.0),
        ("0.333333333", "0.3333333", 1.0),
        ("0.34", "0.33", 0.0),
        ("5.0", "5", 0.0),  # a whole number that is expected is to be whole
        ("yes", "YES", 0.0),
        ("1  2\n", "1 2", 1.0),
        ("1 2 3", "1 2", 0.0),
        ("nan", "0.5", 0.0),
        ("", "0.0", 0.0),
    ],
)
def test_outputs_are_compared_word_by_word(printed, expected, reward):
    assert rewarded(code(), f"print({printed!r})", inputs=["1"], outputs=[expected]) == reward


REFUSED = [
    ({"tests": "print(add(1, 2))"}, "holds no test that would run and check something"),
    ({"tests": "[]"}, "'tests' is empty"),
    ({"test_list": []}, "'test_list' is empty"),
    ({"input_output": ""}, "'input_output' is empty"),
    ({"tests": "assert add(1, 2) =="}, "does not parse: invalid syntax in 'assert add\\(1, 2\\) ==', line 1"),
    ({"test_list": ["assert add(1, 2) == x"], "test_setup_code": "x ="}, "does not parse"),
    ({"tests": "assert 1 + 1 == 2"}, "never uses the program"),
    ({"tests": "def test_a(mocker):\n    assert add(1, 2)"}, "the fixture 'mocker'"),
    ({"tests": "import hypothesis_\ndef test_a():\n    assert add(1, 2)"}, "imports 'hypothesis_', which the sandbox"),
    ({"inputs": ["", ""], "outputs": [""]}, "2 inputs and 1 outputs"),
    ({"inputs": ["1"], "outputs": [" \n"]}, "expects no output for any input"),
    ({"inputs": [[1]], "outputs": [None], "fn_name": "add"}, "expects None from every call"),
    ({"inputs": ["1"], "outputs": ["7" * 300_000]}, "expects 300,000 bytes of output; raise output_kb"),
    ({"tests": 5}, "is '5'; expected Python text"),
    ({"tests": ["assert add(1, 2)", {"input": 1, "output": 2}]}, "mixes kinds of tests"),
    ({"tests": {"cases": [1]}}, "has the keys cases; expected 'input' and 'output'"),
    ({"tests": [{"input": "1"}]}, "has an entry with the keys input; expected"),
    ({"input_output": '{"inputs": ["1'}, "expected Python text, a list of texts, or inputs and outputs"),
    ({"private_test_cases": "eJ" + "A" * 40}, "cannot be unpacked"),
]


@pytest.mark.parametrize(("info", "problem"), REFUSED, ids=lambda value: str(value)[:40])
def test_tests_that_cannot_judge_are_refused_at_the_start(info, problem):
    for reward in ("code", "auto"):
        if reward == "code" or kind_of(task_of("x", **info)) == "code":
            with pytest.raises(UserError, match=f"task 't/1': reward '{reward}': the column .*{problem}"):
                build_rubric([reward]).check_tasks([task_of("x", **info)])


def test_a_pickle_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "made"), "w")

    info = {"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()}
    with pytest.raises(ValueError, match="only text is unpacked"):
        read_code_tests(task_of(**info))
    assert not list(tmp_path.iterdir())


def test_tasks_of_other_kinds_are_left_alone():
    rubric = build_rubric(["code", "auto"])
    rubric.check_tasks([task_of("5"), task_of("5", tests=None, inputs=None), task_of(tests="assert add(1, 2) == 3")])
    with pytest.raises(UserError, match=r"task 't/1'.*\(2 more tasks cannot be judged either\)"):
        build_rubric(["code"]).check_tasks([task_of(tests="print(1)")] * 3)
    Rubric([lambda task, trajectory: 1.0]).check_tasks([task_of(tests="print(1)")])
    assert rewarded(auto, "5", "5") == 1.0
    assert said("5").text == "5"


@pytest.mark.parametrize("reward", ["code", "auto", [["exact_match", 1.0], ["code", 0.0]]])
def test_a_recipe_with_such_a_task_is_refused_before_the_first_step(tmp_path, reward):
    rows = [{"prompt": f"Add {number}.", "answer": "x", "tests": "assert add(1, 2) == 3"} for number in range(20)]
    rows[13]["tests"] = "def run():\n    assert add(1, 2) == 3\n"
    path = Path(tmp_path / "tasks.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "jsonl", "path": str(path), "reward": reward}
    recipe = build_recipe({"model": "random:tiny", "task": task, "stages": {"rl": {"method": "grpo"}}})
    with pytest.raises(UserError, match=r"tasks.jsonl:14.*holds no test that would run"):
        check_recipe(recipe)
    rows[13]["tests"] = "assert add(1, 2) == 3"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_recipe(recipe)


@pytest.mark.parametrize(
    "tests",
    [
        {"test_a": "assert add(1, 2) == 3", "test_b": "assert add(1, 1) == 2"},
        [{"code": "assert add(1, 2) == 3"}, {"code": "assert add(1, 1) == 2"}],
        ["```python\nassert add(1, 2) == 3\n```", "  assert add(1, 1) == 2"],
    ],
)
def test_texts_of_tests_in_objects_and_fences(tests):
    found = read_code_tests(task_of(tests=tests))
    assert found.texts == ("assert add(1, 2) == 3", "assert add(1, 1) == 2")
