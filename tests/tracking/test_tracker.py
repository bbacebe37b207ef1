"""What a stage reports, in its files."""

from __future__ import annotations

import io
import math
import subprocess
import sys

import pytest
from rich.console import Console as RichConsole

from aurify.tracking import jsonl
from aurify.tracking.run_folder import StageFolder
from aurify.tracking.tracker import StageTracker
from aurify.tracking.trackers import tensorboard
from aurify.tracking.trackers.console import Console
from aurify.types import Group, Segment, Task, Trajectory


@pytest.fixture
def folder(tmp_path, monkeypatch) -> StageFolder:
    monkeypatch.setattr(tensorboard.TensorBoard, "start", lambda *_: None)  # it has a test of its own
    return StageFolder(tmp_path)


def tracker(folder: StageFolder, **options) -> StageTracker:
    return StageTracker(folder, Console(RichConsole(file=io.StringIO(), width=100)), **options)


def group(text: str = "41", reward: float | None = 1.0) -> Group:
    task = Task("t1", [{"role": "user", "content": "the largest of 7, 41?"}], "41")
    segments = [Segment([1, 2, 3], "prompt"), Segment([4, 5], "policy", [-0.1, -0.2])]
    messages = [*task.prompt, {"role": "assistant", "content": text}]
    return Group(task, [Trajectory(segments, messages, 1, {"match": reward}, reward)])


def run(folder: StageFolder, total: int, start: int, stop: int) -> None:
    """Steps `start + 1` to `stop`, as a loop reports them."""
    one = tracker(folder)
    one.start(total, start)
    for step in range(start + 1, stop + 1):
        one.step(step, {"loss": 1 / step, "ledger/rows": 4.0, "time/step": 0.1})
        one.samples(step, [group(f"answer of step {step}")])
        one.heldout("loss", 1 / step, {})
    one.finish()


def untimed(file) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in jsonl.read_log(file)]


def test_a_resumed_run_leaves_the_files_of_a_straight_one(tmp_path, folder):
    straight, resumed = StageFolder(tmp_path / "straight"), StageFolder(tmp_path / "resumed")
    straight.path.mkdir()
    resumed.path.mkdir()
    run(straight, 6, 0, 6)
    run(resumed, 6, 0, 4)  # killed after step 4; the last checkpoint is that of step 2
    with resumed.metrics.open("a") as file:
        file.write('{"step": 5, "lo')
    run(resumed, 6, 2, 6)
    assert [row["step"] for row in jsonl.read_log(resumed.metrics)] == [1, 2, 3, 4, 5, 6]
    assert untimed(resumed.metrics) == untimed(straight.metrics)
    assert resumed.ledger.read_bytes() == straight.ledger.read_bytes()
    assert resumed.samples.read_bytes() == straight.samples.read_bytes()
    assert resumed.heldout.read_bytes() == straight.heldout.read_bytes()


def test_a_step_is_on_disk_when_it_was_reported(folder):
    one = tracker(folder)
    one.start(2)
    one.step(1, {"loss": 0.5, "ledger/rows": 4})
    [metrics], [ledger] = jsonl.read_log(folder.metrics), jsonl.read_log(folder.ledger)
    assert metrics.pop("memory/peak_gb") > 0
    assert metrics == {"step": 1, "loss": 0.5} and ledger == {"step": 1, "ledger/rows": 4.0}
    assert "0.5000" in folder.console.read_text()
    one.finish()


def test_what_is_no_number_is_null_and_told_once(folder):
    one = tracker(folder)
    one.start(3)
    one.step(1, {"loss": math.nan, "ledger/rows": 1.0})
    one.step(2, {"loss": -math.inf, "ledger/rows": math.inf})
    one.finish()
    assert [row["loss"] for row in jsonl.read_log(folder.metrics)] == [None, None]
    assert [row["ledger/rows"] for row in jsonl.read_log(folder.ledger)] == [1.0, None]
    events = folder.events.read_text()
    assert events.count("loss is") == 1 and "step 1: loss is nan" in events and "step 2: ledger/rows is inf" in events


def test_samples_say_what_was_written_and_earned(folder):
    one = tracker(folder)
    one.samples(4, [group(), group("\ud83d <b>", None)])
    first, second = jsonl.read_log(folder.samples)
    assert first == {
        "step": 4, "task": "t1", "answer": "41", "reward": 1.0, "rewards": {"match": 1.0}, "tokens": 2,
        "truncated": False,
        "outcome": "done",
        "turns": [], "source": "policy", "num_prompt_messages": 1, "messages": [
            {"role": "user", "content": "the largest of 7, 41?"}, {"role": "assistant", "content": "41"},
        ],
    }  # fmt: skip
    assert second["reward"] is None and second["messages"][-1]["content"] == "\ud83d <b>"
    one.finish()


@pytest.mark.parametrize("shown", [False, True])
def test_samples_are_on_the_console_on_demand(folder, shown):
    one = tracker(folder, show_samples=shown)
    one.samples(1, [group("a text of its own")])
    one.finish()
    assert ("a text of its own" in folder.console.read_text()) == shown


def test_an_event_is_one_line_and_may_be_quiet(folder):
    one = tracker(folder)
    one.event("two\nlines \ud83d")
    one.event("only in the file", quiet=True)
    one.finish()
    lines = folder.events.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 and lines[0].endswith(r" two lines \ud83d")
    assert "only in the file" not in folder.console.read_text(encoding="utf-8")


def test_without_tensorboard_the_events_say_so_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    one = tracker(StageFolder(tmp_path))
    one.start(1)
    one.step(1, {"loss": 1.0})
    one.finish()
    assert one.folder.events.read_text().count("aurify[tensorboard]") == 1 and not one.folder.tensorboard.exists()


def test_tensorboard_files_hold_the_metrics(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    one = tracker(StageFolder(tmp_path))
    one.start(3)
    for step in (1, 2, 3):
        one.step(step, {"loss": 1 / step})
    one.finish()
    again = tracker(StageFolder(tmp_path))  # steps 2 and 3 are run again, with another outcome
    again.start(3, 1)
    again.step(2, {"loss": 7.0})
    again.finish()
    events = accumulator.EventAccumulator(str(one.folder.tensorboard))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 7.0)]


def test_peak_memory_is_that_of_the_process_alone_in_gib():
    """Started from this one, which is much larger."""
    code = (
        "from aurify.tracking.machine import read_run_memory as peak",
        "before = peak(); held = b'x' * 2**28; during = peak(); del held; print(before, during, peak())",
    )
    result = subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, check=True)
    before, during, after = map(float, result.stdout.split())
    assert 0 < before < 0.1 and 0.24 < during - before < 0.27
    assert after == pytest.approx(during, abs=0.01)  # the kernel counts pages lazily


def test_held_out_numbers_have_a_file_and_a_step(folder):
    one = tracker(folder)
    one.heldout("held-out loss", 2.5, {"error": 0.25, "num": 9})
    one.start(2)
    for step in (1, 2):
        one.step(step, {"loss": 1.0})
    one.heldout("pair accuracy", 0.75, {"error": 0.1, "num": 4, "margin": 1.5, "margin_error": 0.5})
    one.finish()
    assert list(jsonl.read_log(folder.heldout)) == [
        {"step": 0, "eval/loss": 2.5, "eval/loss_error": 0.25},
        {"step": 2, "eval/pair_accuracy": 0.75, "eval/pair_accuracy_error": 0.1,
         "eval/margin": 1.5, "eval/margin_error": 0.5},
    ]  # fmt: skip
    assert [row["step"] for row in jsonl.read_log(folder.metrics)] == [1, 2]


def test_held_out_numbers_are_in_tensorboard_before_and_after_and_outlive_a_resume(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    one = tracker(StageFolder(tmp_path))
    one.heldout("number_match", 0.25, {"error": 0.1, "num": 4})
    one.start(2)
    one.step(1, {"loss": 1.0})
    one.finish()
    again = tracker(StageFolder(tmp_path))
    again.start(2, 1)
    again.step(2, {"loss": 0.5})
    again.heldout("number_match", 0.75, {"error": 0.1, "num": 4})
    again.finish()
    events = accumulator.EventAccumulator(str(one.folder.tensorboard))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("eval/number_match")] == [(0, 0.25), (2, 0.75)]


@pytest.mark.parametrize(("flat", "told"), [([4] * 30, [5, 25]), ([4] * 4 + [3] + [4] * 4, []), ([0] * 30, [])])
def test_steps_in_a_row_that_teach_nothing_are_told(folder, flat, told):
    one = tracker(folder)
    one.start(len(flat))
    for step, num in enumerate(flat, 1):
        one.step(step, {"loss": 1.0, "ledger/groups": 4.0, "ledger/groups_without_spread": float(num)})
    one.finish()
    text = folder.events.read_text()
    assert text.count("steps in a row have taught nothing") == len(told)
    assert all(f"{num} steps in a row" in text and "sampling.temperature" in text for num in told)
