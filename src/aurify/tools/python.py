"""Python in the sandbox, with state for each trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from aurify.bounds import Checked, Ge, PositiveFloat, PositiveInt
from aurify.sandbox.sandbox import Limits, find_sandbox_backend
from aurify.sandbox.session import PythonSession, SessionEnded
from aurify.sandbox.texts import strip_test_fence
from aurify.tools.tool import CallError


@dataclass
class Python(Checked):
    """An interpreter in the sandbox, which each trajectory has to itself, from its first call to its end. seconds: on
    the clock, for each call. cpu_seconds: for all calls of an interpreter. output_kb: kept of what a call prints."""

    seconds: PositiveFloat = 10.0
    cpu_seconds: Annotated[float, Ge(1)] = 60.0
    memory_mb: Annotated[int, Ge(64)] = 512
    output_kb: PositiveInt = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        find_sandbox_backend()  # a machine without a sandbox is told before the run
        limits = Limits(self.cpu_seconds, self.memory_mb, output_kb=self.output_kb)
        self.session = PythonSession(self.seconds, limits)

    async def call(self, code: str) -> str:
        """Run Python code. Variables, imports and functions stay for the next call. The answer is what the code prints,
        and the value of its last line.

        Args:
            code: of Python, of one or more lines
        """
        try:
            return await self.session.run(strip_test_fence(code))
        except (SessionEnded, ValueError) as error:
            raise CallError(str(error)) from None

    def close(self) -> None:
        self.session.close()
