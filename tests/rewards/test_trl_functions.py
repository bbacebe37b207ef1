"""Reward functions as people write them for TRL run unchanged: forty of every signature, return and prompt form, among
them TRL's own. And what goes wrong is said with the mend."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import re
import threading

import numpy as np
import pytest
import torch

from aurify.errors import UserError
from aurify.rewards.rubric import Rubric, build_rubric
from aurify.rewards.trl import TrainerState
from aurify.tracking.samples import record_sample
from aurify.types import Group, Segment, Task, Trajectory

QUESTION = "What is 3 + 4?"
CHAT = Task("t/1", [{"role": "user", "content": QUESTION}], "7", {"level": 3, "topic": "sums", "solution": "7"})
PLAIN = Task("t/2", [{"role": "user", "content": QUESTION}], "7", {"level": 3, "ground_truth": "7"}, plain=True)
REPLIES = ("<think>3 + 4</think>\n<answer>7</answer>", "It is eight, I guess.")


def trajectories(*replies):
    return [
        Trajectory(
            [Segment([1], "prompt"), Segment(list(range(len(reply))), "policy", [0.0] * len(reply))],
            [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": reply}],
            1,
        )
        for reply in replies
    ]


def score(function, task=CHAT, replies=REPLIES, state=None):
    rubric, found = Rubric([function]), trajectories(*replies)
    if state:
        rubric.state = state
    asyncio.run(rubric.score(task, found))
    return [trajectory.reward for trajectory in found]


# ------------------------------------------------------------------ chats: completions are lists of messages


def content_length(completions, **kwargs):
    return [float(len(completion[0]["content"])) for completion in completions]


def by_column(completions, solution, **kwargs):
    return [1.0 if s in c[0]["content"] else 0.0 for c, s in zip(completions, solution, strict=True)]


def positional_names(prompts, completions):
    assert all(p[-1]["content"] == QUESTION for p in prompts)
    return [1.0] * len(completions)


def answer_column(prompts, completions, answer, **kwargs):
    extracted = [c[0]["content"].split("<answer>")[-1].split("</answer>")[0].strip() for c in completions]
    return [2.0 if r == a else 0.0 for r, a in zip(extracted, answer, strict=True)]


def strict_format(completions, **kwargs):
    pattern = r"^<think>.*?</think>\s*<answer>.*?</answer>$"
    return [0.5 if re.match(pattern, c[0]["content"], re.DOTALL) else 0.0 for c in completions]


def xml_count(completions, **kwargs) -> list[float]:
    def count(text):
        return 0.25 * sum(text.count(tag) == 1 for tag in ("<think>", "</think>", "<answer>", "</answer>"))

    return [count(c[0]["content"]) for c in completions]


def token_length(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


def ids_and_completions(completions, completion_ids, **kwargs):
    assert all(isinstance(ids, list) for ids in completion_ids)
    return [float(len(ids) == len(c[0]["content"])) for c, ids in zip(completions, completion_ids, strict=True)]


def everything_by_keywords(**kwargs):
    wanted = {
        "prompts",
        "completions",
        "completion_ids",
        "trainer_state",
        "log_extra",
        "log_metric",
        "solution",
        "level",
    }
    assert wanted <= kwargs.keys()
    return [float(level) for level in kwargs["level"]]


def curriculum(completions, trainer_state, **kwargs):
    return [float(trainer_state.global_step) / trainer_state.max_steps] * len(completions)


def state_in_keywords(completions, **kwargs):
    return [float(kwargs["trainer_state"].global_step)] * len(completions)


def state_of_transformers(completions, trainer_state, **kwargs):
    return [float(trainer_state.epoch or 0) + len(trainer_state.log_history)] * len(completions)


def logs_extra(completions, solution, log_extra=None, **kwargs):
    if log_extra:
        log_extra("golden", list(solution))
        log_extra("length", np.array([len(c[0]["content"]) for c in completions]))
    return [1.0] * len(completions)


def logs_metric(completions, log_metric=None, **kwargs):
    values = [len(c[0]["content"]) for c in completions]
    if log_metric:
        log_metric("mean_length", np.mean(values))
    return [1.0] * len(values)


def masks_some(completions, topic, **kwargs):
    return [1.0 if "7" in c[0]["content"] else None for c, t in zip(completions, topic, strict=True) if t == "sums"]


def masks_all(completions, **kwargs):
    return [None] * len(completions)


def array(completions, **kwargs):
    return np.array([len(c) for c in completions], dtype=np.float32)


def array_of_objects(completions, **kwargs):
    return np.array([1.0, None], dtype=object)


def tensor(completions, **kwargs):
    return torch.tensor([1.0, 0.5])


def tensor_with_gradient(completions, **kwargs):
    return torch.ones(len(completions), requires_grad=True) * 2


def half_tensor(completions, **kwargs):
    return torch.tensor([1.0, 0.5], dtype=torch.bfloat16)


def list_of_tensors(completions, **kwargs):
    return [torch.tensor(1.0), torch.tensor(0.5)]


def list_of_scalars(completions, **kwargs):
    return [np.float32(0.5), np.int64(2)]


def generator(completions, **kwargs):
    return (float("7" in c[0]["content"]) for c in completions)


def generator_function(completions, **kwargs):
    for completion in completions:
        yield float("7" in completion[0]["content"])


def a_tuple(completions, **kwargs):
    return tuple(0.25 for _ in completions)


def a_map(completions, **kwargs):
    return map(float, map(len, completions))


def truths(completions, **kwargs):
    return ["7" in c[0]["content"] for c in completions]


def whole_numbers(completions, **kwargs):
    return [1 if "7" in c[0]["content"] else -1 for c in completions]


async def asynchronous(completions, **kwargs):
    await asyncio.sleep(0)
    return [0.5] * len(completions)


async def asynchronous_array(prompts, completions, solution, **kwargs):
    await asyncio.gather(*(asyncio.sleep(0) for _ in completions))
    return np.array([1.0, 2.0])


class Scaled:
    __name__ = "scaled_reward"

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, completions, **kwargs):
        return [self.scale * len(c) for c in completions]


class AsyncScaled:
    async def __call__(self, completions, level, **kwargs):
        await asyncio.sleep(0)
        return [float(value) for value in level]


def weighted(weight, completions, **kwargs):
    return [weight] * len(completions)


def prints(prompts, completions, answer, **kwargs):
    print("-" * 20, f"Question:\n{prompts[0][-1]['content']}", f"\nAnswer:\n{answer[0]}")
    return [0.0] * len(completions)


# ------------------------------------------------------------------ plain prompts: completions are texts


def unique_letters(completions, **kwargs):
    return [float(len(set(completion))) for completion in completions]


def texts_and_prompts(prompts, completions, **kwargs):
    assert prompts == [QUESTION] * 2
    return [float(len(p + c)) for p, c in zip(prompts, completions, strict=True)]


def ground_truth(completions, ground_truth, **kwargs):
    matches = [re.search(r"<answer>(.*?)</answer>", completion) for completion in completions]
    contents = [match.group(1) if match else "" for match in matches]
    return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth, strict=True)]


def stripped(completions, **kwargs):
    return [float(c.strip().endswith("</answer>")) for c in completions]


LENGTHS = [float(len(reply)) for reply in REPLIES]
FUNCTIONS = {
    "content_length": (content_length, CHAT, LENGTHS),
    "by_column": (by_column, CHAT, [1.0, 0.0]),
    "positional_names": (positional_names, CHAT, [1.0, 1.0]),
    "answer_column": (answer_column, CHAT, [2.0, 0.0]),
    "strict_format": (strict_format, CHAT, [0.5, 0.0]),
    "xml_count": (xml_count, CHAT, [1.0, 0.0]),
    "token_length": (token_length, CHAT, LENGTHS),
    "ids_and_completions": (ids_and_completions, CHAT, [1.0, 1.0]),
    "everything_by_keywords": (everything_by_keywords, CHAT, [3.0, 3.0]),
    "curriculum": (curriculum, CHAT, [0.3, 0.3]),
    "state_in_keywords": (state_in_keywords, CHAT, [3.0, 3.0]),
    "state_of_transformers": (state_of_transformers, CHAT, [0.0, 0.0]),
    "logs_extra": (logs_extra, CHAT, [1.0, 1.0]),
    "logs_metric": (logs_metric, CHAT, [1.0, 1.0]),
    "masks_some": (masks_some, CHAT, [1.0, None]),
    "masks_all": (masks_all, CHAT, [None, None]),
    "array": (array, CHAT, [1.0, 1.0]),
    "array_of_objects": (array_of_objects, CHAT, [1.0, None]),
    "tensor": (tensor, CHAT, [1.0, 0.5]),
    "tensor_with_gradient": (tensor_with_gradient, CHAT, [2.0, 2.0]),
    "half_tensor": (half_tensor, CHAT, [1.0, 0.5]),
    "list_of_tensors": (list_of_tensors, CHAT, [1.0, 0.5]),
    "list_of_scalars": (list_of_scalars, CHAT, [0.5, 2.0]),
    "generator": (generator, CHAT, [1.0, 0.0]),
    "generator_function": (generator_function, CHAT, [1.0, 0.0]),
    "a_tuple": (a_tuple, CHAT, [0.25, 0.25]),
    "a_map": (a_map, CHAT, [1.0, 1.0]),
    "truths": (truths, CHAT, [1.0, 0.0]),
    "whole_numbers": (whole_numbers, CHAT, [1.0, -1.0]),
    "asynchronous": (asynchronous, CHAT, [0.5, 0.5]),
    "asynchronous_array": (asynchronous_array, CHAT, [1.0, 2.0]),
    "an object": (Scaled(3.0), CHAT, [3.0, 3.0]),
    "an async object": (AsyncScaled(), CHAT, [3.0, 3.0]),
    "a partial": (functools.partial(weighted, 0.75), CHAT, [0.75, 0.75]),
    "a lambda": (lambda completions, **kwargs: [1.0, 2.0], CHAT, [1.0, 2.0]),
    "prints": (prints, CHAT, [0.0, 0.0]),
    "unique_letters": (unique_letters, PLAIN, [float(len(set(reply))) for reply in REPLIES]),
    "texts_and_prompts": (texts_and_prompts, PLAIN, [len(QUESTION) + length for length in LENGTHS]),
    "ground_truth": (ground_truth, PLAIN, [1.0, 0.0]),
    "stripped": (stripped, PLAIN, [1.0, 0.0]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_run_unchanged(name):
    function, task, expected = FUNCTIONS[name]
    rewards = score(function, task, state=TrainerState(3, 10))
    assert rewards == pytest.approx(expected) if None not in expected else rewards == expected


def test_there_are_forty():
    assert len(FUNCTIONS) >= 40


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda r: r.accuracy_reward, [1.0, 0.0]),
        (lambda r: r.reasoning_accuracy_reward, [1.0, 0.0]),
        (lambda r: r.think_format_reward, [1.0, 0.0]),
        (lambda r: r.get_cosine_scaled_reward(max_len=100), "correct is above 0.5, wrong below -0.5"),
        (lambda r: r.get_repetition_penalty_reward(ngram_size=2), [0.0, 0.0]),
        (lambda r: r.get_soft_overlong_punishment(max_completion_len=40, soft_punish_cache=10), [-0.9, 0.0]),
    ],
    ids=["accuracy", "reasoning", "format", "cosine", "repetition", "overlong"],
)
def test_the_functions_that_trl_brings(make, expected):
    rewards = pytest.importorskip("trl.rewards")
    replies = ("<think>sum</think> $\\boxed{7}$ " + "." * 8, "It is $8$.")
    found = score(make(rewards), replies=replies)
    if isinstance(expected, str):
        assert found[0] >= 0.5 and found[1] <= -0.5
    else:
        assert found == pytest.approx(expected)


def test_what_functions_log():
    for function in (logs_extra, logs_metric):
        found = trajectories(*REPLIES)
        rubric = Rubric([function])
        for _ in range(2):  # scoring again changes nothing
            asyncio.run(rubric.score(CHAT, found))
        if function is logs_metric:
            assert [t.metrics for t in found] == [{"mean_length": sum(LENGTHS) / 2}] * 2
            continue
        record = json.loads(json.dumps(record_sample(Group(CHAT, found), found[0])))
        assert record["extra"] == {"golden": "7", "length": str(len(REPLIES[0]))}


def test_a_generator_runs_in_the_thread_of_its_function():
    def where(completions, **kwargs):
        for _ in completions:
            yield float(threading.current_thread() is threading.main_thread())

    assert score(where) == [0.0, 0.0]


def test_the_answer_is_the_solution_where_no_column_is_called_so():
    task = Task("t", CHAT.prompt, "7")
    assert score(by_column, task) == [1.0, 0.0]
    assert score(by_column, Task("t", CHAT.prompt, "7", {"solution": "eight"})) == [0.0, 1.0]


@pytest.mark.parametrize("columns", [{"seconds": 1}, {"self": 1}, {"function": 1, "task": 2, "num": 3}])
def test_any_name_of_a_column_can_be_used(columns):
    task = Task("t", CHAT.prompt, "7", columns)
    assert score(lambda **kwargs: [float(kwargs[name][0]) for name in (next(iter(columns)),) * 2], task) == [1.0, 1.0]


def scalar(completions, **kwargs):
    return 1.0


def nothing(completions, **kwargs):
    pass


def short(completions, **kwargs):
    return [1.0]


def nested(completions, **kwargs):
    return [[1.0] for _ in completions]


def column(completions, **kwargs):
    return np.ones((len(completions), 1))


def objects(completions, **kwargs):
    return {"a": 1.0, "b": 2.0}


def texts(completions, **kwargs):
    return ["1.0" for _ in completions]


def one_text(completions, **kwargs):
    return "1.0"


def zero_dimensions(completions, **kwargs):
    return torch.tensor(1.0)


def unknown_column(completions, gold):
    return [1.0] * len(completions)


def no_numbers(completions, **kwargs):
    return [math.nan, math.inf]


def raises_late(completions, **kwargs):
    yield 1.0
    raise KeyError("x")


@pytest.mark.parametrize(
    ("function", "task", "said"),
    [
        (scalar, CHAT, "it gave 1.0; return a list with one number, or None, for each of the 2 completions"),
        (zero_dimensions, CHAT, "it gave 1.0; return a list"),
        (nothing, CHAT, "it gave nothing; return a list"),
        (short, CHAT, "it gave 1 values for 2 completions; return one for each"),
        (nested, CHAT, "it returned [1.0], which is not a finite number but a list; return one number for each"),
        (column, CHAT, "it returned [1.0], which is not a finite number but a list; return one number for each"),
        (objects, CHAT, "it gave {'a': 1.0, 'b': 2.0}; return a list"),
        (texts, CHAT, "it returned '1.0', which is not a finite number but a text; return float('1.0')"),
        (one_text, CHAT, "it gave '1.0'; return a list"),
        (no_numbers, CHAT, "it returned nan, which is not a finite number"),
        (raises_late, CHAT, "it raised KeyError: 'x'"),
        (unknown_column, CHAT, "'gold' (the columns of the task are answer, level, solution, topic)"),
        (stripped, CHAT, "(the prompts are lists of messages, so completions are such lists, as with TRL; read "),
        (content_length, PLAIN, "(the prompts are texts, so completions are texts, as with TRL; read them as texts"),
    ],
)
def test_what_cannot_be_used_is_said_with_the_mend(function, task, said):
    with pytest.raises(UserError) as caught:
        score(function, task)
    assert f"reward {function.__name__!r} failed for all of the last 2 completions; for task {task.id!r} " in str(
        caught.value
    )
    assert said in str(caught.value)


def test_functions_in_a_recipe_need_no_decorator(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(
        "def seven(completions, **kwargs):\n"
        "    return [float('7' in c[0]['content']) for c in completions]\n"
        "def ours(task, trajectory):\n"
        "    return 0.5\n"
        "def scaled(scale: float):\n"
        "    return lambda completions, **kwargs: [scale] * len(completions)\n"
        "def wrong(prompt): ...\n"
        "LIMIT = 3\n"
    )
    (tmp_path / "broken.py").write_text("\n1 / 0\n")
    names = ["rewards.py:seven", ["rewards.py:ours", 2.0], {"name": "rewards.py:scaled", "scale": 0.25}]
    rubric, found = build_rubric([*names, "trl.rewards:think_format_reward"]), trajectories(*REPLIES)
    asyncio.run(rubric.score(CHAT, found))
    assert found[0].rewards == {"seven": 1.0, "ours": 0.5, "scaled": 0.25, "think_format_reward": 1.0}
    for entry, said in (
        ("rewards.py:sevn", "reward 'rewards.py:sevn': rewards.py has no 'sevn'; did you mean 'seven'?"),
        ("reward.py:seven", "reward reward.py: no such file; did you mean 'rewards.py'?"),
        ("broken.py:seven", "reward broken.py:2: ZeroDivisionError: division by zero"),
        ("rewards.py:wrong", "reward 'rewards.py:wrong' takes (prompt); expected (task, trajectory), (prompts, "),
        ("rewards.py:LIMIT", "reward 'rewards.py:LIMIT' is 3, which cannot be called"),
        ("no_such_module:f", "reward no_such_module: ModuleNotFoundError"),
        ({"name": "rewards.py:seven", "scale": 1}, "reward 'seven' takes no options; 'scale' is given"),
        ({"name": "rewards.py:scaled"}, "'scaled' needs the option 'scale'"),
    ):
        with pytest.raises(UserError) as caught:
            build_rubric([entry])
        assert said in str(caught.value)
