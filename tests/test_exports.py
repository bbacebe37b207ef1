"""The public interface, pinned: whoever adds or removes a name does it on purpose, here too."""

from __future__ import annotations

import pytest

import aurify

PUBLIC = [
    "Batch",
    "Completion",
    "DPO",
    "Datum",
    "Engine",
    "Environment",
    "GRPO",
    "Group",
    "InProcessSampler",
    "LoadedModel",
    "LoraConfig",
    "Message",
    "ModelConfig",
    "Observation",
    "OptimConfig",
    "Outputs",
    "Renderer",
    "RewardModel",
    "Rubric",
    "SFT",
    "Sampler",
    "SamplingParams",
    "ScriptedSampler",
    "Segment",
    "Step",
    "Task",
    "TaskSet",
    "Trajectory",
    "UserError",
    "__version__",
    "algorithm",
    "dataset",
    "build_data",
    "build_datum",
    "environment",
    "evaluate",
    "load_config",
    "load_model",
    "load_tokenizer",
    "lr_at",
    "make_task",
    "reward",
    "rollout",
    "run_pipeline",
    "task",
    "tiny_model",
    "tool",
]


def test_the_public_names():
    assert sorted(aurify.__all__) == sorted(PUBLIC)
    assert dir(aurify) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_there(name):
    thing = getattr(aurify, name)
    decorators = ("task", "reward", "environment", "tool", "algorithm", "dataset")
    if name not in ("__version__", "make_task", "Message", *decorators):
        assert thing.__name__ == name


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        aurify.Trainer  # noqa: B018
