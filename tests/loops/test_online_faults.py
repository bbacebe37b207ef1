"""What the online loop must hand on: the temperature to all that is computed, KL, entropy, what `prepare` makes of a
step; and what a step is made of: groups without spread, guides, answers without a reward, a gradient that is not
finite."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import random_model
from recorder import Recorder

from aurify.algorithms.correction import Correction
from aurify.algorithms.dapo import DAPO
from aurify.algorithms.distillation import Distillation
from aurify.algorithms.gdpo import GDPO
from aurify.algorithms.grpo import GRPO
from aurify.algorithms.luffy import LUFFY
from aurify.engine.engine import Engine
from aurify.engine.optim import OptimConfig
from aurify.environments.rollout import build_datum
from aurify.errors import UserError
from aurify.loops.interrupt import Interrupted
from aurify.loops.ledger import means_by_source
from aurify.loops.online import (
    add_round_logprobs,
    agreeing_trajectories,
    choose_trained,
    learn,
    train_online,
)
from aurify.loops.progress import MEMORY_FILE, Checkpoints
from aurify.loops.replay import Buffer
from aurify.loops.rollouts import Rollouts, Round
from aurify.models.model import ModelConfig, tiny_model
from aurify.pipeline.recipe import OnlineStage, ReplayOptions
from aurify.renderer import Renderer
from aurify.rewards.rubric import Rubric
from aurify.samplers.scripted import ScriptedSampler
from aurify.tasks.taskset import TaskSet, question
from aurify.types import Datum, Group, SamplingParams, Segment, Task, Trajectory

TASKS = [Task(f"t{k}", question(f"say {k}"), str(k)) for k in range(3)]
HELDOUT = [Task("held out", question("say 9"), "9")]
WARM = SamplingParams(temperature=0.7)


def stage(**options: Any) -> OnlineStage:
    small = {"steps": 1, "prompts_per_step": 2, "completions_per_prompt": 4}
    return OnlineStage(method="grpo", model=ModelConfig("random:tiny"), **small | options)


def contains(task: Task, trajectory: Trajectory) -> float:
    return float(str(task.answer) in trajectory.text)


def rollouts(replies: Any, options: OnlineStage, reward: Any = contains, engine: Engine | None = None) -> Any:
    engine = engine or Engine(tiny_model(), optim=options.optim)
    rewards = reward if isinstance(reward, list) else [reward]
    taskset = TaskSet("toy", lambda seed: iter(TASKS), HELDOUT, Rubric(rewards))
    sampler = ScriptedSampler(replies, engine.tokenizer)
    return Rollouts(sampler, Renderer(engine.tokenizer), taskset, taskset.rubric, options, seed=1), engine


def round_of(replies: Any, options: OnlineStage, reward: Any = contains) -> tuple[Round, Rollouts, Engine]:
    sampled, engine = rollouts(replies, options, reward)
    return asyncio.run(sampled.sample(0, GRPO(), engine)), sampled, engine


def run(algorithm: Any, sampled: Rollouts, engine: Engine, folder: Path) -> Recorder:
    recorder = Recorder()
    checkpoints = Checkpoints(folder, every=0, keep=1, identity="x")
    train_online(engine, algorithm, sampled, tracker=recorder, checkpoints=checkpoints)  # type: ignore[arg-type]
    return recorder


def told_temperatures(engine: Engine, names: tuple[str, ...] = ("logprobs", "entropies", "forward_backward")) -> Any:
    """(name, temperature) of the calls to come."""
    calls: list[tuple[str, float]] = []

    def listening(name: str) -> Any:
        original = getattr(engine, name)

        def called(*values: Any, temperature: float = 1.0, **rest: Any) -> Any:
            calls.append((name + ("/reference" if rest.get("reference") else ""), temperature))
            return original(*values, temperature=temperature, **rest)

        return called

    for name in names:
        setattr(engine, name, listening(name))
    return calls


# ---------------------------------------------------------------------- temperature


def data_of(num: int = 2) -> list[list[Datum]]:
    return [
        [Datum([5, 6, 7 + k, 8 + k], [0.0, 0.0, 1.0, 1.0], advantages=[1.0] * 4, logprobs=[-1.0] * 4, source="policy")]
        for k in range(num)
    ]


def sharp_engine(seed: int = 0, **options: Any) -> Engine:
    """One whose distributions differ with the temperature."""
    model = random_model(seed=seed)
    with torch.no_grad():
        for weight in model.module.parameters():
            if weight.ndim == 2:
                weight.mul_(4)
    return Engine(model, **options)


def test_temperature_of_the_old_log_probs_is_that_of_sampling():
    engine, options = sharp_engine(), stage(sampling=WARM, num_epochs=2)
    found = [row[0].old_logprobs for row in add_round_logprobs(engine, GRPO(), data_of(), options)]
    flat = [row[0] for row in data_of()]
    assert found == engine.logprobs(flat, temperature=0.7) and found != engine.logprobs(flat)


def test_temperature_of_the_reference_is_that_of_sampling():
    engine, options = sharp_engine(), stage(sampling=WARM)
    engine.keep_reference()
    found = [row[0].ref_logprobs for row in add_round_logprobs(engine, GRPO(kl_coef=0.1), data_of(), options)]
    flat = [row[0] for row in data_of()]
    assert found == engine.logprobs(flat, reference=True, temperature=0.7) and found != engine.logprobs(flat)


def test_temperature_of_the_teacher_is_that_of_sampling():
    engine, teacher = sharp_engine(), sharp_engine(seed=5, trainable=False)
    engine.follow(teacher)
    algorithm = Distillation(vocabulary="sampled")
    found = [row[0].ref_logprobs for row in add_round_logprobs(engine, algorithm, data_of(), stage(sampling=WARM))]
    flat = [row[0] for row in data_of()]
    assert found == teacher.logprobs(flat, temperature=0.7) and found != teacher.logprobs(flat)


def test_temperature_of_training_and_of_prepare_is_that_of_sampling():
    made, sampled, engine = round_of(["0", "1"], stage(sampling=WARM))
    calls = told_temperatures(engine)
    learn(engine, GRPO(top_entropy=0.5), made, sampled, 0)
    assert calls == [("entropies", 0.7), ("forward_backward", 0.7)]


def test_temperature_of_the_choice_from_the_replay_buffer_is_that_of_sampling(tmp_path):
    options = stage(sampling=WARM, replay=ReplayOptions(start=0.0), steps=2)
    sampled, engine = rollouts(["0", "01", "1", "no"], options)
    sampled = replace(sampled, buffer=Buffer(options.replay, 4))  # type: ignore[arg-type]
    calls = told_temperatures(engine, ("entropies",))
    sampled.buffer.started = True  # type: ignore[union-attr]
    run(GRPO(), sampled, engine, tmp_path)
    assert calls and {temperature for _, temperature in calls} == {0.7}


def test_the_first_ratio_is_one_at_any_temperature():
    made, sampled, engine = round_of(["0", "1"], stage(sampling=WARM, num_epochs=2))
    ratios: list[float] = []
    original = engine.forward_backward
    engine.forward_backward = lambda *a, **k: ratios.append((m := original(*a, **k))["loss/ratio"]) or m  # type: ignore[method-assign]
    learn(engine, GRPO(), made, sampled, 0)
    assert ratios[0] == pytest.approx(1, abs=1e-5)


# ---------------------------------------------------------------------- what an algorithm asks for


def test_prepared_is_called_once_for_each_update_of_the_loop():
    class Watched(GRPO):
        def prepare(self, data: Any, policy: Any, temperature: float) -> list[Datum]:
            seen.append((len(data), temperature))
            return [replace(datum, advantages=[0.0] * len(datum.tokens)) for datum in data]

    seen: list[tuple[int, float]] = []
    made, sampled, engine = round_of(["0", "1"], stage(num_minibatches=2, sampling=WARM))
    before = [parameter.clone() for parameter in engine.trainable]
    learn(engine, Watched(), made, sampled, 0)
    assert seen == [(4, 0.7), (4, 0.7)]
    assert all(torch.equal(a, b) for a, b in zip(before, engine.trainable, strict=True)), "its advantages are used"


def test_the_entropy_coefficient_of_the_controller_reaches_the_loss(tmp_path):
    """The entropy is far below the target: after the first step the bonus has a weight, and the loss feels it."""
    losses: dict[float | None, list[float]] = {}
    for target in (None, 50.0):
        sampled, engine = rollouts(["0", "1"], stage(steps=3))
        algorithm = GRPO(entropy_target=target)
        original, rows = engine.forward_backward, []

        def spy(data: Any, used: Any, original: Any = original, rows: Any = rows, **options: Any) -> Any:
            rows.append(used.entropy_coef)
            return original(data, used, **options)

        engine.forward_backward = spy  # type: ignore[method-assign]
        run(algorithm, sampled, engine, tmp_path / str(target))
        losses[target] = rows
    assert losses[None] == [0.0] * 3 and losses[50.0] == pytest.approx([0.0, 0.005, 0.01])


def test_keep_reference_is_called_before_the_first_step(tmp_path):
    """Full fine-tuning: without a copy the second step has no reference, or one that moves along."""
    sampled, engine = rollouts(["0", "1"], stage(steps=3, optim=OptimConfig(lr=1e-2)))
    recorder = run(GRPO(kl_coef=0.01), sampled, engine, tmp_path)
    assert recorder.rows[0]["loss/kl"] == pytest.approx(0, abs=1e-5) and recorder.rows[2]["loss/kl"] > 1e-5


def test_metrics_of_a_guide_and_of_replay_are_means_over_their_own_tokens():
    told = {"loss": 1.0, "loss/guidance_share": 0.25, "loss/guidance_nll": 0.5, "loss/replay_share": 0.0}
    told |= {"loss/replay_ratio": 0.0, "loss/sampler_gap": 0.3, "loss/sampler_share": 0.5}
    told |= {"loss/entropy": 0.6, "loss/entropy_share": 0.3}
    expected = {"loss": 1.0, "loss/guidance_nll": 2.0, "loss/sampler_gap": 0.6, "loss/entropy": 2.0}
    found = means_by_source(told)
    assert {name: value for name, value in found.items() if not name.endswith("_share")} == pytest.approx(expected)


def test_corrections_act_in_the_loop():
    """The scripted sampler says log-prob -1 of every token, the trainer far less: exp d is below any bound."""
    grads = []
    for correction in (Correction(), Correction("token_mis")):
        made, sampled, engine = round_of(["0", "1"], stage())
        grads.append(learn(engine, GRPO(correction=correction), made, sampled, 0)["optim/grad_norm"])
    assert grads[0] > 0 and grads[1] == 0


def test_a_step_that_was_stopped_takes_no_task(tmp_path):
    """Asked to stop while the second step samples: what is saved is the state after the first."""

    class Stopping(ScriptedSampler):
        async def sample(self, prompt: Any, params: Any, n: int = 1) -> Any:
            calls.append(1)
            if len(calls) == 12:  # of eight a step
                signal.raise_signal(signal.SIGINT)
                await asyncio.sleep(0)
            return await super().sample(prompt, params, n)

    calls: list[int] = []
    sampled, engine = rollouts(["0", "1"], stage(steps=3))
    sampled = replace(sampled, sampler=Stopping(["0", "1"], engine.tokenizer))
    with pytest.raises(Interrupted, match="after step 1"):
        run(GRPO(), sampled, engine, tmp_path)
    [memory] = tmp_path.rglob(MEMORY_FILE)
    assert torch.load(memory, weights_only=True)["tasks"] == {"taken": 2} and engine.version == 1


# ---------------------------------------------------------------------- what a step is made of


def reward_of_text(task: Task, trajectory: Trajectory) -> float | None:
    return {"none": None}.get(trajectory.text, float(trajectory.text == "0"))


def test_distillation_needs_no_reward():
    """Answers that no reward applies to are judged by the teacher like the others."""
    made, sampled, engine = round_of(["0", "none", "1", "none"], stage(), reward_of_text)
    engine.follow(Engine(tiny_model(), trainable=False))
    seen: list[Datum] = []
    original = engine.forward_backward
    engine.forward_backward = lambda data, *rest, **options: seen.extend(data) or original(data, *rest, **options)  # type: ignore[method-assign]
    learn(engine, Distillation(), made, sampled, 0)
    assert len(seen) == 8 and made.groups[0].rewards.count(None) == 2
    seen.clear()
    learn(engine, GRPO(), made, sampled, 0)
    assert len(seen) == 4


def test_flat_groups_leave_the_denominators_or_stay_there_as_in_trl():
    """One informative group of two, of equal lengths: its gradient is twice as long alone as beside the flat one."""
    found = {}
    for flat in ("leave_out", "keep"):
        made, sampled, engine = round_of(["0", "1", "0", "1", "2", "2", "2", "2"], stage())
        assert made.groups[1].rewards == [0.0] * 4
        algorithm = GRPO(flat_groups=flat)  # type: ignore[arg-type]
        found[flat] = learn(engine, algorithm, made, sampled, 0)
    assert found["leave_out"]["ledger/tokens_trained"] == 8 and found["keep"]["ledger/tokens_trained"] == 16
    assert found["leave_out"]["optim/grad_norm"] == pytest.approx(2 * found["keep"]["optim/grad_norm"], rel=1e-3)


def test_flat_groups_that_are_kept_get_kl_and_entropy():
    for algorithm, version in ((GRPO(flat_groups="keep"), 0), (GRPO(flat_groups="keep", entropy_coef=0.1), 1)):
        made, sampled, engine = round_of(["2"], stage())
        metrics = learn(engine, algorithm, made, sampled, 0)
        assert engine.version == version and ("loss/entropy" in metrics) == bool(version)


def test_truncated_and_masked_answers_stay_out_where_flat_groups_are_kept():
    options = stage(truncated="mask")
    answers = [Trajectory([], [], 0, reward=1.0, outcome="token_limit" if cut else "done") for cut in (True, False)]
    group = Group(TASKS[0], [*answers, Trajectory([], [], 0)])
    assert len(choose_trained(group, [0.0] * 3, options, keep_flat=True)) == 1


def test_consistency_filter_keeps_answers_whose_rewards_agree():
    """(1, 1) above both means, (0, 0) below both, (1, 0) and (0, 1) between; equal to a mean goes with either."""
    rows = [(1.0, 1.0), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 0.5)]
    answers = [Trajectory([], [], 0, {"a": a, "b": b, "told": c}, a + b) for c, (a, b) in enumerate(rows)]
    group = Group(TASKS[0], answers, {"told": 0.0})
    assert agreeing_trajectories(group, range(5)) == [0, 1, 4]


def test_consistency_filter_acts_in_the_loop():
    def short(task: Task, trajectory: Trajectory) -> float:
        return -float(len(trajectory.text))

    options = stage(consistent_only=True, prompts_per_step=1)
    made, sampled, engine = round_of(["0", "222", "000", "2"], options, [contains, short])
    metrics = learn(engine, GRPO(), made, sampled, 0)
    assert metrics["ledger/trajectories_inconsistent"] == 2, "0 is right and short; 222 wrong and long"
    assert metrics["ledger/tokens_trained"] == 6


def test_a_guides_ratio_is_the_same_with_one_update_and_with_several():
    """GRPO, DAPO and the like compare with the trainer before the update; LUFFY asks for no pass over whole traces."""
    engine = sharp_engine()
    guided = Datum([5, 6, 7, 8], [0.0, 0.0, 1.0, 1.0], advantages=[1.0] * 4, logprobs=[0.0] * 4, source="guidance")
    partly = replace(guided, tokens=[5, 6, 9, 3], source="policy", guided=[False, False, True, False])
    stream = add_round_logprobs(engine, GRPO(), [[guided, partly]], stage(num_epochs=2))
    known = engine.logprobs([guided, partly])
    assert [datum.old_logprobs for datum in stream[0]] == known and known[0][2] < -0.1
    for num_epochs in (1, 2):
        [data] = add_round_logprobs(engine, GRPO(), [[guided]], stage(num_epochs=num_epochs))
        assert engine.forward_backward(data, GRPO())["loss/ratio"] == pytest.approx(1, abs=1e-5)
    [data] = add_round_logprobs(engine, LUFFY(), [[guided]], stage(num_epochs=2))
    assert data[0].old_logprobs == [0.0] * 4


# ---------------------------------------------------------------------- the penalty of truncated answers


@pytest.mark.parametrize("how", ["sum", "uniform", "std", "pca", "l2"])
@pytest.mark.parametrize("cut", [0, 1])
def test_penalise_acts_with_combined_rewards(how, cut):
    """Whichever answer comes first. The combined rewards are those without a penalty, and .25 less for the cut one."""

    def short(task: Task, trajectory: Trajectory) -> float:
        return 1.0 / len(trajectory.text)

    replies = ["0", "0", "2", "22"]
    replies[cut] = "0" * 300
    found = []
    for truncated in ("keep", "penalise"):
        options = stage(
            prompts_per_step=1,
            combine_rewards=how,
            truncated=truncated,
            truncation_penalty=0.25 if truncated == "penalise" else 1.0,
        )
        made, _, _ = round_of(replies, options, [contains, short])
        [group] = made.groups
        found.append(group.rewards)
    expected = [value - (0.25 if place == cut else 0.0) for place, value in enumerate(found[0])]
    assert found[1] == pytest.approx(expected)
    sums = [t.rewards["contains"] + t.rewards["short"] for t in group.trajectories]  # type: ignore[operator]
    assert (found[0] == pytest.approx(sums)) == (how == "sum"), "combined in the loop"


def test_penalise_acts_with_gdpo():
    options = stage(prompts_per_step=1, truncated="penalise")
    made, _, _ = round_of(["0", "0" * 300, "0", "0"], options)
    [group] = made.groups
    assert [t.rewards["truncated"] for t in group.trajectories] == [0, -1, 0, 0]
    [row] = GDPO().advantages([group])
    assert row[1] < 0 < row[0] == row[2] == row[3]


def test_a_stored_success_does_not_bring_the_penalty_of_its_time():
    options = stage(prompts_per_step=1, truncated="penalise", replay=ReplayOptions())
    made, sampled, _ = round_of(["0", "2"], options)
    [group] = made.groups
    buffer = Buffer(ReplayOptions(), 4)
    buffer.started = True
    logprobs = [[0.0] * len(t.tokens) for t in group.trajectories]
    buffer.learn([group], [logprobs], sampled.rubric, 0)
    assert buffer.entries and all(entry.rewards == {"contains": 1.0} for entry in buffer.entries.values())


def test_groups_carry_the_weights_of_the_rubric():
    def told(task: Task, trajectory: Trajectory) -> float:
        return float(len(trajectory.text))

    made, _, _ = round_of(["0", "22"], stage(prompts_per_step=1), [contains, (told, 0.0)])
    [group] = made.groups
    assert group.reward_weights == {"contains": 1.0, "told": 0.0}


# ---------------------------------------------------------------------- drawing again


@pytest.mark.parametrize(("by", "num"), [("advantage", 0), ("accuracy", 1)])
def test_dynamic_sampling_by_accuracy_looks_at_the_first_reward(by, num):
    """All right and of different lengths: a spread of rewards, and none of accuracy (DAPO's overlong penalty)."""
    options = stage(prompts_per_step=1, dynamic_sampling=1, dynamic_sampling_by=by)
    sampled, engine = rollouts(["0", "00", "000", "0000", "1", "2", "1", "2"], options)
    made = asyncio.run(sampled.sample(0, DAPO(max_length=4, buffer=3), engine))
    assert len(made.discarded) == num


# ---------------------------------------------------------------------- the optimiser


def broken() -> list[Datum]:
    return [Datum([1, 2], [0.0, 1.0], advantages=[0.0, float("nan")])]


def sound(advantage: float = 1.0) -> list[Datum]:
    return [Datum([1, 2], [0.0, 1.0], advantages=[advantage] * 2)]


def test_a_gradient_that_is_not_finite_skips_the_step_and_is_counted():
    engine = Engine(random_model(), optim=OptimConfig(max_skipped_steps=2))
    before = [parameter.clone() for parameter in engine.trainable]
    for _ in range(2):
        engine.forward_backward(broken(), GRPO())
        assert engine.optim_step(1e-3)["ledger/steps_skipped"] == 1 and engine.version == 0
    assert all(torch.equal(a, b) for a, b in zip(before, engine.trainable, strict=True))
    engine.forward_backward(sound(), GRPO())
    metrics = engine.optim_step(1e-3)
    assert "ledger/steps_skipped" not in metrics and metrics["optim/grad_norm"] > 0 and engine.version == 1
    for _ in range(2):  # they count anew
        engine.forward_backward(broken(), GRPO())
        engine.optim_step(1e-3)
    engine.forward_backward(broken(), GRPO())
    with pytest.raises(UserError, match="not finite in 3 steps in a row"):
        engine.optim_step(1e-3)


def test_skipped_steps_in_a_row_are_counted_over_a_resume(tmp_path):
    engine = Engine(random_model(), optim=OptimConfig(max_skipped_steps=1))
    engine.forward_backward(broken(), GRPO())
    engine.optim_step(1e-3)
    engine.save(tmp_path)
    resumed = Engine(random_model(), optim=OptimConfig(max_skipped_steps=1))
    resumed.load(tmp_path)
    resumed.forward_backward(broken(), GRPO())
    with pytest.raises(UserError, match="2 steps in a row"):
        resumed.optim_step(1e-3)


def test_a_run_goes_on_after_a_step_that_was_skipped(tmp_path):
    sampled, engine = rollouts(["0", "1"], stage(steps=3))
    original, calls = engine.forward_backward, []

    def once_broken(data: Any, *rest: Any, **options: Any) -> Any:
        calls.append(len(data))
        if len(calls) == 2:
            data = [replace(datum, advantages=[float("inf")] * len(datum.tokens)) for datum in data]
        return original(data, *rest, **options)

    engine.forward_backward = once_broken  # type: ignore[method-assign]
    recorder = run(GRPO(), sampled, engine, tmp_path)
    assert [row.get("ledger/steps_skipped") for row in recorder.rows] == [None, 1.0, None] and engine.version == 2


def step_of(advantage: float, lr: float, **options: Any) -> Engine:
    engine = Engine(random_model(), optim=OptimConfig(**options))
    engine.forward_backward(sound(advantage), GRPO())
    engine.optim_step(lr)
    return engine


def test_gradients_are_clipped_to_max_grad_norm():
    """With a large eps Adam's first step is nearly the gradient itself: lr g / (|g| + eps), here g / 1000."""

    def moved(max_grad_norm: float) -> float:
        start = Engine(random_model()).trainable
        engine = step_of(1e3, 1e3, max_grad_norm=max_grad_norm, eps=1e6)
        pairs = zip(start, engine.trainable, strict=True)
        return float(torch.stack([(a - b).detach().norm() for a, b in pairs]).norm())

    assert moved(1.0) == pytest.approx(1e-3, rel=0.02) and moved(0.5) == pytest.approx(5e-4, rel=0.02)
    assert moved(0.0) > 10 * moved(1.0)


def test_weight_decay_shrinks_matrices_alone():
    """A gradient of nothing: what is left is lr * decay of each matrix, and of no vector."""
    start = [parameter.clone() for parameter in Engine(random_model()).trainable]
    engine = step_of(0.0, 1e-3, weight_decay=0.5)
    for before, after in zip(start, engine.trainable, strict=True):
        factor = 1 - 1e-3 * 0.5 if after.ndim >= 2 else 1.0
        assert torch.allclose(after, factor * before, atol=1e-7)
    assert any(parameter.ndim == 1 for parameter in engine.trainable)


# ---------------------------------------------------------------------- recorded teachers


def test_recorded_log_probs_reach_the_datum(tmp_path):
    from aurify.loops.guidance import open_guide
    from aurify.pipeline.recipe import GuidanceOptions, PrefixOptions

    path = tmp_path / "traces.jsonl"
    tokens = tiny_model().tokenizer.encode("it is 0")
    recorded = [-0.5 - 0.1 * k for k in range(len(tokens))]  # without the end token
    path.write_text(
        f'{{"prompt": "say 0", "trace": "it is 0", "answer": "0", "logprobs": {recorded}}}\n'
        '{"prompt": "say 1", "trace": "it is 1", "answer": "1", "logprobs": [-1.0]}\n'
    )
    half = PrefixOptions(schedule="fixed", low=0.5, high=0.5)
    for prefix, expected in ((None, [*recorded, 0.0]), (half, recorded[:4])):
        options = stage(guidance=GuidanceOptions(path=str(path), prefix=prefix))
        sampled, _ = rollouts([" 0"], options)
        guide = asyncio.run(open_guide(options, sampled.taskset, sampled.renderer, 1000))
        assert guide.traces is not None and guide.traces.tally.rejected == {"with log-probs of other tokens": 1}
        group, _ = asyncio.run(replace(sampled, guide=guide).play_group(0, 0, TASKS[0]))
        guided = group.trajectories[-1]
        [segment] = [segment for segment in guided.segments if segment.origin == "guidance"]
        assert segment.logprobs == pytest.approx(expected)
        datum = build_datum(guided, 1.0)
        begin = len(guided.segments[0].tokens)
        assert datum.logprobs is not None
        assert datum.logprobs[begin : begin + len(expected)] == pytest.approx(expected)


def test_segments_of_a_guide_without_a_record_count_as_certain():
    segments = [Segment([1], "prompt"), Segment([2, 3], "guidance")]
    assert build_datum(Trajectory(segments, [], 0, source="guidance")).logprobs == [0.0] * 3
