"""The answer in a reply, and the right answers of a task."""

from __future__ import annotations

from aurify.thoughts import final_answer
from aurify.types import Trajectory


def read_answer(trajectory: Trajectory) -> str | None:
    """What the policy wrote after its thoughts, its turns joined by newlines. None: the last thought never ends."""
    answers = [final_answer(message["content"]) for message in trajectory.replies]
    if answers and answers[-1] is None:
        return None
    return "\n".join(answer for answer in answers if answer is not None)
