"""Rewards of one's own. They judge one finished trajectory and return a number, or None where they do not apply.

    task: {name: largest_number, reward: [last_answer, {name: brevity, weight: 0.1, at_most: 4}]}

The first reward of the list is the one that held-out numbers average. A reward may be async, and TRL's reward functions
work as they are."""

from __future__ import annotations

from collections.abc import Callable

import aurify


@aurify.reward
def last_answer(task: aurify.Task, trajectory: aurify.Trajectory) -> float:
    """1 if the last thing that the model said is the answer, whatever it said before."""
    said = [message["content"] for message in trajectory.completion if message["role"] == "assistant"]
    return float(said[-1].strip() == task.answer)


@aurify.reward
def brevity(at_most: int = 16) -> Callable[[aurify.Task, aurify.Trajectory], float]:
    """A reward with options is a function that takes them and returns the reward: here -1 for too many tokens."""

    def judge(task: aurify.Task, trajectory: aurify.Trajectory) -> float:
        return -float(trajectory.num_policy_tokens > at_most)

    return judge
