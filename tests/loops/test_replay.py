"""The buffer of past successes: what goes in, what is drawn, which trajectory of a question, what is forgotten."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from models import random_model

from aurify.engine.engine import Engine
from aurify.environments.rollout import build_datum
from aurify.loops.replay import Buffer, Entry, num_replayed, replay_bucket_weights
from aurify.pipeline.recipe import ReplayOptions
from aurify.rewards.rubric import Rubric
from aurify.types import Datum, Group, Segment, Task, Trajectory

PROMPT = [5, 6, 7]


def right(task: Task, trajectory: Trajectory) -> float:
    return float(trajectory.text == "yes")


RUBRIC = Rubric([right])


def trajectory(tokens: Sequence[int], good: bool = True, source: str = "policy") -> Trajectory:
    segments = [Segment(PROMPT, "prompt"), Segment(list(tokens), "policy", [-1.0] * len(tokens), [0] * len(tokens))]
    messages: Any = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "yes" if good else "no"}]
    return Trajectory(segments, messages, 1, source=source)  # type: ignore[arg-type]


def group_of(name: str, *trajectories: Trajectory) -> Group:
    task = Task(name, [{"role": "user", "content": "?"}], "yes", {"level": 3})
    asyncio.run(RUBRIC.score(task, trajectories))
    return Group(task, list(trajectories))


def learn(buffer: Buffer, *groups: Group, step: int = 0, value: float = -2.0) -> dict[str, float]:
    logprobs = [[[0.0] * 3 + [value] * (len(t.tokens) - 3) for t in group.trajectories] for group in groups]
    return buffer.learn(groups, logprobs, RUBRIC, step)


def started(group_size: int = 4, **options: Any) -> Buffer:
    buffer = Buffer(ReplayOptions(**options), group_size)
    buffer.started = True
    return buffer


class Known:
    """A policy whose entropies are told: 9 on everything that must not count."""

    def __init__(self, values: dict[tuple[int, ...], list[float]]) -> None:
        self.values = values

    def entropies(self, data: Sequence[Datum], *, temperature: float = 1.0) -> list[list[float]]:
        return [[9.0] * 3 + self.values[tuple(datum.tokens[3:])] for datum in data]

    def logprobs(self, data: Sequence[Datum], *, reference: bool = False, temperature: float = 1.0) -> Any:
        return [[-value for value in row] for row in self.entropies(data)]


def test_bucket_weights():
    """K = 8: the normal density of k = 1 .. 7 around 4 with sigma 1, over those that exist."""
    weights = replay_bucket_weights(8, 1.0)
    total = sum(weights[k] for k in range(1, 8))
    expected = [0.0044, 0.0540, 0.2420, 0.3991, 0.2420, 0.0540, 0.0044]
    assert [weights[k] / total for k in range(1, 8)] == pytest.approx(expected, abs=1e-4)


def test_buckets_are_drawn_by_their_weight_and_questions_only_once():
    buffer = started(8)
    for k in (2, 4, 7):
        for number in range(10):
            own = [trajectory([10 + n, 2], good=n < k) for n in range(8)]
            learn(buffer, group_of(f"{k}/{number}", *own))
    counts: Counter[str] = Counter()
    for seed in range(2000):
        [name] = buffer.draw(1, random.Random(seed))
        counts[name.partition("/")[0]] += 1
    total = 0.0540 + 0.3991 + 0.0044
    assert counts["4"] / 2000 == pytest.approx(0.3991 / total, abs=0.03)
    assert counts["2"] / 2000 == pytest.approx(0.0540 / total, abs=0.03)
    for seed in range(5):
        drawn = buffer.draw(25, random.Random(seed))
        assert len(set(drawn)) == 25 and sum(name.startswith("4/") for name in drawn) == 10, "then the others follow"
    large = started(200)
    learn(large, group_of("far", trajectory([1, 2]), trajectory([3, 2], good=False)))
    assert large.draw(1, random.Random(0)) == ["far"], "a density of 0 in floating point"


def test_delayed_start():
    buffer = Buffer(ReplayOptions(start=0.35), 4)
    poor = group_of("a", trajectory([1]), *(trajectory([k], good=False) for k in (2, 3, 4)))
    fair = group_of("b", trajectory([1]), trajectory([2]), trajectory([3], good=False), trajectory([4], good=False))
    assert learn(buffer, poor)["replay/started"] == 0
    metrics = learn(buffer, fair)
    assert metrics["replay/started"] == 1 and metrics["replay/success_rate"] == 0.5
    assert metrics["replay/trajectories"] == 0, "what starts it is not kept itself"
    assert learn(buffer, fair)["replay/trajectories"] == 2
    assert learn(buffer, poor)["replay/bucket_1"] == 1, "it stays on, whatever comes"
    chosen = {
        task.id for seed in range(40) for task, _ in buffer.choose(2, Known({(1,): [0.1], (2,): [0.2]}), 1.0, seed)
    }
    assert chosen == {"a", "b"}


def test_a_share_of_the_prompts_as_far_as_there_are_questions():
    buffer = started(share=0.5)
    assert buffer.choose(8, Never(), 1.0, 0) == []
    for name in "abc":
        learn(buffer, group_of(name, trajectory([1]), trajectory([2], good=False)))
    for num, expected in ((1, 0), (2, 1), (5, 2), (20, 3)):
        assert len(buffer.choose(num, Never(), 1.0, 0)) == expected


class Never:
    """A policy that must not be asked: questions with one trajectory leave no choice."""

    def logprobs(self, data: Sequence[Datum], **_: Any) -> list[list[float]]:
        assert not data
        return []

    entropies = logprobs


def test_only_own_whole_successes_of_mixed_groups_are_kept():
    buffer = started()
    cut = trajectory([7])
    cut.outcome = "token_limit"
    learn(buffer, group_of("a", trajectory([1]), cut, trajectory([2], good=False), trajectory([3], source="guidance")))
    assert [list(entry.tokens) for entry in buffer.entries.values()] == [[*PROMPT, 1]]
    learn(buffer, group_of("b", trajectory([1], good=False), trajectory([3], source="guidance")))
    assert set(buffer.questions) == {"a"}
    [entry] = buffer.entries.values()
    assert list(entry.logprobs) == [0, 0, 0, -2], "the trainer's, not the sampler's"


def test_questions_that_are_always_right_retire_and_failed_ones_go_down():
    buffer = started()
    mixed = [trajectory([1]), trajectory([2]), trajectory([3], good=False), trajectory([4], good=False)]
    learn(buffer, group_of("a", *mixed), group_of("b", *mixed), group_of("c", *mixed))
    assert {name: q.bucket for name, q in buffer.questions.items()} == {"a": 2, "b": 2, "c": 2}
    again = buffer.entries[buffer.questions["a"].entries[0]].trajectory()
    metrics = learn(buffer, group_of("a", again, trajectory([8]), trajectory([9]), trajectory([10])), step=1)
    assert buffer.retired == {"a"} and set(buffer.questions) == {"b", "c"} and metrics["replay/used"] == 1
    again = buffer.entries[buffer.questions["b"].entries[0]].trajectory()
    learn(buffer, group_of("b", again, *(trajectory([k], good=False) for k in (8, 9, 10))))
    assert buffer.questions["b"].bucket == 1, "the reference leaves it where it was"
    stale = buffer.entries[buffer.questions["c"].entries[0]].trajectory()
    stale.messages = [*stale.messages[:1], {"role": "assistant", "content": "no"}]
    learn(buffer, group_of("c", stale, trajectory([8], good=False)))
    assert set(buffer.questions) == {"b"}, "a stored answer that is judged wrong now takes its question along"


def test_a_question_drawn_fresh_that_fails_completely_keeps_its_successes():
    """They are what the buffer is for: the question goes to the lowest bucket and can be replayed."""
    buffer = started()
    learn(buffer, group_of("a", trajectory([1]), trajectory([2]), trajectory([3]), trajectory([4], good=False)))
    assert buffer.questions["a"].bucket == 3
    learn(buffer, group_of("a", *(trajectory([k], good=False) for k in (5, 6, 7, 8))))
    assert buffer.questions["a"].bucket == 1 and len(buffer.entries) == 3
    [(task, _)] = buffer.choose(2, Engine(random_model(), trainable=False), 1.0, seed=0)
    assert task.id == "a"


def test_what_counts_as_a_success_is_the_option(monkeypatch):
    """A reward of .5: kept with success .5, and not with 1."""
    monkeypatch.setattr(RUBRIC, "rewards", [Rubric([half]).rewards[0]])
    for success, num in ((0.5, 1), (1.0, 0), (0.500001, 0)):
        buffer = started(success=success)
        learn(buffer, group_of("a", trajectory([1]), trajectory([2], good=False)))
        assert len(buffer.entries) == num


def half(task: Task, trajectory: Trajectory) -> float:
    return 0.5 * (trajectory.text == "yes")


def test_continuous_rewards_are_put_in_buckets_by_their_spread(monkeypatch):
    """Deviations 0, .25 and .5 of a step, with groups of 4: 4 (0 - 0) / .5, 4 * .25 / .5 and 4 * .5 / .5"""
    monkeypatch.setattr(RUBRIC, "rewards", [Rubric([by_token]).rewards[0]])
    buffer = started(buckets="spread", success=0.5)
    groups = [
        group_of("flat", trajectory([50]), trajectory([50]), trajectory([50]), trajectory([50])),
        group_of("some", trajectory([75]), trajectory([25]), trajectory([75]), trajectory([25])),
        group_of("wide", trajectory([100]), trajectory([0]), trajectory([100]), trajectory([0])),
    ]
    learn(buffer, *groups)
    assert {name: q.bucket for name, q in buffer.questions.items()} == {"some": 2, "wide": 4}
    assert "flat" in buffer.retired, "all of its answers succeed"
    assert buffer.draw(2, random.Random(0)) and buffer.find_buckets([groups[0]], RUBRIC) == [0]


def by_token(task: Task, trajectory: Trajectory) -> float:
    return trajectory.tokens[-1] / 100


def test_a_share_that_rounding_would_lower_is_whole():
    assert num_replayed(0.29, 100) == 29 and num_replayed(0.5, 1) == 0 and num_replayed(0.5, 5) == 2


def test_memory_is_bounded_and_the_oldest_goes_first():
    buffer = started(per_question=3, max_tokens=40)  # a trajectory of 3 + 2 tokens: 8 fit
    for step in range(6):
        learn(buffer, group_of("a", trajectory([10 + step, 2]), trajectory([9, 2], good=False)), step=step)
    assert [list(buffer.entries[key].tokens)[3] for key in buffer.questions["a"].entries] == [13, 14, 15]
    for number in range(20):
        metrics = learn(buffer, group_of(f"q{number}", trajectory([1, 2]), trajectory([9, 2], good=False)))
    assert set(buffer.questions) == {f"q{number}" for number in range(12, 20)} and buffer.num_tokens == 40
    assert metrics["replay/evicted"] == 1 and metrics["replay/megabytes"] == pytest.approx(320 / 2**20)


def test_copies_are_told_by_ids_and_the_newer_log_probs_stay():
    buffer = started()
    bad = trajectory([9], good=False)
    learn(buffer, group_of("a", trajectory([1, 2]), trajectory([1, 2]), trajectory([3]), bad))
    learn(buffer, group_of("a", trajectory([1, 2]), bad), step=4, value=-0.5)
    entries = [buffer.entries[key] for key in buffer.questions["a"].entries]
    assert [list(entry.tokens[3:]) for entry in entries] == [[3], [1, 2]]
    assert [(entry.step, entry.logprobs[-1]) for entry in entries] == [(0, -2.0), (4, -0.5)]


@pytest.mark.parametrize("select", ["entropy", "nll"])
def test_the_surest_trajectory_by_the_mean_over_its_own_tokens(select):
    """T18: lengths differ, so sums would choose otherwise: .6 / 1, (.5 + .5 + .4) / 3 and (1 + 0) / 2."""
    buffer = started(select=select)
    learn(buffer, group_of("a", *map(trajectory, ([1], [2, 2, 2], [3, 3])), trajectory([9], good=False)))
    policy = Known({(1,): [0.6], (2, 2, 2): [0.5, 0.5, 0.4], (3, 3): [1.0, 0.0]})
    [(task, entry)] = buffer.choose(2, policy, 1.0, seed=0)
    assert task.id == "a" and list(entry.tokens[3:]) == [2, 2, 2]


def test_the_entropy_ranking_is_that_of_the_plain_model():
    """T18 with a model: sequences of several lengths, in micro-batches of one, against a plain forward pass."""
    model = random_model(seed=3)
    generator = torch.Generator().manual_seed(1)
    answers = [torch.randint(3, 250, (n,), generator=generator).tolist() for n in (3, 11, 1, 6, 8)]

    def plain(answer: list[int]) -> float:
        with torch.no_grad():
            logits = model.module(torch.tensor([PROMPT + answer])).logits[0].log_softmax(-1)
        entropy = -(logits.exp() * logits).sum(-1)
        return float(entropy[len(PROMPT) - 1 : -1].mean())

    expected = [plain(answer) for answer in answers]
    buffer = started(6)
    own = [trajectory(answer) for answer in answers]
    learn(buffer, group_of("a", *own, trajectory([9], good=False)))
    engine = Engine(model, trainable=False, micro_batch_tokens=1)
    [(_, entry)] = buffer.choose(2, engine, 1.0, seed=0)
    assert list(entry.tokens[3:]) == answers[expected.index(min(expected))]
    values = engine.entropies([build_datum(own[1])])[0]
    assert sum(values[3:]) / 11 == pytest.approx(expected[1], abs=1e-5)


def test_a_stored_trajectory_comes_back_as_it_was():
    """T1: ids, never text; several turns; log-probs of the trainer; rewards of the environment stay for the rubric."""
    segments = [
        Segment(PROMPT, "prompt"),
        Segment([8, 9], "policy", [-1.0, -1.0], [0, 0]),
        Segment([1, 2], "environment"),
        Segment([4], "policy", [-1.0], [0]),
    ]
    messages: Any = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "yes"}]
    original = Trajectory(segments, messages, 1, {"right": 1.0, "step": 0.25}, 1.25)
    entry = Entry.of(Task("a", messages[:1]), original, [0, 0, 0, -3, -4, 0, 0, -5], step=2)
    again = entry.trajectory()
    assert again.tokens == original.tokens and again.source == "replay" and again.messages == messages
    datum = build_datum(again, 0.5)
    assert datum.weights == [0, 0, 0, 1, 1, 0, 0, 1] and datum.logprobs == [0, 0, 0, -3, -4, 0, 0, -5]
    asyncio.run(RUBRIC.score(Task("a", []), [again]))
    assert again.reward == 1.25, "judged again, and what the environment gave counts again"


def test_state_brings_everything_back(tmp_path):
    """T28"""
    buffer, other = started(per_question=2), Buffer(ReplayOptions(per_question=2), 4)
    mixed = [trajectory([1, 5]), trajectory([2]), trajectory([3]), trajectory([4], good=False)]
    learn(buffer, group_of("a", *mixed), group_of("b", *mixed), step=1, value=-1 / 3)
    learn(buffer, group_of("r", *map(trajectory, ([1], [2]))))
    torch.save(buffer.state_dict(), tmp_path / "x.pt")
    other.load_state_dict(torch.load(tmp_path / "x.pt", weights_only=True))
    assert other.entries == buffer.entries and other.questions == buffer.questions
    assert (other.retired, other.started, other.num_tokens) == ({"r"}, True, buffer.num_tokens)
    later = group_of("c", *mixed)
    assert learn(other, later, step=2) == learn(buffer, later, step=2) and list(other.entries) == list(buffer.entries)
    empty = Buffer(ReplayOptions(), 4)
    empty.load_state_dict(Buffer(ReplayOptions(), 4).state_dict())
    assert not empty.entries and not empty.started
