"""The online loop with everything in its groups: replay, guidance, groups drawn again, a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from recorder import Recorder

from aurify.algorithms.exgrpo import ExGRPO
from aurify.algorithms.grpo import GRPO
from aurify.engine.engine import Engine
from aurify.loops.guidance import Guide
from aurify.loops.online import train_online
from aurify.loops.progress import Checkpoints
from aurify.loops.replay import Buffer
from aurify.loops.rollouts import Rollouts
from aurify.loops.task_stream import TaskStream
from aurify.models.model import ModelConfig, tiny_model
from aurify.pipeline.recipe import GuidanceOptions, OnlineStage, ReplayOptions
from aurify.renderer import Renderer
from aurify.rewards.rubric import Rubric
from aurify.samplers.scripted import ScriptedSampler
from aurify.tasks.taskset import TaskSet, question
from aurify.types import Batch, Datum, Metrics, Outputs, Task, Trajectory


def contains(task: Task, trajectory: Trajectory) -> float:
    return float("yes" in trajectory.text)


def endless(seed: int) -> Iterator[Task]:
    return (Task(f"{seed % 1000}/{k}", question(f"say yes {k}"), "yes") for k in range(10_000))


@dataclass
class Setting:
    """A stage whose policy says what it is told, one reply after the other."""

    replies: Any
    options: dict[str, Any]
    algorithm: Any = field(default_factory=ExGRPO)
    teacher: Engine | None = None

    def __post_init__(self) -> None:
        small: dict[str, Any] = {"steps": 3, "prompts_per_step": 2, "completions_per_prompt": 4}
        self.stage = OnlineStage(method="exgrpo", model=ModelConfig("random:tiny"), **small | self.options)
        self.engine = Engine(tiny_model())
        if self.teacher is not None:
            self.engine.follow(self.teacher)
        self.taskset = TaskSet("toy", endless, list(endless(0))[:2], Rubric([contains]))
        renderer = Renderer(self.engine.tokenizer)
        stage = self.stage
        self.rollouts = Rollouts(
            ScriptedSampler(self.replies, self.engine.tokenizer),
            renderer,
            self.taskset,
            self.taskset.rubric,
            stage,
            1,
            guide=Guide(stage, renderer, self.taskset) if stage.guidance else None,
            buffer=Buffer(stage.replay, stage.completions_per_prompt) if stage.replay else None,
        )
        self.seen: list[list[Datum]] = []
        original = self.engine.forward_backward

        def forward_backward(data: list[Datum], *rest: Any, **more: Any) -> Metrics:
            self.seen.append(list(data))
            return original(data, *rest, **more)

        self.engine.forward_backward = forward_backward  # type: ignore[method-assign]

    def run(self, folder: Path) -> list[dict[str, float]]:
        recorder = Recorder()
        checkpoints = Checkpoints(folder, every=1, keep=9, identity="x")
        train_online(self.engine, self.algorithm, self.rollouts, tracker=recorder, checkpoints=checkpoints)  # type: ignore[arg-type]
        return recorder.rows


def test_half_of_the_prompts_are_old_ones_with_their_stored_answer(tmp_path):
    setting = Setting(["yes", "no", "no", "yes"], {"steps": 4, "replay": ReplayOptions()})
    rows = setting.run(tmp_path)
    assert [row["replay/used"] for row in rows] == [0, 0, 1, 1], "step 1 starts it, step 2 fills it"
    last = setting.seen[-1]
    [old] = [datum for datum in last if datum.source == "replay"]
    assert len(last) == 8, "three new answers beside the old one, four to a fresh question"
    stored = [
        datum
        for step in setting.seen[1:-1]
        for datum in step
        if datum.tokens == old.tokens and datum.source == "policy"
    ]
    assert old.old_logprobs == pytest.approx(stored[-1].old_logprobs), "of the policy that said it last"
    assert old.logprobs == old.old_logprobs and all(datum.old_logprobs is not None for datum in last)
    assert rows[-1]["ledger/tokens_sampled"] < rows[0]["ledger/tokens_sampled"], "the old answer is not sampled"
    assert rows[-1]["loss/replay_share"] > 0 and rows[-1]["loss/replay_ratio"] > 0
    assert "loss/replay_ratio" not in rows[0], "no mean over nothing"
    assert setting.rollouts.buffer is not None and setting.engine.version == 4


def test_retired_questions_are_not_asked_again(tmp_path):
    tasks = [Task(f"t{k}", question(f"say yes {k}"), "yes") for k in range(3)]
    stream = TaskStream(TaskSet("few", lambda seed: iter(tasks), tasks, Rubric([contains])), 0)
    assert [task.id for task in stream.take(4, {"t0", "t2"})] == ["t1"] * 4 and stream.taken > 8
    assert len(stream.take(2, {"t0", "t1", "t2"})) == 2, "where nothing else is left, they are"
    again = TaskStream(TaskSet("few", lambda seed: iter(tasks), tasks, Rubric([contains])), 0)
    again.load_state_dict(stream.state_dict())
    assert [task.id for task in again.take(5)] == [task.id for task in stream.take(5)]


def test_guide_and_past_in_one_group(tmp_path):
    options = {"steps": 4, "replay": ReplayOptions(start=0.2), "guidance": GuidanceOptions(demonstrations=True)}
    setting = Setting(["yes", "no", "no"], options)
    rows = setting.run(tmp_path)
    sources = [sorted(datum.source for datum in step) for step in setting.seen]
    assert sources[0] == ["guidance"] * 2 + ["policy"] * 6
    assert sources[-1] == ["guidance"] * 2 + ["policy"] * 5 + ["replay"]
    assert rows[-1]["loss/guidance_nll"] > 0 and rows[-1]["loss/replay_ratio"] > 0
    # centred on the whole group: what a guide or the past earns is in the mean
    means = [sum(datum.advantages[-1] for datum in step) for step in setting.seen]  # type: ignore[index]
    assert means == pytest.approx([0] * 4, abs=1e-6)


def test_several_updates_with_a_guide_start_at_ratio_one_for_its_tokens(tmp_path):
    """Under GRPO a guide's tokens are compared with the trainer before the update, as the policy's own are."""
    options = {"steps": 1, "num_minibatches": 2, "guidance": GuidanceOptions(demonstrations=True)}
    setting = Setting(["yes", "no", "no"], options, algorithm=GRPO())
    setting.run(tmp_path)
    for datum in (datum for step in setting.seen for datum in step):
        assert datum.old_logprobs is not None
        assert all(value < 0 for value, weight in zip(datum.old_logprobs, datum.weights, strict=True) if weight)
    assert any(datum.source == "guidance" for step in setting.seen for datum in step)


def test_groups_without_spread_are_drawn_again_up_to_a_bound(tmp_path):
    setting = Setting(["no"] * 8 + ["yes", "no", "no", "no"], {"steps": 1, "dynamic_sampling": 1})
    [row] = setting.run(tmp_path)
    assert row["ledger/groups_discarded"] == 2 and row["ledger/tokens_discarded"] == 8 * 3
    assert row["ledger/groups_without_spread"] == 1, "the bound is reached: one of the two new ones has none either"
    assert row["ledger/tokens_sampled"] == 16 * 3 + 1
    assert len(setting.seen[0]) == 4
    again = Setting(["no"] * 8 + ["yes", "no", "no", "no"], {"steps": 1, "dynamic_sampling": 3})
    [row] = again.run(tmp_path / "again")
    assert row["ledger/groups_without_spread"] == 0 and len(again.seen[0]) == 8
    asked = again.rollouts.sampler.prompts  # type: ignore[attr-defined]
    assert len({tuple(prompt) for prompt in asked}) == len(asked) / 4, "every draw takes new questions"


@dataclass(frozen=True)
class Distil:
    """Pulls the policy's log-probs towards those that the loop fills in."""

    learns_from: ClassVar[str] = "rollouts"
    needs: ClassVar[frozenset[str]] = frozenset({"teacher_logprobs"})
    per: ClassVar[str] = "token"

    def advantages(self, groups):
        return [[1.0] * len(group.trajectories) for group in groups]

    def loss(self, out: Outputs, batch: Batch):
        assert batch.ref_logprobs is not None
        return ((out.logprobs - batch.ref_logprobs) ** 2).sum(), {}


def test_a_teacher_fills_in_its_log_probs(tmp_path):
    teacher = Engine(tiny_model(seed=5), trainable=False)
    setting = Setting(["yes", "no"], {"steps": 1}, algorithm=Distil(), teacher=teacher)
    setting.run(tmp_path)
    [data] = setting.seen
    plain = [replace(datum, ref_logprobs=None) for datum in data]
    assert [datum.ref_logprobs for datum in data] == teacher.logprobs(plain)
    assert teacher.logprobs(plain) != Engine(tiny_model()).logprobs(plain)


def test_the_loop_goes_on_exactly_where_a_checkpoint_was(tmp_path):
    """T28, in one process: tasks, buffer and weights after step 2 and the rest of the run."""
    options = {"steps": 5, "replay": ReplayOptions(), "guidance": GuidanceOptions(demonstrations=True)}
    options |= {"dynamic_sampling": 1}

    def replies(prompt: list[int]) -> str:
        return ["yes", "no", "maybe"][sum(prompt) % 3] if len(prompt) % 2 else "yes no"[: sum(prompt) % 6]

    straight = Setting(replies, options)
    rows = straight.run(tmp_path)
    for step in (3, 4, 5):
        folder = tmp_path / f"step_{step:06d}"
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    resumed = Setting(replies, options)
    assert comparable(resumed.run(tmp_path)) == comparable(rows[2:])
    assert resumed.rollouts.buffer is not None and straight.rollouts.buffer is not None
    assert resumed.rollouts.buffer.state_dict()["keys"] == straight.rollouts.buffer.state_dict()["keys"]


def comparable(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]
