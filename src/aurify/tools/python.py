"""Python in the sandbox, with state for each trajectory."""

from __future__ import annotations

from aurify.sandbox.sandbox import Limits, backend
from aurify.sandbox.session import PythonSession, SessionEnded
from aurify.sandbox.texts import strip_fence
from aurify.tools.tool import CallError


class Python:
    """An interpreter in the sandbox, which each trajectory has to itself, from its first call to its end. seconds: on
    the clock, for each call. cpu_seconds: for all calls of an interpreter. output_kb: kept of what a call prints."""

    def __init__(
        self, seconds: float = 10.0, cpu_seconds: float = 60.0, memory_mb: int = 512, output_kb: int = 32
    ) -> None:
        backend()  # a machine without a sandbox is told before the run
        self.session = PythonSession(seconds, Limits(cpu_seconds, memory_mb, output_kb=output_kb))

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
