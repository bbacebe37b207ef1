"""`sop:` of a task: each prompt gets the procedures that it asks for, and the reward `procedure` what to look for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from aurify.procedures.library import SOPLibrary
from aurify.procedures.procedure import Procedure
from aurify.tasks.taskset import TaskSet
from aurify.tools.schema import read_tool_schemas
from aurify.types import Message, Task


def with_procedures(taskset: TaskSet, library: SOPLibrary) -> TaskSet:
    """Ids stay as they are. The best procedure becomes the column `procedure`; where a task names one there already,
    that one counts, whatever was found."""

    def guide(task: Task) -> Task:
        tools = task.info.get("tools")
        asked = next((message["content"] for message in reversed(task.prompt) if message["role"] == "user"), "")
        names = None if tools is None else list(read_tool_schemas(tools))
        found = [match.procedure for match in library.find(asked, tools=names)]
        wanted = task.info.get("procedure")
        judged = library[wanted] if isinstance(wanted, str) else found[0] if found else None
        info = {**task.info, "procedure": judged.to_record()} if judged else task.info
        return replace(task, prompt=add_procedures_to_prompt(task.prompt, library, found), info=info)

    return replace(
        taskset,
        train=lambda seed: map(guide, taskset.train(seed)),
        heldout=[guide(task) for task in taskset.heldout],
    )


def add_procedures_to_prompt(
    prompt: Sequence[Message], library: SOPLibrary, found: Sequence[Procedure]
) -> list[Message]:
    """The procedures go to the end of the system message."""
    given = prompt[:1] if prompt and prompt[0]["role"] == "system" else []
    system = library.build_prompt(found, given[0]["content"] if given else "")
    return [{"role": "system", "content": system}, *prompt[len(given) :]] if system else list(prompt)
