"""The reward that runs programs: every form of tests, honest programs of all sorts, and the criteria of the text."""

from __future__ import annotations

import asyncio

import pytest
from said import rewarded, said, task_of

from aurify.errors import UserError
from aurify.rewards.code import code, code_docstrings, code_syntax, code_type_hints, program_in
from aurify.rewards.rubric import Rubric, build_rubric
from aurify.sandbox import sandbox

ADD = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."
WRONG = "```python\ndef add(a, b):\n    return a - b\n```"


def test_the_last_block_is_the_program():
    assert program_in(f"{WRONG}\nNo:\n{ADD}") == "def add(a, b):\n    return a + b\n"
    assert program_in("print(1)") == "print(1)"


@pytest.mark.parametrize(
    "info",
    [
        {"tests": "assert add(1, 2) == 3\nassert add(0, 0) == 0"},
        {"tests": ["assert add(1, 2) == 3", "import math\nassert math.isclose(add(0.1, 0.2), 0.3)"]},
        {"test_list": ["assert add(1, 2) == three"], "test_setup_code": "three = 3"},
        {"test": "def check(candidate):\n    assert candidate(1, 2) == 3", "entry_point": "add"},
        {"tests": "from solution import add\ndef test_one():\n    assert add(1, 2) == 3"},
        {
            "tests": "import unittest\nclass Adding(unittest.TestCase):\n    def setUp(self): self.three = 3\n"
            "    def test_it(self): self.assertEqual(add(1, 2), self.three)"
        },
    ],
)
def test_forms_of_tests(info):
    assert rewarded(code(), ADD, **info) == 1.0
    assert rewarded(code(), WRONG, **info) == 0.0


def test_programs_that_print():
    info = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3", "7\n"]}
    assert rewarded(code(), "print(sum(map(int, input().split())))", **info) == 1.0
    assert rewarded(code(), "print(3)", **info) == 0.0
    assert rewarded(code("fraction"), "print(3)", **info) == 0.5
    assert rewarded(code(), "print(sum(map(int, open(0).read().split())))\nraise SystemExit(1)", **info) == 0.0
    with pytest.raises(ValueError, match="2 inputs and 1 outputs"):
        rewarded(code(), "print(3)", inputs=["", ""], outputs=[""])


def test_shares():
    info = {"tests": ["assert add(1, 2) == 3", "assert add(1, 2) == 4", "assert add(2, 2) == 4", "assert add() == 0"]}
    assert rewarded(code("fraction"), ADD, **info) == 0.5
    assert rewarded(code(), ADD, **info) == 0.0
    assert rewarded(code(), ADD) is None  # a task without tests


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("def f(xs): xs.sort()", "xs = [2, 1]\nf(xs)\nassert xs == [1, 2]"),
        ("def f(d): d['a'] = 1", "d = {}\nf(d)\nassert d == {'a': 1}"),
        ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]"),
        ("def f(x): raise ValueError('no')",
         "try:\n    f(1)\nexcept ValueError as e:\n    text = str(e)\nassert text == 'no'"),
        ("def f(g, xs): return [g(x) for x in xs]", "assert f(lambda x: x * 2, (1, 2)) == [2, 4]"),
        ("from collections import Counter\ndef f(s): return Counter(s)", "assert f('aab') == {'a': 2, 'b': 1}"),
        ("def f(): return (1, {2}, b'3', 1j, None, True, frozenset({4}))",
         "assert f() == (1, {2}, b'3', 1j, None, True, frozenset({4}))"),
        ("from fractions import Fraction\ndef f(): return Fraction(1, 2)",
         "from fractions import Fraction\nassert f() == Fraction(1, 2)"),
        ("def f(): return float('inf'), 10 ** 5000", "assert f() == (float('inf'), 10 ** 5000)"),
        ("import math\nLIMIT = 3\ndef f(): return math.pi", "assert math.floor(f()) == LIMIT"),
        ("class Node:\n    def __init__(self, v, n=None): self.v, self.n = v, n\n"
         "def f(node):\n    while node.n: node = node.n\n    return node.v", "assert f(Node(1, Node(2))) == 2"),
        ("class Box:\n    def __init__(self): self.x = []\n    def __len__(self): return len(self.x)\n"
         "    def __contains__(self, y): return y in self.x",
         "b = Box()\nb.x.append(1)\nassert len(b) == 0\nb.x = [1]\nassert len(b) == 1 and 1 in b and b is b"),
        ("import threading\ndef f():\n    out = []\n    t = threading.Thread(target=out.append, args=(1,))\n"
         "    t.start(); t.join()\n    return out", "assert f() == [1]"),
        ("import asyncio\nasync def g(): return 3\ndef f(): return asyncio.run(g())", "assert f() == 3"),
        ("def f(x):\n    print(x)\n    return x", "assert f('é') == 'é'"),
        ("class TooLow(ValueError):\n    def __init__(self, text, least):\n        super().__init__(text)\n"
         "        self.least = least\ndef f(x):\n    if x < 1: raise TooLow('too low', 1)\n    return x",
         "import pytest\ndef test_f():\n    with pytest.raises(TooLow, match='too low') as e:\n        f(0)\n"
         "    assert e.value.least == 1 and isinstance(e.value, ValueError)\n    assert f(1) == 1"),
        ("class Base(Exception): pass\nclass Own(Base): pass\ndef f(): raise Own('no')",
         "import unittest\nfrom solution import Base, f\nclass T(unittest.TestCase):\n    def test_it(self):\n"
         "        with self.assertRaises(Base):\n            f()"),
        ("def f(g, kinds):\n    try: return g()\n    except kinds: return 'caught'\nclass Own(Exception): pass",
         "def fails(error):\n    raise error\nassert f(lambda: fails(Own('x')), Own) == 'caught'\n"
         "assert f(lambda: fails(KeyError('x')), (KeyError, ValueError)) == 'caught'"),
        ("import sys\ndef f(): sys.exit(2)",
         "import pytest\ndef test_f():\n    with pytest.raises(SystemExit) as e: f()\n    assert e.value.code == 2"),
        ("def f(x): print('a', x)", "def test_f(capsys):\n    f(1)\n    assert capsys.readouterr().out == 'a 1\\n'"),
        ("def f(x): print('a', x)",
         "import io, contextlib\ndef test_f():\n    with contextlib.redirect_stdout(io.StringIO()) as out: f(1)\n"
         "    assert out.getvalue() == 'a 1\\n'"),
        ("def f(): print(input('?'), input())",
         "import pytest\ndef test_f(monkeypatch, capsys):\n    given = iter('ab')\n"
         "    monkeypatch.setattr('builtins.input', lambda prompt='': next(given))\n    f()\n"
         "    assert capsys.readouterr().out == 'a b\\n'"),
        ("import sys\ndef f(): return [int(line) for line in sys.stdin]",
         "import io\ndef test_f(monkeypatch):\n    monkeypatch.setattr('sys.stdin', io.StringIO('1\\n2\\n'))\n"
         "    assert f() == [1, 2]"),
        ("async def f(x): return x + 1", "import asyncio\nassert asyncio.run(f(1)) == 2"),
        ("import asyncio\nlock = asyncio.Lock()\nasync def f(x):\n    async with lock:\n        return x + 1",
         "import pytest\n@pytest.mark.asyncio\nasync def test_f():\n    assert await f(1) == 2 and await f(2) == 3"),
        ("class Dog:\n    def __repr__(self): return 'Dog()'\ndef f(): return Dog()",
         "'''\n>>> f()\nDog()\n'''\nassert isinstance(f(), Dog) and not isinstance(1, Dog)"),
        ("import datetime\ndef f(d): return d + datetime.timedelta(days=1)",
         "import datetime\nassert f(datetime.date(2024, 2, 28)) == datetime.date(2024, 2, 29)\n"
         "day = datetime.datetime(2024, 2, 28, 5)\nassert f(day) - day == datetime.timedelta(1)"),
        ("def f(n): return range(n)", "assert f(3) == range(3) and list(f(3)) == [0, 1, 2]"),
        ("def f(kind): return kind('5')", "assert f(int) == 5 and f(str) == '5'"),
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: List[int]\ndef f(): return P([1])",
         "assert f().x == [1] and 'x=[1]' in str(f())"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["bubblewrap", "landlock"])
def test_honest_programs(program, tests, kind, monkeypatch):
    if kind == "bubblewrap" and sandbox.explain_sandbox_failure(kind):
        pytest.skip(f"bubblewrap does not work here: {sandbox.explain_sandbox_failure(kind)}")
    if kind == "landlock" and sandbox.explain_sandbox_failure(kind):
        pytest.skip(f"Landlock does not work here: {sandbox.explain_sandbox_failure(kind)}")
    monkeypatch.setattr(sandbox, "find_sandbox_backend", lambda: kind)
    report = sandbox.run_tests(program, [tests])
    assert report.passed == report.total >= 1, report


def test_broken_tests_are_masked_not_zero():
    rubric = Rubric([(code(), 1.0, "code")])
    good, bad = task_of(tests="assert add(1, 2) == 3"), task_of(tests="assert add(1,")
    first, second = said(ADD), said(ADD)
    asyncio.run(rubric.score(good, [first]))
    asyncio.run(rubric.score(bad, [second]))
    assert (first.reward, second.reward) == (1.0, None)
    assert rubric.num_failures == {"code": 1}
    assert "the tests are broken: SyntaxError" in rubric.failures["code"]


def test_what_tests_cannot_hand_over_is_masked_too():
    mine = "class Mine: pass\n"
    for tests in (
        f"{mine}assert add(Mine(), 1)",
        f"{mine}import pytest\ndef test_it():\n    with pytest.raises(TypeError):\n        add(Mine(), 1)",
        f"{mine}import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n"
        "        self.assertEqual(add(Mine(), 1), 3)",
        f"{mine}def examples():\n    '''\n    >>> add(Mine(), 1)\n    5\n    '''",
    ):
        with pytest.raises(ValueError, match="only plain data and functions pass"):
            rewarded(code(), ADD, tests=tests)


def test_files_can_be_written_under_tmp_where_there_is_a_view_of_its_own():
    if sandbox.explain_sandbox_failure("bubblewrap"):
        pytest.skip("bubblewrap does not work here")
    code = "open('x', 'w').write('1')\nprint(open('/tmp/x').read())"
    process = sandbox.start_sandbox({"role": "script", "code": code}, sandbox.Limits(), using="bubblewrap")
    assert sandbox.read_sandbox_outcome(process, sandbox.Limits()).stdout == "1\n"


def test_without_any_sandbox_nothing_runs(monkeypatch):
    monkeypatch.setattr(sandbox, "explain_sandbox_failure", lambda kind: "it is not there")
    sandbox.find_sandbox_backend.cache_clear()
    try:
        with pytest.raises(UserError, match=r"bubblewrap: it is not there.*apt-get install bubblewrap"):
            code()
    finally:
        sandbox.find_sandbox_backend.cache_clear()


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"name": "code", "score": "most"}, "is 'most'; expected"),
        ({"name": "code", "seconds": 0}, "seconds: 0.*; it must be at least"),
        ({"name": "code", "memory": 3}, "no option 'memory'; did you mean 'memory_mb'"),
    ],
)
def test_options(entry, problem):
    with pytest.raises(UserError, match=problem):
        build_rubric([entry])


def test_criteria_of_the_text():
    full = '```python\ndef f(a: int, *, b: str) -> int:\n    """Does."""\n\n\nclass C:\n    def g(self, x): ...\n```'
    assert rewarded(code_syntax, full) == 1.0
    assert rewarded(code_docstrings, full) == pytest.approx(1 / 3)  # f, C, g
    assert rewarded(code_type_hints, full) == pytest.approx(3 / 5)  # a, b, f's result; x, g's result
    for text in ("def f(:", "", "(" * 10000, "```python\nfor\n```"):
        assert rewarded(code_syntax, text) == rewarded(code_docstrings, text) == rewarded(code_type_hints, text) == 0.0
