"""`sop:` of a task: each prompt gets the procedures that it asks for, and the reward `procedure` what to look for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from aurify.procedures.library import SOPLibrary
from aurify.procedures.procedure import Procedure
from aurify.tasks.taskset import TaskSet
from aurify.types import Message, Task


def with_procedures(taskset: TaskSet, library: SOPLibrary) -> TaskSet:
    """Ids stay as they are. The best procedure becomes the column `procedure`; where a task names one there already,
    that one counts, whatever was found."""

    def guided(task: Task) -> Task:
        tools = task.info.get("tools")
        names = None if tools is None else [tool.get("function", tool)["name"] for tool in tools]
        found = [match.procedure for match in library.find(question_of(task.prompt), tools=names)]
        wanted = task.info.get("procedure")
        judged = library[wanted] if isinstance(wanted, str) else found[0] if found else None
        info = {**task.info, "procedure": judged.record()} if judged else task.info
        return replace(task, prompt=instructed(task.prompt, library, found), info=info)

    return replace(
        taskset,
        train=lambda seed: map(guided, taskset.train(seed)),
        heldout=[guided(task) for task in taskset.heldout],
    )


def question_of(prompt: Sequence[Message]) -> str:
    """The last thing that the user said."""
    return next((message["content"] for message in reversed(prompt) if message["role"] == "user"), "")


def instructed(prompt: Sequence[Message], library: SOPLibrary, found: Sequence[Procedure]) -> list[Message]:
    """The prompt with the procedures at the end of its system message."""
    given = prompt[:1] if prompt and prompt[0]["role"] == "system" else []
    system = library.prompt_of(found, given[0]["content"] if given else "")
    return [{"role": "system", "content": system}, *prompt[len(given) :]] if system else list(prompt)
