from __future__ import annotations

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
    registry.declare("task", {"now": "datetime:datetime.now", "path": "pathlib:Path"})
    assert registry.get("task", "path") is Path
    assert registry.get("algorithm", "grpo") is aurify.GRPO


def test_the_decorators_take_a_name_or_the_functions_own():
    @aurify.reward
    def short(task, trajectory):
        return 1.0

    @aurify.reward("long")
    def other(task, trajectory):
        return 0.0

    @aurify.task()
    class Riddles: ...

    assert registry.get("reward", "short") is short
    assert registry.get("reward", "long") is other
    assert registry.get("task", "Riddles") is Riddles
    assert {"long", "short"} <= set(registry.names("reward"))


def test_a_name_is_taken_once_per_kind():
    aurify.reward("same")(dict)
    aurify.task("same")(list)
    aurify.reward("same")(dict)  # the same thing again, as when a file is read twice
    with pytest.raises(UserError, match="reward 'same' is registered already, as builtins:dict"):
        aurify.reward("same")(list)


def test_an_unknown_name_is_an_error_with_the_nearest_one():
    with pytest.raises(UserError, match="unknown algorithm 'gpro'; did you mean 'grpo'"):
        registry.get("algorithm", "gpro")
    with pytest.raises(UserError, match="unknown algorithm 'qqqqqq'; known: dpo, grpo, reward_model, sft"):
        registry.get("algorithm", "qqqqqq")


def test_a_plugin_registers_and_runs_once(plugin):
    plugin("import aurify\n@aurify.reward\ndef mine(task, trajectory): return 0.5\n")
    registry.load_plugins(["plugin.py"])
    first = registry.get("reward", "mine")
    registry.load_plugins([Path("plugin.py").resolve()])
    assert registry.get("reward", "mine") is first
    assert first(None, None) == 0.5


@pytest.mark.parametrize(
    ("text", "paths", "expected"),
    [
        ("x = 1", ["plugni.py"], "plugin plugni.py: no such file; did you mean 'plugin.py'?"),
        ("1 / 0", ["plugin.py"], "plugin plugin.py: ZeroDivisionError: division by zero"),
        ("def f(:", ["plugin.py"], "plugin plugin.py: SyntaxError"),
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
