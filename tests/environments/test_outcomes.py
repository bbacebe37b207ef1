"""What goes wrong inside a trajectory is its outcome, never the end of the run. Shows 4 of issue 13, and the lines of
its section "Conversations" that are about environments."""

from __future__ import annotations

import asyncio
import os
import resource
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from recorder import Recorder

from aurify.algorithms.grpo import GRPO
from aurify.engine.engine import Engine
from aurify.environments.env import Observation, Step
from aurify.environments.multi_turn import MultiTurnEnvironment
from aurify.environments.player import Player, RolloutOptions
from aurify.environments.rollout import Limits, build_datum, rollout
from aurify.environments.single_turn import SingleTurn
from aurify.errors import UserError
from aurify.loops.online import train_online
from aurify.loops.progress import Checkpoints
from aurify.loops.rollouts import Rollouts
from aurify.models.model import ModelConfig, load_model
from aurify.models.tiny import byte_tokenizer
from aurify.pipeline.recipe import OnlineStage
from aurify.renderer import Renderer
from aurify.rewards.rubric import Rubric
from aurify.samplers.inprocess import InProcessSampler
from aurify.samplers.scripted import ScriptedSampler
from aurify.tasks.taskset import TaskSet, question
from aurify.types import SamplingParams, Task

TOKENIZER = byte_tokenizer()
TASK = Task("t", question("hello?"), "12")
QUICK = RolloutOptions(step_seconds=0.3)


class Acting:
    """Two turns; what its second answer is, subclasses say."""

    threaded = False
    made: int = 0

    def __init__(self, task: Task) -> None:
        type(self).made += 1
        self.task, self.turn = task, 0

    async def start(self) -> Observation:
        return Observation(list(self.task.prompt))

    async def step(self, message: Any) -> Step:
        self.turn += 1
        return self.answer() if self.turn == 1 else Step(done=True, rewards={"own": 1.0}, metrics={"calls": 1})

    def answer(self) -> Step:
        return Step([{"role": "user", "content": "go on"}], rewards={"own": 0.5}, metrics={"calls": 1})

    async def close(self) -> None:
        pass


def play(environment: Any, replies: Any = ("a", "b"), task: Task = TASK, num: int = 1, **options: Any) -> Any:
    """The trajectory (None: it failed) and the player."""
    max_context = options.pop("max_context", None)
    sampler = ScriptedSampler(list(replies), TOKENIZER)
    player = Player(environment, sampler, Renderer(TOKENIZER), RolloutOptions(**options), max_context=max_context)
    params = SamplingParams(max_tokens=20, seed=5)

    async def body() -> list[Any]:
        return [await player.play(task, params) for _ in range(num)]

    played = asyncio.run(body())
    return (played[0] if num == 1 else played), player


# ---------------------------------------------------------------------- Shows 4


LET_GO = threading.Event()


class Troubled(Acting):
    """What happens is in the task."""

    threaded = True

    def __init__(self, task: Task, seed: int, tried: set[int]) -> None:
        super().__init__(task)
        self.first = seed not in tried
        tried.add(seed)

    async def step(self, message: Any) -> Step:
        kind = self.task.info["kind"]
        if kind == "raises" or (kind == "raises once" and self.first):
            raise ZeroDivisionError("as it happens")
        if kind == "blocks":
            LET_GO.wait(300)
        if kind == "never answers":
            await asyncio.sleep(3600)
        return await super().step(message)

    def answer(self) -> Step:
        if self.task.info["kind"] == "1 MB":
            return Step([{"role": "user", "content": "x" * 2**20}])
        if self.task.info["kind"] == "NaN":
            return Step(done=True, rewards={"own": float("nan")}, metrics={"status": "bad"})  # type: ignore[dict-item]
        return super().answer()


def length_of(task: Task, trajectory: Any) -> float:
    return float(len(trajectory.text))


def test_64_trajectories_that_raise_hang_reply_1_MB_and_return_NaN_end_well_and_the_ledger_accounts_for_each(
    tmp_path: Path,
) -> None:
    kinds = ["raises"] * 3 + ["blocks"] * 2 + ["never answers"] * 2 + ["1 MB"] * 2 + ["NaN"] * 2 + ["raises once"]
    kinds += ["well"] * 3 + ["prompt too long"]
    texts = [f"say {k}" if kind != "prompt too long" else "y" * 3000 for k, kind in enumerate(kinds)]
    tasks = [
        Task(f"t{k}", question(text), str(k), {"kind": kind})
        for k, (text, kind) in enumerate(zip(texts, kinds, strict=True))
    ]
    engine = Engine(load_model(ModelConfig("random:tiny", dtype="float32")))
    sampler = ScriptedSampler([str(k) * (1 + k % 3) for k in range(10)], engine.tokenizer)
    sampler.max_context = engine.max_context  # type: ignore[attr-defined]
    taskset = TaskSet("toy", lambda seed: iter(tasks), tasks, Rubric([length_of]), partial(Troubled, tried=set()))
    stage = OnlineStage(
        method="grpo", model=ModelConfig("random:tiny"), steps=1, prompts_per_step=16, completions_per_prompt=4,
        rollouts=QUICK,
    )  # fmt: skip
    rollouts = Rollouts(sampler, Renderer(engine.tokenizer), taskset, taskset.rubric, stage, seed=1)
    recorder, began = Recorder(), time.monotonic()
    checkpoints = Checkpoints(tmp_path, every=0, keep=1, identity="x")
    train_online(engine, GRPO(), rollouts, tracker=recorder, checkpoints=checkpoints)  # type: ignore[arg-type]
    LET_GO.set()
    assert time.monotonic() - began < 300, "the blocked threads are left alone"
    [row] = recorder.rows
    num = {kind: 4 * kinds.count(kind) for kind in set(kinds)}
    ledger = {name.removeprefix("ledger/"): value for name, value in row.items() if name.startswith("ledger/")}
    assert ledger["failed_error"] == num["raises"]
    assert ledger["failed_time_limit"] == num["blocks"] + num["never answers"]
    assert ledger["failed_no_room"] == num["prompt too long"]
    failed = sum(num[kind] for kind in ("raises", "blocks", "never answers", "prompt too long"))
    assert ledger["trajectories_failed"] == failed == 32
    assert ledger["trajectories"] + ledger["trajectories_failed"] == 64
    assert ledger["trajectories_retried"] == failed + num["raises once"]
    assert ledger["groups"] + ledger["groups_failed"] == 16 and ledger["groups_failed"] == 8
    assert ledger["trajectories_truncated"] == num["1 MB"]
    assert ledger["environment_values_failed"] == 2 * num["NaN"], "a reward and a metric of each"
    assert engine.version == 1, "and it has learnt from the rest"
    told = "\n".join(recorder.texts)
    for part in (
        "environment 'Troubled' raised ZeroDivisionError: as it happens",
        "environment 'Troubled': step() took longer than 0.3 seconds",
        "its prompt has 3",
        "reward 'own' is nan",
        "metric 'status' is 'bad'",
    ):
        assert part in told, part


def test_a_run_of_which_nothing_ends_well_stops_after_its_first_step_with_the_reason(tmp_path: Path) -> None:
    task = Task("t", question("say"), "1", {"kind": "raises"})
    engine = Engine(load_model(ModelConfig("random:tiny", dtype="float32")))
    taskset = TaskSet("toy", lambda seed: iter([task]), [task], Rubric([length_of]), partial(Troubled, tried=set()))
    stage = OnlineStage(method="grpo", model=ModelConfig("random:tiny"), steps=5, prompts_per_step=2)
    sampler = ScriptedSampler(["a"], engine.tokenizer)
    rollouts = Rollouts(sampler, Renderer(engine.tokenizer), taskset, taskset.rubric, stage, seed=1)
    recorder, checkpoints = Recorder(), Checkpoints(tmp_path, every=0, keep=1, identity="x")
    with pytest.raises(UserError, match=r"the first trajectories failed, each of them twice; .*ZeroDivisionError"):
        train_online(engine, GRPO(), rollouts, tracker=recorder, checkpoints=checkpoints)  # type: ignore[arg-type]
    assert recorder.rows == []


# ---------------------------------------------------------------------- retried, dropped, counted


class Raising(Acting):
    failing = 1000  # of the environments that are made

    def answer(self) -> Step:
        if self.made <= self.failing:
            raise ValueError(f"no {self.made}")
        return super().answer()


def test_a_failure_is_tried_once_more_with_a_fresh_environment_and_the_same_seeds() -> None:
    class Once(Raising):
        made, failing = 0, 1

    trajectory, player = play(Once)
    assert Once.made == 2 and trajectory.rewards == {"own": 1.5}
    failed = {"ledger/trajectories_failed": 0, "ledger/trajectories_retried": 1, "ledger/tokens_failed": 2}
    assert player.take_counts() == failed, "the answer that went down with the first attempt has two tokens"
    assert player.take_lines() == []


def test_what_fails_twice_is_dropped_and_counted_and_each_reason_is_told_once() -> None:
    class Always(Raising):
        made = 0

        def answer(self) -> Step:
            raise ValueError("no")

    played, player = play(Always, num=3)
    assert played == [None] * 3 and Always.made == 6
    counts = player.take_counts()
    assert counts["ledger/trajectories_failed"] == counts["ledger/failed_error"] == 3
    assert player.take_counts()["ledger/trajectories_failed"] == 0, "since the last time"
    [line] = player.take_lines()
    assert line.startswith("a trajectory is dropped, and counted: task 't': environment 'Always' raised ValueError: no")


def test_after_n_failures_in_a_row_the_run_stops_with_the_reason_and_one_that_ends_well_begins_the_count_anew() -> None:
    class Seldom(Raising):
        made = 0

        def answer(self) -> Step:
            if self.made % 5 == 0:  # after two failures
                return Acting.answer(self)
            raise ValueError("no")

    played, _ = play(Seldom, num=6, max_failures=3)
    assert [trajectory is None for trajectory in played] == [True, True, False] * 2
    with pytest.raises(UserError, match=r"the last 3 trajectories in a row failed, each .*ValueError"):
        play(Worsening, num=6, max_failures=3)


class Worsening(Acting):
    made = 0

    def answer(self) -> Step:
        if self.made > 1:
            raise ValueError("no")
        return super().answer()


@pytest.mark.parametrize("threaded", [True, False])
def test_an_environment_that_never_answers_ends_at_its_time_limit(threaded: bool) -> None:
    class Silent(Acting):
        made = 0

        async def step(self, message: Any) -> Step:
            await asyncio.sleep(3600)
            raise AssertionError

    Silent.threaded = threaded
    began = time.monotonic()
    trajectory, player = play(Silent, step_seconds=0.2)
    assert trajectory is None and time.monotonic() - began < 10
    assert player.take_counts()["ledger/failed_time_limit"] == 1


@pytest.mark.parametrize("num", [8, 200])
def test_a_step_that_blocks_holds_up_no_other_trajectory(num: int) -> None:
    """All of them block at the same time: in one thread they would never meet."""
    together = threading.Barrier(num, timeout=20)

    class Blocking(Acting):
        threaded = True

        async def step(self, message: Any) -> Step:
            together.wait()
            return Step(done=True)

    player = Player(Blocking, ScriptedSampler(["a"], TOKENIZER), Renderer(TOKENIZER))

    async def body() -> list[Any]:
        return await asyncio.gather(*(player.play(TASK, SamplingParams()) for _ in range(num)))

    assert all(trajectory is not None for trajectory in asyncio.run(body()))


def test_many_environments_may_open_files_though_a_process_begins_with_a_low_limit() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 40, limits[1]))
    try:
        test_a_step_that_blocks_holds_up_no_other_trajectory(50)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_no_more_environments_at_once_than_the_recipe_says() -> None:
    living, most = set(), []

    class Counted(Acting):
        threaded = True

        async def start(self) -> Observation:
            living.add(self)
            most.append(len(living))
            await asyncio.sleep(0.01)
            return await super().start()

        async def close(self) -> None:
            living.remove(self)

    options = RolloutOptions(max_environments=3)
    player = Player(Counted, ScriptedSampler(["a"], TOKENIZER), Renderer(TOKENIZER), options)

    async def body() -> list[Any]:
        return await asyncio.gather(*(player.play(TASK, SamplingParams()) for _ in range(12)))

    assert all(trajectory is not None for trajectory in asyncio.run(body()))
    assert max(most) == 3 and not living


def test_threads_that_never_come_back_are_not_piled_up_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aurify.environments.player.MAX_STUCK", 4)
    free = threading.Event()

    class Stuck(Acting):
        threaded = True

        async def step(self, message: Any) -> Step:
            free.wait(30)
            return Step(done=True)

    try:
        with pytest.raises(UserError, match="4 threads still work on calls of environments that took longer"):
            play(Stuck, num=5, step_seconds=0.05)
    finally:
        free.set()


def test_an_environment_that_keeps_tasks_of_its_own_going_has_one_event_loop_for_all_its_calls() -> None:
    class Beating(Acting):
        threaded = True

        async def start(self) -> Observation:
            self.beats, self.loop = 0, asyncio.get_running_loop()
            self.heart = asyncio.ensure_future(self.beat())
            return await super().start()

        async def beat(self) -> None:
            while True:
                self.beats += 1
                await asyncio.sleep(0.001)

        async def step(self, message: Any) -> Step:
            assert asyncio.get_running_loop() is self.loop
            await asyncio.sleep(0.01)
            return Step(done=True, metrics={"beats": self.beats})

    trajectory, _ = play(Beating)
    assert trajectory.metrics["beats"] > 1


def test_what_close_raises_does_not_undo_what_was_played() -> None:
    class Unclosed(Acting):
        async def close(self) -> None:
            raise OSError("gone")

    trajectory, player = play(Unclosed)
    assert trajectory.rewards == {"own": 1.5} and "close() raised OSError: gone" in trajectory.problems[0]
    assert "close() raised OSError" in player.take_lines()[0]


def test_an_environment_gets_a_seed_where_it_asks_for_one_and_a_recipe_has_the_last_word() -> None:
    seen: list[int] = []

    class Seeded(Acting):
        def __init__(self, task: Task, seed: int = 0) -> None:
            super().__init__(task)
            seen.append(seed)

    play(Seeded)
    play(partial(Seeded, seed=7))
    assert seen == [5, 7], "that of the trajectory, which depends on run, step, task and place"


# ---------------------------------------------------------------------- messages, metrics and rewards


def test_an_environment_that_appends_to_its_own_message_list_leaves_the_completion_whole() -> None:
    class Appending(Acting):
        async def start(self) -> Observation:
            self.messages = [dict(message) for message in self.task.prompt]
            return Observation(self.messages)

        async def step(self, message: Any) -> Step:
            self.messages.append(message)
            self.messages.append({"role": "user", "content": "go on"})
            message["content"] = self.messages[0]["content"] = "changed"
            self.turn += 1
            return Step(self.messages[-1:], done=self.turn == 2)

    trajectory, _ = play(Appending)
    assert trajectory.num_prompt_messages == 1 and trajectory.text == "a\nb"
    assert trajectory.messages[0]["content"] == "hello?", "what the policy saw"
    assert [m["role"] for m in trajectory.completion] == ["assistant", "user", "assistant"]

    def said(task: Task, trajectory: Any) -> float:
        return float(len(trajectory.completion))

    rubric = Rubric([said])
    asyncio.run(rubric.score(TASK, [trajectory]))
    assert trajectory.reward == 3


def test_metrics_of_all_turns_are_summed() -> None:
    trajectory, _ = play(Acting)
    assert trajectory.metrics == {"calls": 2}


def test_an_assistant_message_that_the_environment_writes_is_not_the_policys() -> None:
    class Speaking(Acting):
        def answer(self) -> Step:
            return Step([{"role": "assistant", "content": "I know it: 12"}, {"role": "user", "content": "go on"}])

    trajectory, _ = play(Speaking)
    assert trajectory.text == "a\nb" and len(trajectory.replies) == 2
    assert [m["content"] for m in trajectory.completion] == ["a", "I know it: 12", "go on", "b"]
    datum = build_datum(trajectory)
    trained = [token for token, weight in zip(datum.tokens, datum.weights, strict=True) if weight]
    assert TOKENIZER.decode(trained) == "a<|im_end|>b<|im_end|>"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "good", "1.0", [1.0]])
def test_an_environments_reward_that_is_no_number_is_masked_and_counted(value: Any) -> None:
    class Odd(Acting):
        def answer(self) -> Step:
            return Step([{"role": "user", "content": "go on"}], rewards={"own": value, "other": 1.0})

    trajectory, _ = play(Odd)
    assert trajectory.rewards == {"own": None, "other": 1.0}, "whatever came later under that name"
    assert len(trajectory.problems) == 1 and "reward 'own' is" in trajectory.problems[0]
    asyncio.run(Rubric([lambda task, trajectory: None]).score(TASK, [trajectory]))
    assert trajectory.reward == 1.0


def test_an_environments_reward_of_None_does_not_apply() -> None:
    class Quiet(Acting):
        def answer(self) -> Step:
            return Step([{"role": "user", "content": "go on"}], rewards={"own": None, "never": None})

    trajectory, _ = play(Quiet)
    assert trajectory.rewards == {"own": 1.0, "never": None} and trajectory.problems == []


@pytest.mark.parametrize("value", ["good", "1.0", None, float("nan")])
def test_a_metric_that_is_text_or_no_number_is_left_out_and_counted(value: Any) -> None:
    class Wordy(Acting):
        def answer(self) -> Step:
            return Step([{"role": "user", "content": "go on"}], metrics={"status": value, "calls": True})

    trajectory, _ = play(Wordy)
    assert trajectory.metrics == {"calls": 2} and len(trajectory.problems) == 1


@pytest.mark.parametrize("messages", ["text", [{"role": "user"}], [{"role": "robot", "content": "x"}], ["x"], None])
def test_what_is_no_message_is_named(messages: Any) -> None:
    class Odd(Acting):
        def answer(self) -> Step:
            return Step(messages)

    trajectory, player = play(Odd)
    assert trajectory is None and "environment 'Odd': step() gave" in player.last_reason


def test_a_reply_longer_than_the_context_ends_its_trajectory_and_is_not_trained() -> None:
    class Long(Acting):
        def answer(self) -> Step:
            return Step([{"role": "tool", "content": "x" * 2**20}])

    trajectory, _ = play(Long, max_context=200)
    assert trajectory.truncated and len(trajectory.tokens) <= 200
    assert [segment.origin for segment in trajectory.segments] == ["prompt", "policy"]
    assert trajectory.messages[-1]["role"] == "tool", "the transcript tells what happened"


def test_a_single_turn_needs_no_thread() -> None:
    def threads() -> int:
        return sum(thread.name == "aurify-environment" for thread in threading.enumerate())

    before = threads()
    _, player = play(SingleTurn)
    assert not player.threaded and threads() == before


# ---------------------------------------------------------------------- equal bits


@pytest.mark.parametrize(("threaded", "rooms"), [(True, 6), (False, 6), (True, 2)])
def test_in_rounds_conversations_are_equal_to_the_bit_however_long_environments_take(
    threaded: bool, rooms: int
) -> None:
    """rooms: with two for six trajectories, the others wait."""
    engine = Engine(load_model(ModelConfig("random:tiny", dtype="float32")))
    tasks = [Task(f"t{k}", question("say " + "y" * k), str(k)) for k in range(6)]

    def played(pauses: list[float]) -> Any:
        class Slow(Acting):
            async def start(self) -> Observation:
                await asyncio.sleep(pauses[int(self.task.id[1])])
                return await super().start()

            async def step(self, message: Any) -> Step:
                await asyncio.sleep(pauses[int(self.task.id[1])])
                self.turn += 1
                return Step([{"role": "user", "content": "go on"}], done=self.turn > 1 + int(self.task.id[1]) % 3)

        Slow.threaded = threaded

        async def body() -> Any:
            sampler = InProcessSampler(engine, max_batch=4)
            sampler.stop_tokens = frozenset(range(200, 259))  # so that turns end
            options = RolloutOptions(in_rounds=True, max_environments=rooms)
            player = Player(Slow, sampler, Renderer(engine.tokenizer), options)
            try:
                params = SamplingParams(max_tokens=12)
                return await asyncio.gather(
                    *(player.play(t, replace(params, seed=k), order=(k,)) for k, t in enumerate(tasks))
                )
            finally:
                await sampler.close()

        return [[(s.tokens, s.logprobs) for s in t.segments] for t in asyncio.run(body())]

    one = played([0.0] * 6)
    assert max(map(len, one)) > 3, "conversations"
    assert one == played([0.05, 0.0, 0.02, 0.0, 0.03, 0.01]) == played([0.0, 0.03, 0.0, 0.02, 0.0, 0.04])


def test_in_rounds_those_who_fail_or_end_hold_up_nobody() -> None:
    class Some(Acting):
        threaded = True

        async def step(self, message: Any) -> Step:
            if self.task.id == "t1":
                await asyncio.sleep(3600)
            if self.task.id == "t2":
                raise OSError("gone")
            return await super().step(message)

    sampler = ScriptedSampler(["a"], TOKENIZER)
    player = Player(Some, sampler, Renderer(TOKENIZER), RolloutOptions(in_rounds=True, step_seconds=0.2))

    async def body() -> list[Any]:
        tasks = [Task(f"t{k}", question("say"), "") for k in range(4)]
        return await asyncio.wait_for(asyncio.gather(*(player.play(t, SamplingParams()) for t in tasks)), 20)

    assert [trajectory is None for trajectory in asyncio.run(body())] == [False, True, True, False]
    assert player.rounds is not None and player.rounds.num_seated == 0 and not player.rounds.arrived


@pytest.mark.parametrize("limits", [Limits(), Limits(tool_tokens=20)], ids=["context", "tool_tokens"])
@pytest.mark.parametrize("goes_on", [False, True], ids=["message", "same turn"])
def test_a_megabyte_is_not_read_whole(monkeypatch: pytest.MonkeyPatch, limits: Limits, goes_on: bool) -> None:
    """Its tokens would take a second, in which all other trajectories wait."""
    read: list[int] = []
    whole = Renderer._encode

    def watched(self: Renderer, text: str, *rest: Any, **options: Any) -> Any:
        read.append(len(text))
        return whole(self, text, *rest, **options)

    monkeypatch.setattr(Renderer, "_encode", watched)

    class Long(MultiTurnEnvironment):
        stop = ("a",)

        def step(self, message: Any) -> Any:
            if len(message["content"]) > 1:
                return Step(done=True)
            return Step(continue_turn="xy " * 2**19) if goes_on else "xy " * 2**19

    sampler, params = ScriptedSampler(["a", "bb"], TOKENIZER), SamplingParams(max_tokens=20, seed=5)
    trajectory = asyncio.run(
        rollout(TASK, Long(TASK), sampler, Renderer(TOKENIZER), params, max_context=900, limits=limits)
    )
    assert max(read) < 12_000 and len(read) < 12
    if limits.tool_tokens is None:
        assert trajectory.outcome == "context" and len(trajectory.messages[-1]["content"]) == 3 * 2**19
        assert [segment.origin for segment in trajectory.segments] == ["prompt", "policy"]
    else:
        said = next(message for message in trajectory.messages if "are cut" in message["content"])["content"]
        assert said.startswith("xy xy") and f"of {3 * 2**19:,} characters are cut]" in said
        assert trajectory.turns[0].environment_tokens < 200
