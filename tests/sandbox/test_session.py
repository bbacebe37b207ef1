"""Issue 16, the Python tool: state stays for friendly code. The hostile programs of the code reward get nothing in it
either, and the trajectory goes on after each."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import tokenizers_in_code as made
from test_hostile import BACKENDS, CHEATS, ESCAPES, EXHAUSTING, PREFACE, children, gone, host, kind, marked

from aurify.environments.player import Player, RolloutOptions
from aurify.environments.rollout import rollout
from aurify.environments.tool_use import ToolUse
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.samplers.scripted import ScriptedSampler
from aurify.sandbox import sandbox, view
from aurify.sandbox.sandbox import Limits
from aurify.sandbox.session import LOST, PythonSession, SessionEnded
from aurify.tools.toolbox import Toolbox, build_tools
from aurify.types import SamplingParams, Task

pytestmark = pytest.mark.skipif(not BACKENDS, reason="neither bubblewrap nor Landlock works here")
SECONDS = 1.5
LIMITS = Limits(seconds=1.0, memory_mb=256, disk_mb=4, output_kb=16)
WIDE = Limits(seconds=10.0, memory_mb=256, disk_mb=4, output_kb=16)
__all__ = ["host", "kind", "marked"]  # fixtures
ITS_OWN_ORDERS = "its own orders"  # finds the socket that it may write to, which `test_forged_messages` is about


def run_all(*codes, seconds=10.0, limits=WIDE):
    """The answers of one session; of a call that the interpreter did not survive, the error's text."""

    async def run():
        session, answers = PythonSession(seconds, limits), []
        for code in codes:
            try:
                answers.append(await session.run(code))
            except SessionEnded as error:
                answers.append(f"ENDED {error}")
        session.close()
        return answers

    answers = asyncio.run(run())
    assert gone(set())
    return answers


def test_state_is_kept(kind):
    define = "import math\nx = 5\ndef double(a):\n    return a * 2"
    assert run_all(define, "print('so')\ndouble(x)", "x += 1", "x, math.floor(2.5)") == ["", "so\n10", "", "(6, 2)"]


def test_classes_closures_and_the_last_value_stay(kind):
    define = "class P:\n    n = 3\n[P() for _ in range(2)][0].n"
    assert run_all(define, "_ + P.n", "f = lambda: P.n\nf()", "'a'; None") == ["3", "6", "3", ""]
    assert run_all("def f(): pass", "__name__, f.__module__")[1] == "('__main__', '__main__')"


def test_errors_show_the_lines_of_the_call_and_nothing_else(kind):
    codes = ["def f(a):\n    return 1 / a", "f(1)\nf(0)", "x = 1\ny = (", "import json\njson.loads('{')", "f(4)"]
    answers = run_all(*codes)
    assert answers[1].splitlines()[0] == "Traceback (most recent call last):"
    assert 'File "<call 2>", line 2' in answers[1] and 'File "<call 1>", line 2, in f' in answers[1]
    assert "return 1 / a" in answers[1] and answers[1].endswith("ZeroDivisionError: division by zero")
    assert "SyntaxError" in answers[2] and 'File "<call 3>", line 2' in answers[2]
    assert "JSONDecodeError" in answers[3] and "decoder.py" not in answers[3]
    assert all("cells" not in answer and "compile" not in answer for answer in answers)
    assert answers[4] == "0.25"


def test_a_cause_is_told_too(kind):
    [answer] = run_all("try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError('no') from error")
    assert "ZeroDivisionError" in answer and "direct cause" in answer and answer.endswith("ValueError: no")


def test_both_streams_in_their_order(kind):
    code = "import os, sys\nprint('a')\nsys.stderr.write('b\\n')\nprint('c', flush=True)\nos.write(1, b'd'); None"
    assert run_all(code) == ["a\nb\nc\nd"]


def test_output_is_cut_in_the_middle(kind):
    first, second = run_all("for _ in range(1000): print('x' * 10_000)\n1 / 0", "1 + 1")
    assert len(first) < 17 * 1024 and first.startswith("xxx") and first.endswith("division by zero")
    num_left_out = int(first.partition("[... ")[2].partition(" bytes are left out")[0])
    error = len(first[first.index("Traceback") :]) + 1
    assert num_left_out == 1000 * 10_001 + error - 16 * 1024
    assert second == "2"


def test_a_call_that_hangs(kind):
    started = time.monotonic()
    _, hung, after = run_all("x = 1", "print('here', flush=True)\nwhile True: pass", "x", seconds=1.0)
    assert time.monotonic() - started < 10
    assert hung.startswith("ENDED the call took longer than 1 seconds") and LOST in hung and "here" in hung
    assert "NameError" in after and LOST not in after


def test_an_interpreter_that_ends_between_calls_is_told_of(kind):
    dying = "import os, threading\nx = 1\nthreading.Timer(0.2, os._exit, [0]).start()"

    async def run():
        session = PythonSession(10.0, LIMITS)
        await session.run(dying)
        for _ in range(100):
            if session.process.poll() is not None:
                break
            await asyncio.sleep(0.05)
        answers = [await session.run("'x' in globals()"), await session.run("2")]
        session.close()
        return answers

    assert asyncio.run(run()) == [f"(The interpreter had ended; {LOST}.)\nFalse", "2"]


def test_processor_time_is_limited_over_calls(kind):
    burn = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
    answers = run_all(*[burn] * 5, limits=LIMITS)
    assert sum(answer.startswith("ENDED") for answer in answers) in (1, 2)
    assert "processor time" in next(answer for answer in answers if answer.startswith("ENDED"))


def test_too_little_memory_is_an_error_and_state_stays(kind):
    _, answer, after = run_all("x = 1", "y = bytearray(1 << 30)", "x")
    assert answer.endswith("MemoryError") and after == "1"


@pytest.mark.parametrize("name", [*EXHAUSTING, *CHEATS])
def test_after_a_hostile_program_the_trajectory_goes_on(name, kind, host):
    started = time.monotonic()
    answers = run_all((EXHAUSTING | CHEATS)[name], "6 * 7", "6 * 7", seconds=SECONDS, limits=LIMITS)
    assert "GOT" not in answers[0] and len(answers[0]) < 3 * LIMITS.output_kb * 1024
    assert "42" in answers[1] or answers[1].startswith("ENDED")  # what it has changed may hang the next call too
    assert answers[2].endswith("42")
    assert time.monotonic() - started < 2 * SECONDS + 5


@pytest.mark.parametrize("name", [name for name in ESCAPES if name != ITS_OWN_ORDERS])
def test_nothing_gets_out_of_a_session(name, kind, host):
    values = host | {"NAMESPACES": kind == "bubblewrap"}
    given = "".join(f"{key} = {value!r}\n" for key, value in values.items())
    _, answer, after = run_all(given + PREFACE, ESCAPES[name] + "\nprint('END')", "6 * 7")
    assert "GOT" not in answer and answer.endswith("END"), answer
    assert after == "42"


WRITE = """
import os
for n in range({first}, 64):
    for data in ({data}):
        try: os.write(n, data)
        except OSError: pass"""
FORGERIES = {
    "on every stream": WRITE.format(first=0, data="b'ready', b'done'"),
    "long ones": WRITE.format(first=3, data="bytes(16), bytes(60000)"),
    "printed": "print('ready'); print('\\0' * 16); print('{\"value\": 1}')",
    "the end of this call": """
import os, sys
frame = sys._getframe()
while 'message' not in frame.f_locals: frame = frame.f_back
written = os.write(frame.f_locals['descriptor'], frame.f_locals['message'][:16])""",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_messages_change_nothing(name, kind):
    _, _, *after = run_all("x = 5", FORGERIES[name], "x + 1", "import time; time.sleep(0.1); x + 2", "x + 3")
    assert after == ["6", "7", "8"]


def test_a_flood_of_forged_messages_keeps_nobody_waiting(kind):
    """Two sessions on one event loop: one floods its socket and its output, the other gets its answers."""
    flood = "while True:" + WRITE.format(first=1, data="b'x' * 500,").replace("\n", "\n    ")

    async def run():
        bad, good = PythonSession(2.0, Limits(10.0)), PythonSession(10.0, Limits(10.0))
        flooding = asyncio.create_task(bad.run(flood))
        await asyncio.sleep(0.5)
        answers = [await good.run(f"{n} * 2") for n in range(20)]
        assert not flooding.done()
        with pytest.raises(SessionEnded, match="longer than 2 seconds"):
            await flooding
        bad.close(), good.close()
        return answers

    assert asyncio.run(run()) == [str(2 * n) for n in range(20)]


def test_code_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="100001 bytes; at most 100000"):
        run_all("#" * 100_001)
    assert run_all("x = '" + "a" * 99_000 + "'", "len(x)")[1] == "99000"


def test_trajectories_share_nothing(kind):
    async def one(open_tools, number):
        box = Toolbox(open_tools())
        try:
            await box.call("python", {"code": f"import sys\nsys.mine = [{number}]"})
            await asyncio.sleep(0.05)
            return await box.call("python", {"code": "sys.mine.append(0)\nsys.mine"})
        finally:
            await box.close()

    async def run():
        open_tools = build_tools(["python"])
        return await asyncio.gather(*(one(open_tools, number) for number in range(20)))

    assert asyncio.run(run()) == [f"[{number}, 0]" for number in range(20)]
    assert gone(set())


def test_the_limit_of_the_toolbox_ends_the_interpreter(kind):
    async def run():
        box = Toolbox(build_tools(["python"])(), seconds=1.0)
        codes = ["x = 1", "while True: pass", "'x' in globals()"]
        answers = [await box.call("python", {"code": code}) for code in codes]
        await box.close()
        return answers, dict(box.counts)

    answers, counts = asyncio.run(run())
    assert "longer than 1 seconds" in answers[1] and answers[2] == f"(The interpreter had ended; {LOST}.)\nFalse"
    assert counts["calls_time_limit"] == 1 and gone(set())


def test_the_thread_of_a_call_may_end(kind):
    """Linux ends a sandbox together with the thread that has started it."""
    session, answers = PythonSession(10.0, WIDE), []
    for code in ("x = 5", "x + 1"):
        thread = threading.Thread(target=lambda code=code: answers.append(asyncio.run(session.run(code))))
        thread.start()
        thread.join()
        time.sleep(0.2)
    session.close()
    assert answers == ["", "6"]


def test_a_session_that_nobody_closed_ends_with_its_owner(kind):

    async def run():
        session = PythonSession(10.0, LIMITS)
        assert await session.run("1") == "1" and children()

    asyncio.run(run())
    assert gone(set())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_interpreter_outlives_this_process(number, kind):
    lines = (
        "import asyncio",
        "from aurify.sandbox import sandbox",
        f"sandbox.find_sandbox_backend, sandbox.BOOT = lambda: {kind!r}, {sandbox.BOOT!r}",
        "from aurify.tools.toolbox import Toolbox, build_tools",
        "async def main():",
        "    box = Toolbox(build_tools(['python'])())",
        "    print(await box.call('python', {'code': '1 + 1'}), flush=True)",
        "    await box.call('python', {'code': 'while True: pass'})",
        "asyncio.run(main())",
    )
    environment = os.environ | {"PYTHONPATH": str(Path(sandbox.__file__).parents[2])}
    command = [sys.executable, "-c", "\n".join(lines)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    ) as owner:
        assert owner.stdout.readline() == "2\n"
        assert children()
        owner.send_signal(number)
    assert gone(set())


def test_wrong_options_are_told_before_the_run():
    with pytest.raises(UserError, match="memory_mb: 3 is out of range; it must be at least 64"):
        build_tools([{"name": "python", "memory_mb": 3}])
    with pytest.raises(UserError, match="tool 'python'"):
        build_tools([{"name": "python", "second": 3}])


def test_ipython_has_its_magics_and_the_rest_is_as_without_it(kind, monkeypatch):
    """The tests' own environment has IPython. The sandbox shows it only here."""
    folder = str(Path(pytest.importorskip("IPython").__file__).parents[1])
    paths = (*view.list_sandbox_paths(), folder)
    for module in (view, sandbox):
        monkeypatch.setattr(module, "list_sandbox_paths", lambda: paths)
        monkeypatch.setattr(module, "list_sandbox_packages", lambda: [folder])
    monkeypatch.setattr("aurify.tools.python.sandbox_has_module", lambda name: True)

    async def run(*codes):
        box = Toolbox(build_tools([{"name": "python", "ipython": True, "seconds": 60}])())
        answers = [await box.call("python", {"code": code}) for code in codes]
        await box.close()
        return answers

    value, magic, error, name = asyncio.run(run("x = 5\nx * 2", "%time y = x + 1\ny", "%nosuch", "x, y"))
    assert value == "10" and name == "(5, 6)"
    assert "Wall time" in magic and magic.endswith("\n6")
    assert "%nosuch` not found" in error
    assert gone(set())


def test_ipython_that_the_sandbox_lacks_is_told_before_the_run(monkeypatch):
    monkeypatch.setattr("aurify.tools.python.sandbox_has_module", lambda name: False)
    with pytest.raises(UserError, match=r"has no IPython; `.* -m pip install ipython` installs it"):
        build_tools([{"name": "python", "ipython": True}])


def play(replies, environment):
    renderer = Renderer(made.byte_level(), tools_as_text=True)
    sampler = ScriptedSampler(replies, renderer.tokenizer)
    return asyncio.run(rollout(environment.task, environment, sampler, renderer, SamplingParams(max_tokens=900)))


def call(code):
    return f"<tool_call>{json.dumps({'name': 'python', 'arguments': {'code': code}})}</tool_call>"


def test_a_rollout_uses_a_variable_of_an_earlier_turn(kind):
    task = Task("python/1", [{"role": "user", "content": "What is 12 times 34?"}], "408")
    replies = [call("x = 12 * 34"), call("```python\nprint(x)\n```"), call("x / 0"), "It is 408"]
    trajectory = play(replies, ToolUse(task, ["python"]))
    results = [message["content"] for message in trajectory.completion if message["role"] == "tool"]
    assert results[:2] == ["(no output)", "408"] and results[2].endswith("ZeroDivisionError: division by zero")
    assert trajectory.outcome == "done" and gone(set())


def test_a_trajectory_that_is_given_up_leaves_no_interpreter(kind):
    """As a run plays it: the environment in a thread of its own, and a step that takes too long."""
    renderer = Renderer(made.byte_level(), tools_as_text=True)
    task = Task("python/1", [{"role": "user", "content": "Wait."}], "")
    player = Player(
        partial(ToolUse, tools=build_tools(["python"])),
        ScriptedSampler([call("x = 1"), call("while True: pass")], renderer.tokenizer),
        renderer,
        RolloutOptions(step_seconds=1.0),
    )
    assert asyncio.run(player.play(task, SamplingParams(max_tokens=400))) is None
    assert "step() took longer than 1 seconds" in player.last_reason and gone(set())
