"""Pictures of rewards and training_stats.json, from a run's files alone."""

from __future__ import annotations

import json

import pytest

from aurify.errors import UserError
from aurify.report.pictures import DISTRIBUTION, OVER_TIME, STATS, draw_pictures, gather_drawn_rewards
from aurify.tracking import jsonl
from aurify.tracking.run_folder import RunFolder

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def run(tmp_path):
    folder = RunFolder.create(tmp_path, {"stages": {"sft": {}, "rl": {}}})
    for stage in ("sft", "rl"):
        folder.record(stage, status="finished")
        folder.stage(stage)
    return folder


def add_samples(run, *rows):
    jsonl.append_log(run.stage("rl").samples, *rows)


def sample(step, mrr, like, source="policy"):
    rewards = {"mrr": mrr, "like": like}
    return {"step": step, "rewards": rewards, "reward": (mrr or 0) + (like or 0), "source": source}


def test_every_reward_is_drawn_over_time_and_by_its_distribution(run):
    pytest.importorskip("matplotlib")
    add_samples(run, *(sample(step, step / 4, None if step == 2 else 0.5) for step in (1, 2, 3) for _ in range(4)))
    add_samples(run, sample(3, 1.0, 1.0, "guidance"))
    jsonl.append_log(run.stage("rl").metrics, {"step": 1, "reward/mean": 0.75})
    written = draw_pictures(run.path)
    assert [path.name for path in written] == [STATS, OVER_TIME, DISTRIBUTION]
    assert {path.parent.name for path in written} == {"rl"}, "sft has sampled nothing"
    for path in written[1:]:
        content = path.read_bytes()
        assert content.startswith(PNG) and len(content) > 5_000
    stats = json.loads(written[0].read_text())
    assert stats["rewards"]["mrr"] == {"steps": [1, 2, 3], "mean": [0.25, 0.5, 0.75], "std": [0] * 3, "num": [4] * 3}
    assert stats["rewards"]["like"]["steps"] == [1, 3], "where it applied"
    assert stats["rewards"]["reward"]["mean"] == [0.75, 0.5, 1.25]
    assert stats["steps"] == [{"step": 1, "reward/mean": 0.75}]


def test_a_guides_rewards_are_not_the_policys(run):
    add_samples(run, sample(1, 0.0, 0.0), sample(1, 1.0, 1.0, "guidance"))
    assert gather_drawn_rewards(run.stage("rl"))["mrr"] == {1: [0.0]}


def test_a_run_without_answers_says_what_to_set(run):
    with pytest.raises(UserError, match="samples_every"):
        draw_pictures(run.path)
