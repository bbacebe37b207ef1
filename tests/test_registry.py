from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import aurify
from aurify import registry
from aurify.errors import UserError


@pytest.fixture(autouse=True)
def own_entries(monkeypatch):
    """Each test registers into copies, so that no name outlives it."""
    monkeypatch.setattr(registry, "ENTRIES", {kind: dict(entries) for kind, entries in registry.ENTRIES.items()})


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield lambda text: Path("plugin.py").write_text(text)
    for name in [name for name in sys.modules if name.startswith("aurify_plugin_")]:
        del sys.modules[name]


def test_built_in_names_are_imported_when_asked_for():
    registry.declare_entries("task", {"now": "datetime:datetime.now", "path": "pathlib:Path"})
    assert registry.get_entry("task", "path") is Path
    assert registry.get_entry("algorithm", "grpo") is aurify.GRPO


def test_the_decorators_take_a_name_or_the_functions_own():
    @aurify.reward
    def short(task, trajectory):
        return 1.0

    @aurify.reward("long")
    def other(task, trajectory):
        return 0.0

    @aurify.task()
    class Riddles: ...

    assert registry.get_entry("reward", "short") is short
    assert registry.get_entry("reward", "long") is other
    assert registry.get_entry("task", "Riddles") is Riddles
    assert {"long", "short"} <= set(registry.list_registered("reward"))


def test_a_name_is_taken_once_per_kind():
    aurify.reward("same")(dict)
    aurify.dataset("same")(lambda: [])
    aurify.reward("same")(dict)  # the same thing again
    with pytest.raises(UserError, match=r"test_registry\.py:\d+: reward 'same' is registered already, at .*test_regis"):
        aurify.reward("same")(lambda task, trajectory: 1.0)
    with pytest.raises(UserError, match=r"algorithm 'grpo' is registered already, at aurify\.algorithms\.grpo:GRPO"):
        aurify.algorithm("grpo")(aurify.SFT)


def test_an_unknown_name_is_an_error_with_the_nearest_one():
    with pytest.raises(UserError, match="unknown algorithm 'reward_modle'; did you mean 'reward_model'"):
        registry.get_entry("algorithm", "reward_modle")
    with pytest.raises(UserError, match=r"unknown algorithm 'qqqqqq'; known: .*dpo, .*grpo"):
        registry.get_entry("algorithm", "qqqqqq")


def test_a_plugin_registers_and_runs_once(plugin):
    plugin("import aurify\n@aurify.reward\ndef mine(task, trajectory): return 0.5\n")
    registry.load_plugins(["plugin.py"])
    first = registry.get_entry("reward", "mine")
    registry.load_plugins([Path("plugin.py").resolve()])
    assert registry.get_entry("reward", "mine") is first
    assert first(None, None) == 0.5


@pytest.mark.parametrize(
    ("text", "paths", "expected"),
    [
        ("x = 1", ["plugni.py"], "plugin plugni.py: no such file; did you mean 'plugin.py'?"),
        ("\n1 / 0", ["plugin.py"], "plugin plugin.py:2: ZeroDivisionError: division by zero"),
        ("\ndef f(:", ["plugin.py"], "plugin plugin.py:2: SyntaxError"),
        ("import no_such_module", ["plugin.py"], "plugin plugin.py:1: ModuleNotFoundError"),
        ("raise SystemExit(1)", ["plugin.py"], "plugin plugin.py:1: SystemExit: 1"),
        ("import aurify\naurify.make_task('tsak')", ["plugin.py"], "plugin plugin.py:2: unknown task 'tsak'"),
        ("x = 1", ["plugin.py"], "plugin plugin.py registers nothing; put one of @aurify.task"),
        ("", ["no_such_module"], "plugin no_such_module: ModuleNotFoundError"),
        ("", "plugin.py", "'plugins' is 'plugin.py'; expected a list of Python files"),
    ],
)
def test_a_plugin_that_does_not_load_is_an_error_that_names_it(plugin, text, paths, expected):
    plugin(text)
    with pytest.raises(UserError) as caught:
        registry.load_plugins(paths)
    assert expected in str(caught.value)
    assert not [name for name in sys.modules if name.startswith("aurify_plugin_")]


def test_a_plugin_that_failed_leaves_no_names_and_can_be_mended(plugin):
    plugin("import aurify\n@aurify.reward\ndef mine(task, trajectory): return 0.5\n1 / 0\n")
    with pytest.raises(UserError, match=r"plugin\.py:4: ZeroDivisionError"):
        registry.load_plugins(["plugin.py"])
    assert "mine" not in registry.list_registered("reward")
    plugin("import aurify\n\n\n@aurify.reward\ndef mine(task, trajectory): return 0.25\n")
    registry.load_plugins(["plugin.py"])
    assert registry.get_entry("reward", "mine")(None, None) == 0.25


def test_a_name_used_twice_names_both_places(plugin):
    plugin("import aurify\n@aurify.task\ndef mine(): ...\n\n@aurify.task\ndef mine(): ...\n")
    with pytest.raises(
        UserError, match=r"^plugin\.py:5: task 'mine' is registered already, at plugin\.py:2; choose an"
    ):
        registry.load_plugins(["plugin.py"])


def test_a_file_that_was_imported_may_be_a_plugin_in_another_working_folder(plugin, tmp_path, monkeypatch):
    plugin("import aurify\n@aurify.reward\ndef mine(task, trajectory): return 0.5\n")
    runpy.run_path("plugin.py")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    registry.load_plugins(["../plugin.py"])
    assert registry.get_entry("reward", "mine")(None, None) == 0.5


def test_a_file_may_be_a_program_and_its_own_plugin(plugin):
    plugin(
        "import aurify\nfrom aurify import registry\n@aurify.reward\ndef mine(task, trajectory): return 0.5\n"
        "if __name__ == '__main__':\n    registry.load_plugins(['plugin.py'])\n"
        "    print(registry.get_entry('reward', 'mine'))\n"
    )
    done = subprocess.run([sys.executable, "plugin.py"], capture_output=True, text=True)
    assert done.returncode == 0 and "<function mine" in done.stdout, done.stderr


ENVIRONMENT = """@aurify.environment('mine')
class Mine:
    def __init__(self, task): ...
    async def start(self): ...
    async def step(self, message): ...
    async def close(self): ...
"""
ALGORITHM = """@aurify.algorithm('mine')
@dataclass(frozen=True)
class Mine:
    learns_from = "rollouts"
    needs = frozenset({"advantages"})
    per = "token"
    def advantages(self, groups): ...
    def loss(self, out, batch): ...
"""


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("task", "def mine(*, count: int = 3, **more): ...", None),
        ("task", "def mine(count, /): ...", "takes (count, /), and options come by name"),
        ("task", "async def mine(): ...", "takes () and is async; expected a function of its options that returns a T"),
        ("dataset", "def mine(path: str = ''): yield {}", None),
        ("dataset", "def mine(*paths): ...", "takes (*paths), and options come by name"),
        ("reward", "def mine(task, trajectory): ...", None),
        ("reward", "async def mine(task, trajectory): ...", None),
        ("reward", "def mine(completions, answer, **columns): ...", None),
        ("reward", "def mine(at_most: int): ...", None),
        ("reward", "def mine(trajectory): ...", "takes (trajectory); expected (task, trajectory), (prompts, "),
        ("reward", "def mine(task, text): ...", "takes (task, text); expected (task, trajectory)"),
        ("environment", ENVIRONMENT, None),
        ("environment", ENVIRONMENT.replace("self, task", "self"), "takes (); expected (task, ...options)"),
        ("environment", ENVIRONMENT.replace("close", "end"), "has no close(); expected"),
        ("environment", ENVIRONMENT.replace("async def", "def"), None),
        ("environment", ENVIRONMENT.replace("self, message", "self"), "has step(self); expected"),
        ("algorithm", ALGORITHM, None),
        ("algorithm", ALGORITHM.replace("@dataclass(frozen=True)", ""), "is not a dataclass; expected a dataclass"),
        ("algorithm", ALGORITHM.replace("per =", "pre ="), "has no per"),
        ("algorithm", ALGORITHM.replace("token", "word"), "has per = 'word', which is none of token, sequence, unit"),
        ("algorithm", ALGORITHM.replace("advantages(self", "advantage(self"), "and has no advantages(groups)"),
        ("algorithm", ALGORITHM.replace("out, batch", "out"), "has loss(self, out); expected"),
        (
            "algorithm",
            ALGORITHM.replace("per =", "x: 'Tensor' = 0\n    per ="),
            "has an annotation that cannot be read",
        ),
    ],
)
def test_a_wrong_signature_is_named_with_its_line(plugin, kind, text, expected):
    text = text if text.startswith("@") else f"@aurify.{kind}('mine')\n{text}"
    plugin(f"import aurify\nfrom dataclasses import dataclass\n{text}")
    if expected is None:
        registry.load_plugins(["plugin.py"])
        assert registry.get_entry(kind, "mine")
        return
    with pytest.raises(UserError) as caught:
        registry.load_plugins(["plugin.py"])
    assert str(caught.value).startswith(f"plugin.py:3: {kind} 'mine' ")
    assert expected in str(caught.value)
    assert "mine" not in registry.list_registered(kind)


def test_what_cannot_be_called_or_has_no_name_is_refused():
    with pytest.raises(
        UserError, match="task 'three' is 3, which cannot be called; expected a function of its options"
    ):
        aurify.task("three")(3)
    with pytest.raises(UserError, match=r"give one, as in @aurify.reward\('my_name'\)"):
        aurify.reward()(3)
