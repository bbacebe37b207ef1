"""Classes for TRL's `environment_factory` run unchanged: beside TRL's own trainer they show, answer and earn the same
things."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tokenizers_in_code as made

from aurify.environments.player import Player
from aurify.environments.rollout import rollout
from aurify.environments.trl import IDLE, TRL
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.rewards.rubric import Rubric
from aurify.rewards.trl import TrainerState, build_trl_arguments
from aurify.samplers.scripted import ScriptedSampler
from aurify.types import SamplingParams, Task


class Counter:
    """As in TRL's own documentation: state, tools with docstrings, a reward of its own."""

    made = 0

    def __init__(self) -> None:
        Counter.made += 1
        self.total, self.target, self.threads = 0, 0, {threading.get_ident()}

    def reset(self, **columns: Any) -> str | None:
        self.columns = columns
        self.total, self.target = 0, columns["target"]
        self.threads.add(threading.get_ident())
        return f" The counter stands at 0, bring it to {self.target}."

    def add(self, number: int) -> str:
        """Add a number to the counter.

        Args:
            number: How much to add.
        """
        self.threads.add(threading.get_ident())
        if number < 0:
            raise ValueError("only up")
        self.total += number
        return f"total {self.total}"

    async def look(self) -> str:
        """Look at the counter."""
        return f"it shows {self.total}"

    @property
    def done(self) -> bool:
        raise AssertionError("a property is no tool, and is not evaluated")

    def _hidden(self) -> None:
        raise AssertionError

    def get_reward(self) -> float:
        return float(self.total == self.target)


def closeness(environments: Any, **columns: Any) -> list[float]:
    return [
        -abs(environment.total - target) for environment, target in zip(environments, columns["target"], strict=True)
    ]


def task(target: int = 5, **columns: Any) -> Task:
    return Task(f"t/{target}", [{"role": "user", "content": "Use the tools."}], None, {"target": target, **columns})


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


REPLIES = [
    [call("add", number=2) + "\n" + call("add", number=3), call("look"), "It is 5."],
    [call("add", number=-1), call("subtract", number=1), "I give up."],
]


def play(replies: Any, environment: Any, tokenizer: Any = None) -> Any:
    tokenizer = tokenizer or made.family("qwen3")
    sampler, params = ScriptedSampler(replies, tokenizer), SamplingParams(max_tokens=300)
    trajectory = asyncio.run(rollout(environment.task, environment, sampler, Renderer(tokenizer), params))
    return trajectory, [tokenizer.decode(prompt) for prompt in sampler.prompts]


def play_in_trl(tokenizer: Any, replies: list[list[str]], folder: Any) -> Any:
    """The same in TRL's trainer, whose model says what it is told: prompts, conversations and rewards."""
    from datasets import Dataset
    from transformers import Qwen3Config, Qwen3ForCausalLM

    trl = pytest.importorskip("trl", reason="trl is not installed: pip install 'aurify[bench]'")
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=8192,
    )  # fmt: skip
    arguments = trl.GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", max_completion_length=2000,
        per_device_train_batch_size=2, num_generations=2,
    )  # fmt: skip
    rows = [{"prompt": task().prompt, "target": 5}] * 2
    trainer = trl.GRPOTrainer(
        model=Qwen3ForCausalLM(config),
        args=arguments,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        reward_funcs=closeness,
        environment_factory=Counter,
    )
    said, prompts, judged = iter([reply for turn in zip(*replies, strict=True) for reply in turn]), [], []
    calculate = trainer._calculate_rewards

    def say(given: Any, *_: Any, **__: Any) -> Any:
        prompts.extend(map(tokenizer.decode, given))
        ids = [[*tokenizer.encode(next(said), add_special_tokens=False), tokenizer.eos_token_id] for _ in given]
        return ids, [[0.0] * len(one) for one in ids]

    def judge(inputs: Any, asked: Any, completions: Any, ids: Any) -> Any:
        judged.append((asked, completions, calculate(inputs, asked, completions, ids)))
        return judged[-1][2]

    trainer._generate_single_turn, trainer._calculate_rewards = say, judge
    trainer.model.train()
    trainer._generate_and_score_completions([dict(row) for row in rows])
    return prompts, *judged[0]


def name_calls(messages: Any) -> list[Any]:
    return [[call["function"] for call in message.get("tool_calls", ())] for message in messages]


def test_trl_and_we_show_answer_and_judge_the_same(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trl = pytest.importorskip("trl", reason="trl is not installed: pip install 'aurify[bench]'")
        tokenizer = made.family("qwen3")
        tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
        prompts, asked, completions, rewards = play_in_trl(tokenizer, REPLIES, tmp_path)
    ours, seen = [], []
    for replies in REPLIES:
        trajectory, shown = play(replies, TRL(task(), Counter), tokenizer)
        ours.append(trajectory)
        seen.append(shown)
    in_order = [shown for turn in zip(*seen, strict=True) for shown in turn]
    told = [prompt.replace(', "return": {"type": "string"}', "") for prompt in prompts]  # what TRL says of results
    assert in_order[:2] == told[:2] and in_order[::2] == told[::2], "up to what is said of calls that fail"
    assert "bring it to 5." in told[0]
    for trajectory, theirs in zip(ours, completions, strict=True):
        assert [message["role"] for message in trajectory.completion] == [message["role"] for message in theirs]
        assert trajectory.messages[:1] == asked[0]
    fine = [m["content"] for m in completions[0] if m["role"] == "tool"]
    assert [m["content"] for m in ours[0].completion if m["role"] == "tool"] == fine
    for trajectory, theirs in zip(ours, completions, strict=True):
        given = build_trl_arguments(closeness, task(), [trajectory], TrainerState())["completions"][0]
        assert name_calls(given) == name_calls(theirs)
    told = [m["content"] for m in ours[1].completion if m["role"] == "tool"]
    assert "only up" in told[0] and "no tool 'subtract'; the tools are: add, look" in told[1]
    rubric = Rubric([closeness])
    asyncio.run(rubric.score(task(), ours))
    found = [[t.rewards["closeness"], t.rewards["environment"]] for t in ours]
    assert found == rewards.tolist() == [[0.0, 1.0], [-5.0, 0.0]]
    assert [trajectory.reward for trajectory in ours] == [1.0, -5.0]


def test_an_instance_is_made_once_has_one_thread_and_is_lent_again_once_it_was_judged() -> None:
    class Mine(Counter):
        made = 0

    tokenizer = made.family("qwen3")
    sampler = ScriptedSampler(lambda prompt: call("add", number=5) if len(sampler.prompts) % 2 else "done", tokenizer)
    player = Player(partial(TRL, factory=Mine), sampler, Renderer(tokenizer))
    seen = []

    def look(environments: Any, completions: Any, prompts: Any, **columns: Any) -> list[float]:
        seen.append(list(environments))
        assert all("bring it to 5" in prompt[-1]["content"] for prompt in prompts)
        return [float(len(completion)) for completion in completions]

    async def step() -> list[Any]:
        played = await asyncio.gather(*(player.play(task(plain=1), SamplingParams(max_tokens=300)) for _ in range(3)))
        await Rubric([look]).score(task(), played)
        return played

    Mine.made = Counter.made = 0
    for _ in range(3):
        played = asyncio.run(step())
        assert [trajectory.environment for trajectory in played] == [None] * 3
        gc.collect()
    assert Counter.made == 3 == len(IDLE[Mine]), "a step of three needs three, and so does the next one"
    for environments in seen:
        assert len(set(map(id, environments))) == 3
    assert all(len(instance.threads) == 1 for instance in seen[0])
    assert len({thread for instance in seen[0] for thread in instance.threads}) == 3


def test_a_call_that_hangs_fails_its_trajectory_and_the_instance_plays_no_more() -> None:
    class Hangs(Counter):
        def add(self, number: int) -> str:
            """Hang."""
            time.sleep(1.0)
            return "late"

    tokenizer = made.family("qwen3")
    sampler = ScriptedSampler([call("add", number=1)], tokenizer)
    player = Player(partial(TRL, factory=Hangs, seconds=0.1), sampler, Renderer(tokenizer))

    async def attempt() -> None:
        assert await player.play(task(), SamplingParams(max_tokens=300)) is None

    asyncio.run(attempt())
    gc.collect()
    assert player.counts["failed_time_limit"] == 1 and "longer than 0.1 seconds" in player.last_reason
    assert not IDLE[Hangs]


def test_a_column_chooses_among_several_and_is_no_column_of_theirs() -> None:
    class Other(Counter):
        def reset(self, target: int) -> None:
            self.columns, self.total, self.target = {}, 0, target

    factories = {"one": Counter, "other": Other}
    trajectory, _ = play(["no"], TRL(task(environment="one"), factories))
    columns = trajectory.environment.shown_to_rewards.columns
    assert columns == {"prompt": task().prompt, "target": 5}
    trajectory, _ = play(["no"], TRL(task(environment="other"), factories))
    assert trajectory.messages[0]["content"] == "Use the tools.", "reset() gave None"
    assert type(trajectory.environment.shown_to_rewards) is Other
    with pytest.raises(UserError, match="task 't/5' has the column environment: 'third'; known: one, other"):
        TRL(task(environment="third"), factories)


def test_blocks_of_text_are_text_and_pictures_are_refused() -> None:
    class Blocks:
        def reset(self, blocks: Any) -> Any:
            return [{"type": "text", "text": " a"}, *blocks]

    trajectory, _ = play(["x"], TRL(task(blocks=[{"type": "text", "text": " b"}]), Blocks))
    assert trajectory.messages[0]["content"] == "Use the tools. a b" and trajectory.tools == []
    with pytest.raises(UserError, match=r"Numbers.reset\(\) gave 3; expected a text or None"):

        class Numbers:
            def reset(self, **columns: Any) -> int:
                return 3

        play(["x"], TRL(task(), Numbers))
    with pytest.raises(UserError, match="block of type 'image'; texts alone"):
        play(["x"], TRL(task(blocks=[{"type": "image", "image": 1}]), Blocks))


def test_what_cannot_be_played_is_said_with_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Strict:
        def reset(self, level: int, goal: int, seed: int = 0) -> None: ...

    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("class Counter:\n    def reset(self, **columns): ...\nLIMIT = 3\n")
    for factory, said in (
        ("mine.py:Conter", "environment 'trl' 'mine.py:Conter': mine.py has no 'Conter'; did you mean 'Counter'?"),
        ("mine.py:LIMIT", "factory is 3; expected file.py:Class"),
        ("my.py:Counter", "my.py: no such file"),
        ("Counter", "write file.py:name or module:name"),
        (dict, "dict has no method reset()"),
        (Strict, "Strict.reset(): missing a required argument: 'level'; the columns of task 't/5' are prompt, target"),
    ):
        with pytest.raises(UserError) as caught:
            play(["x"], TRL(task(), factory))
        assert said in str(caught.value)


def test_a_reward_of_environments_beside_another_environment_says_what_it_needs() -> None:
    trajectory, _ = play(["x"], TRL(task(), Counter))
    trajectory.environment = None
    with pytest.raises(UserError, match=r"'environments' \(environments are there beside"):
        asyncio.run(Rubric([closeness]).score(task(), [trajectory]))
