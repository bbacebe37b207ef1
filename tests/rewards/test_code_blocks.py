"""Which code of an answer is the program."""

from __future__ import annotations

import pytest
from said import rewarded

from aurify.rewards.code import code, code_syntax
from aurify.rewards.code_blocks import program_in

ADD = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"
SCRIPT = "a, b = map(int, input().split())\nprint(a + b)\n"
DOCUMENTED = 'def add(a, b):\n    """\n    ```\n    add(1, 2)\n    ```\n    """\n    return a + b\n'
CALLING = "print(add(*map(int, input().split())))"
TESTS = {"tests": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]}
INPUTS = {"inputs": ["2 3\n", "5 6\n"], "outputs": ["5", "11"]}


def block(text, info="python", fence="```", before=""):
    lines = [f"{fence}{info}", *text.rstrip("\n").split("\n"), fence]
    return "\n".join(before + line for line in lines) + "\n"


RIGHT = {
    "one block": block(ADD),
    "no fence at all": ADD,
    "no fence, indented": "\n".join("    " + line for line in ADD.split("\n")),
    "another one before": f"{block(WRONG)}No, that subtracts:\n{block(ADD)}",
    "usage after it": f"{block(ADD)}Usage:\n{block('print(add(1, 2))')}",
    "usage that fails after it": f"{block(ADD)}Usage:\n{block('add(1)')}",
    "usage without a language": f"{block(ADD)}Usage:\n{block('result = add(1, 2)', '')}",
    "output after it": f"{block(ADD)}Output:\n{block('3', '')}",
    "a list as output": f"{block(ADD)}Output:\n{block('[1, 2]', '')}",
    "output that does not parse": f"{block(ADD)}Output:\n{block('1 + 2 = 3', '')}",
    "a command after it": f"{block(ADD)}Run it:\n{block('python add.py', 'bash')}",
    "a command before it": f"{block('pip install nothing', 'sh')}{block(ADD)}",
    "text after it": f"{block(ADD)}{block('3', 'text')}",
    "another language after it": f"{block(ADD)}In C:\n{block('int add(int a, int b) {return a;}', 'c')}",
    "tests after it": f"{block(ADD)}{block('import unittest' + chr(10) + 'class T(unittest.TestCase): pass')}",
    "imports in a block of their own": f"{block('import operator')}{block('def add(a, b): return operator.add(a, b)')}",
    "a helper in a block of its own": f"{block('def plus(a, b): return a + b')}Then\n"
    f"{block('def add(a, b): return plus(a, b)')}And\n{block('print(add(1, 2))')}",
    "in a list": f"1. Code:\n{block(ADD, before='   ')}",
    "in a bullet": f"- {block(ADD).replace(chr(10), chr(10) + '  ')}",
    "in a deep list": f"- a\n  - b:\n{block(ADD, before='        ')}",
    "indented by a tab": block(ADD, before="\t"),
    "tildes": block(ADD, fence="~~~"),
    "four backticks": block(f'"""\n```\nadd(1, 2)\n```\n"""\n{ADD}', fence="````"),
    "backticks in tildes": block(f'"""\n```\nadd(1, 2)\n```\n"""\n{ADD}', fence="~~~"),
    "a fence in a docstring": block(
        'def add(a, b):\n    """\n    ```\n    add(1, 2)\n    ```\n    """\n    return a + b'
    ),
    "a fence in a docstring at the margin": block(
        'def add(a, b):\n    """\n```\nadd(1, 2)\n```\n"""\n    return a + b'
    ),
    "CRLF": block(ADD).replace("\n", "\r\n"),
    "CR": block(ADD).replace("\n", "\r"),
    "py": block(ADD, "py"),
    "Python3 and a title": block(ADD, "Python3 title=x"),
    "python 3.11": block(ADD, "python3.11"),
    "a file name": block(ADD, "python:add.py"),
    "braces": block(ADD, "{.python .numberLines}"),
    "a space before the language": block(ADD, " python"),
    "no language": block(ADD, ""),
    "not closed": block(ADD).removesuffix("```\n"),
    "words on the line of the fence": f"Here: {block(ADD)}",
    "in a tag": f"<answer>{block(ADD).rstrip()}</answer>",
    "after a thought with a wrong one": f"<think>{block(WRONG)}</think>\n{block(ADD)}",
    "after a thought that the prompt opened": f"Subtract? {block(WRONG)}</think>\n{block(ADD)}",
    "a broken one after it": f"{block(ADD)}{block('def add(a, b:')}",
}


@pytest.mark.parametrize("title", RIGHT)
def test_the_program_is_found(title):
    assert rewarded(code(), RIGHT[title], **TESTS) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I do not know.",
        block("def add(a, b): return a - b"),
        block(ADD, "cpp"),
        f"<think>\n{block(ADD)}</think>\nI give up.",
        f"<think>\n{block(ADD)}",
        f"<think>\n{block(ADD)}Wait, is that right?",
        f"{block(ADD)}No:\n{block(WRONG)}",  # the last one counts
        f"{block(ADD)}No:\n{block(WRONG, '')}",
        f"{block(WRONG)}Usage:\n{block('print(add(1, 2))')}",
        "add(1, 2) == 3 and add(-1, 1) == 0",
        "The code is `def add(a, b): return a + b`.",
    ],
)
def test_what_is_no_right_program(answer):
    assert rewarded(code(), answer, **TESTS) == 0.0


SCRIPTS = {
    "one block": block(SCRIPT),
    "with a main guard": block(f"def main():\n    {SCRIPT.strip().replace(chr(10), chr(10) + '    ')}\n"
                               "if __name__ == '__main__':\n    main()"),
    "sample input and output": f"{block(SCRIPT)}Input:\n{block('2 3', '')}Output:\n{block('5', '')}",
    "a function, then the script": f"{block(ADD)}{block(CALLING)}",
    "the script, then its function alone": f"{block(ADD + CALLING)}In short\n{block(ADD)}",
    "the script, then usage": f"{block(ADD + CALLING)}{block('print(add(1, 2))')}",
    "the script, then how to run it": f"{block(SCRIPT)}{block('echo 2 3 | python add.py', 'bash')}",
    "read with sys.stdin": block("import sys\na, b = map(int, sys.stdin.read().split())\nprint(a + b)\nsys.exit()"),
    "read with open(0)": block("print(sum(map(int, open(0).read().split())))\nquit()"),
    "a wrong one before": f"{block('print(0)')}{block(SCRIPT)}",
}  # fmt: skip


@pytest.mark.parametrize("title", SCRIPTS)
def test_the_script_is_found(title):
    assert rewarded(code(), SCRIPTS[title], **INPUTS) == 1.0


def test_one_definition_does_not_bring_others_along():
    assert program_in(f"{block(WRONG)}No:\n{block(ADD)}") == ADD
    assert program_in("print(1)") == "print(1)"


def test_syntax_looks_at_the_answer_alone():
    assert rewarded(code_syntax, f"<think>{block(ADD)}</think>{block('def add(')}") == 0.0
    assert rewarded(code_syntax, f"<think>{block('def add(')}</think>{block(ADD)}") == 1.0


def test_long_answers_take_no_time():
    answer = block(ADD) + "```\n" * 20_000 + block("x = (" * 1000)
    assert "def add" in program_in(answer, {"add"})
