"""What a person sees: lines where there is no terminal, a bar below them where there is one."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console as RichConsole

from aurify.tracking.trackers.console import COLUMNS, Console, clean_console_text, pick_console_samples
from aurify.types import Group, Outcome, Segment, Task, Trajectory

ESCAPE, CONTROL = "\x1b", re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
SFT = {"loss": 2.15, "optim/grad_norm": 4.5, "time/tokens_per_second": 1780.0, "memory/peak_gb": 2.4, "time/step": 1.9}
GRPO = {"reward/mean": 0.3125, "rollout/length": 10.3, "loss": 0.1388, "loss/kl": 0.002, "time/sampled_per_second": 640}
RESULTS = {
    "sft": {"method": "sft", "measure": "accuracy", "before": 0.086, "after": 0.344, "seconds": 48.2},
    "reward": {"method": "reward_model", "measure": "pair accuracy", "before": 0.516, "after": 0.5, "seconds": 4000},
    "tune": {"method": "sft", "measure": "held-out loss", "before": 2.5, "after": 1.25, "seconds": 4},
    "grpo": {"method": "grpo", "status": "running"},
}


def consoles(width: int = 80, **options) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(RichConsole(file=stream, width=width, highlight=False, **options)), stream


def trajectory(text: str, reward: float | None, outcome: Outcome = "done") -> Trajectory:
    said = {"role": "assistant", "content": text}
    return Trajectory([Segment([1], "policy")], [said], 0, {"match": reward}, reward, outcome)


def told(console: Console, metrics: dict[str, float], total: int, start: int = 0) -> None:
    console.header("1/4 sft", "sft of [a model] (LoRA rank 32)")
    console.start(total, start)
    for step in range(start + 1, total + 1):
        console.step(step, metrics)
    console.finish()


def test_without_a_terminal_there_are_plain_lines_one_a_step():
    console, stream = consoles()
    told(console, SFT, 12)
    lines = stream.getvalue().splitlines()
    assert not CONTROL.search(stream.getvalue().replace("\n", ""))
    assert sum("/12 " in line for line in lines) == 12
    assert [line for line in lines if "[a model]" in line] == ["sft of [a model] (LoRA rank 32)"]  # no markup


@pytest.mark.parametrize("total", [3, 12, 39])
def test_values_stand_under_their_headings(total):
    console, stream = consoles()
    told(console, GRPO, total)
    heads, *steps = (line for line in stream.getvalue().splitlines() if "step  " in line or f"/{total} " in line)
    assert heads.split() == ["step", "reward", "length", "loss", "kl", "tok/s"] and len(steps) == total
    assert steps[0].split() == [f"1/{total}", "0.312", "10.3", "0.1388", "0.0020", "640"]
    ends = [[match.end() for match in re.finditer(r"\S+", line)] for line in (heads, *steps)]
    assert all(line == ends[0] for line in ends)


def test_a_step_that_lacks_a_value_keeps_the_columns():
    console, stream = consoles()
    console.start(3, 0)
    console.step(1, GRPO)
    console.step(2, {name: value for name, value in GRPO.items() if "loss" not in name})  # there was nothing to learn
    console.step(3, GRPO | {"loss": float("nan")})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[2].split() == ["2/3", "0.312", "10.3", "-", "-", "640"] and lines[3].split()[3] == "nan"


def test_a_metric_that_comes_later_brings_new_headings():
    console, stream = consoles()
    console.start(2, 0)
    console.step(1, {"reward/mean": 0.5})
    console.step(2, GRPO)
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == ["step", "1/2", "step", "2/2"]


def test_no_value_touches_its_neighbour():
    extreme = {name: -123456.789 if "reward" in name or name == "loss" else 98765.4 for name in COLUMNS}
    console, stream = consoles(width=200)
    told(console, extreme, 1)
    line = next(line for line in stream.getvalue().splitlines() if "1/1" in line)
    assert len(line.split()) == 1 + len(COLUMNS)


def test_a_terminal_has_a_bar_and_is_left_as_it_was():
    console, stream = consoles(force_terminal=True)
    told(console, SFT, 3)
    text = stream.getvalue()
    assert "━" in text and text.rstrip().endswith(f"{ESCAPE}[2K")  # the bar is wiped
    assert text.count(f"{ESCAPE}[?25l") == text.count(f"{ESCAPE}[?25h") == 1  # the cursor is back
    assert console.progress is None


@pytest.mark.parametrize("start", [0, 4])
def test_a_bar_ends_with_the_stage_even_if_nobody_says_so(start):
    console, _ = consoles(force_terminal=True)
    console.start(4, start)
    for step in range(start + 1, 5):
        console.step(step, SFT)
    assert console.progress is None


def test_the_log_has_what_the_terminal_shows_without_its_colours(tmp_path):
    console, stream = consoles(force_terminal=True)
    console.header("1/1 sft", "about the stage")
    console.open_log(tmp_path / "console.log")
    console.start(2, 0)
    for step in (1, 2):
        console.step(step, SFT)
        assert f"{step}/2" in (tmp_path / "console.log").read_text()  # at once: it survives a kill
    console.finish()
    console.print("after the stage")
    log = (tmp_path / "console.log").read_text()
    assert "1/1 sft" in log and "about the stage" in log and not CONTROL.search(log.replace("\n", ""))
    assert "after the stage" not in log and "after the stage" in stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_at_the_end_is_whole_in_any_width(width):
    console, stream = consoles(width)
    console.summary(RESULTS)
    text = stream.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for word in ("0.086", "0.344", "+0.258", "-0.016", "-1.250", "48 s", "1 h 06 min", "grpo"):
        assert word in text
    assert next(line.split() for line in text.splitlines() if "grpo" in line)[:2] == ["grpo", "grpo"]


def test_a_falling_loss_is_good_news():
    console, stream = consoles(force_terminal=True, width=120)
    console.summary(RESULTS)
    assert f"{ESCAPE}[32m-1.250" in stream.getvalue() and f"{ESCAPE}[31m-0.016" in stream.getvalue()


def test_samples_show_the_best_and_the_worst():
    task = Task("t", [{"role": "user", "content": "largest of 1, 2?"}], "2")
    others = [trajectory("two", 1.0), trajectory("x", None), trajectory("2", 0.5)]
    console, stream = consoles()
    console.show_samples = True
    console.samples(1, [Group(task, [trajectory("one", 0.0, outcome="token_limit"), *others])])
    text = stream.getvalue()
    assert "largest of 1, 2?" in text and "expected: 2" in text
    assert re.search(r"\+1\.00 +two *\n +\+0\.00 +one \(cut off\)\n", text)
    assert [best.text for best in pick_console_samples([trajectory("a", 1.0), trajectory("b", 1.0)])] == ["b"]
    assert pick_console_samples([trajectory("x", None)]) == []


@pytest.mark.parametrize("text", ["\x1b[2J\x1b]0;hi\x07", "[red]not markup[/red] [/]", "\u202egnp.exe", "half \ud83d"])
def test_a_models_text_neither_steers_the_terminal_nor_breaks_it(tmp_path, text):
    task = Task(text, [{"role": "user", "content": text}], text)
    console, stream = consoles(force_terminal=True, color_system=None)
    console.open_log(tmp_path / "console.log", show_samples=True)
    console.samples(1, [Group(task, [trajectory(text, 1.0)])])
    console.finish()
    shown = stream.getvalue()
    assert ESCAPE not in shown and "\u202e" not in shown
    shown.encode()  # no half characters
    assert (text in shown) == text.startswith("[red]")


def test_a_long_text_is_cut():
    assert len(clean_console_text("x" * 10_000, 100)) < 110 and clean_console_text("a\tb\nc") == "a\tb\nc"


MEASURED = {
    "sft": {
        "method": "sft", "measure": "number_match", "before": 0.086, "after": 0.344, "seconds": 48.2,
        "details_before": {"error": 0.025, "num": 128}, "details_after": {"error": 0.042, "num": 128},
    },
    "grpo": {
        "method": "grpo", "measure": "brevity", "before": -20.5, "after": -19.0, "seconds": 3,
        "details_before": {"error": 1.5, "num": 64}, "details_after": {"error": 1.25, "num": 64},
    },
}  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_at_the_end_says_of_how_many_and_how_sure(width):
    console, stream = consoles(width)
    console.summary(MEASURED)
    text = stream.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for word in ("0.086", "±0.025", "0.344", "±0.042", "±1.250", "-19.000", "48 s"):
        assert word in text
    assert "accuracy" not in text
    if width == 120:
        assert "number_match (128)" in text and "brevity (64)" in text and "0.344 ±0.042" in text


def test_a_change_within_its_error_has_no_colour():
    console, stream = consoles(force_terminal=True, width=120)
    console.summary(MEASURED)
    assert f"{ESCAPE}[32m+0.258" in stream.getvalue() and f"{ESCAPE}[2m+1.500" in stream.getvalue()


def test_waiting_shows_on_a_terminal_and_elsewhere():
    for options in ({}, {"force_terminal": True}):
        console, stream = consoles(**options)
        with console.show_waiting("sft: loading [a] model ..."):
            pass
        assert "sft: loading [a] model ..." in stream.getvalue()


def test_the_learning_rate_has_a_column():
    console, stream = consoles()
    told(console, SFT | {"optim/lr": 2e-5}, 1)
    assert "lr" in stream.getvalue() and "2e-5" in stream.getvalue()
