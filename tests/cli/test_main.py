from __future__ import annotations

import errno

import pytest
import typer
from typer.testing import CliRunner

import aurify
from aurify.cli.main import Commands, app
from aurify.errors import UserError, explain_os_error

broken = typer.Typer(cls=Commands, pretty_exceptions_enable=False)


@broken.callback()
def options(debug: bool = False) -> None: ...


@broken.command()
def user() -> None:
    raise UserError("recipe.yaml: a\n  long   text")


@broken.command()
def stop() -> None:
    raise KeyboardInterrupt("go on with: aurify train --resume last")


@broken.command()
def stop_twice() -> None:
    try:
        raise KeyboardInterrupt("go on with: aurify train --resume last")
    finally:
        raise KeyboardInterrupt  # the second Ctrl-C, while the first one is being dealt with


@broken.command()
def bug() -> None:
    raise ZeroDivisionError("ours")


def test_a_user_error_is_one_line_and_exit_code_2():
    result = CliRunner().invoke(broken, ["user"])
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", "error: recipe.yaml: a long text\n")


def test_debug_shows_the_traceback_wherever_it_stands():
    for arguments in (["--debug", "user"], ["user", "--debug"]):
        result = CliRunner().invoke(broken, arguments)
        assert result.exit_code == 2
        assert "Traceback" in result.stderr


def test_ctrl_c_ends_with_130_and_says_how_to_go_on():
    result = CliRunner().invoke(broken, ["stop"])
    assert (result.exit_code, result.stderr) == (130, "stopped: go on with: aurify train --resume last\n")


def test_a_second_ctrl_c_does_not_hide_how_to_go_on():
    result = CliRunner().invoke(broken, ["stop-twice"])
    assert (result.exit_code, result.stderr) == (130, "stopped: go on with: aurify train --resume last\n")


def test_a_bug_is_not_dressed_up_as_a_user_error():
    result = CliRunner().invoke(broken, ["bug"])
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/runs"), "--runs FOLDER"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to"), "engine.micro_batch_tokens"),
    ],
)
def test_what_the_machine_refuses_is_said_in_one_line_with_the_mend(error, says):
    @broken.command()
    def refused() -> None:
        raise error

    result = CliRunner().invoke(broken, ["refused"])
    assert result.exit_code == 2
    assert says in result.stderr and result.stderr.count("\n") == 1


def test_another_error_of_the_system_is_a_bug():
    assert explain_os_error(FileNotFoundError(errno.ENOENT, "No such file")) is None


def test_version_and_an_unknown_command():
    assert CliRunner().invoke(app, ["--version"]).stdout == f"aurify {aurify.__version__}\n"
    assert CliRunner().invoke(app, ["trian"]).exit_code == 2


def test_help_names_every_command():
    text = CliRunner().invoke(app, ["--help"]).stdout
    names = ("chat", "demo", "doctor", "eval", "models", "report", "runs", "sample", "train")
    assert [name for name in names if f" {name} " not in text] == []


def test_an_option_of_a_recipe_with_dashes_is_told_how_it_is_written():
    result = CliRunner().invoke(app, ["train", "quickstart", "--learning-rate", "3"])
    text = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == 2 and "here that is stages.NAME.optim.lr" in text
