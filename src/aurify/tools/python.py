"""Python in the sandbox, with state for each trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from aurify.bounds import Checked, Ge, PositiveFloat, PositiveInt
from aurify.errors import UserError
from aurify.sandbox.sandbox import Limits, backend
from aurify.sandbox.session import PythonSession, SessionEnded
from aurify.sandbox.texts import strip_fence
from aurify.sandbox.view import has_module, interpreter
from aurify.tools.tool import CallError


@dataclass
class Python(Checked):
    """An interpreter in the sandbox, which each trajectory has to itself, from its first call to its end. seconds: on
    the clock, for each call. cpu_seconds: for all calls of an interpreter. output_kb: kept of what a call prints.
    ipython: its `%magics`, `!commands` and `name?` work too, if the interpreter below this environment has it."""

    seconds: PositiveFloat = 10.0
    cpu_seconds: Annotated[float, Ge(1)] = 60.0
    memory_mb: Annotated[int, Ge(64)] = 512
    output_kb: PositiveInt = 32
    ipython: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        backend()  # a machine without a sandbox is told before the run
        if self.ipython and not has_module("IPython"):
            raise UserError(
                f"tool 'python': ipython: {interpreter()}, which runs the code, has no IPython; "
                f"`{interpreter()} -m pip install ipython` installs it, or leave the option out"
            )
        limits = Limits(self.cpu_seconds, self.memory_mb, output_kb=self.output_kb)
        self.session = PythonSession(self.seconds, limits, self.ipython)

    async def call(self, code: str) -> str:
        """Run Python code. Variables, imports and functions stay for the next call. The answer is what the code prints,
        and the value of its last line.

        Args:
            code: of Python, of one or more lines
        """
        try:
            return await self.session.run(strip_fence(code))
        except (SessionEnded, ValueError) as error:
            raise CallError(str(error)) from None

    def close(self) -> None:
        self.session.close()
