"""The tools of one trajectory: made for it, called by name, closed with it.

Whatever goes wrong in a call becomes an answer that the model reads: an unknown tool, arguments that do not fit, an
exception, a time limit. So a policy can learn to call better, and no tool can end a trajectory."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from aurify import registry
from aurify.errors import UserError
from aurify.signatures import convert_call_options, split_options
from aurify.threads import TimeLimit, call_in_thread, settle_call, wait_with_limit
from aurify.tools.tool import CallError, Tool, make_tool, write_tool_result

Open = Callable[[], Sequence[Tool]]  # makes the tools of a trajectory
CALL_SECONDS = 30.0


class Toolbox:
    """seconds: for each call. A call that takes longer is answered with an error."""

    def __init__(self, tools: Sequence[Tool], seconds: float = CALL_SECONDS) -> None:
        self.tools = {tool.name: tool for tool in tools}
        self.seconds = seconds
        self.counts: Counter[str] = Counter()
        if len(self.tools) < len(tools):
            twice = sorted(name for name, num in Counter(tool.name for tool in tools).items() if num > 1)
            raise UserError(f"tools: {', '.join(twice)} is there twice; give each tool a name of its own")

    @property
    def schemas(self) -> list[dict[str, Any]]:
        return [tool.schema for tool in self.tools.values()]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The answer for the model. Never raises, whatever the tool does."""
        self.counts["calls"] += 1
        tool = self.tools.get(name)
        if tool is None:
            return self.fail("unknown", f"there is no tool {name!r}; the tools are: {', '.join(self.tools)}")
        try:
            if tool.blocking:
                result = await call_in_thread(partial(tool.function, arguments), self.seconds, f"{name}()")
            else:
                result = await wait_with_limit(tool.function(arguments), self.seconds, f"{name}()")
            return write_tool_result(result)
        except CallError as error:
            return self.fail("arguments", f"{name}: {error}")
        except TimeLimit as error:
            return self.fail("time_limit", str(error))
        except Exception as error:
            return self.fail("raised", f"{name}: {type(error).__name__}: {error}")

    def fail(self, kind: str, text: str) -> str:
        """An answer to a call that was not made, or failed."""
        self.counts[f"calls_{kind}"] += 1
        self.counts["calls_failed"] += 1
        return f"Error: {text}"

    async def close(self) -> None:
        """Closes all, also after one that failed to; the first failure is raised."""
        closing = [tool.close for tool in self.tools.values() if tool.close is not None]
        failures = []
        for close in dict.fromkeys(closing):  # several tools may share a connection
            try:
                await settle_call(close)
            except (Exception, asyncio.CancelledError) as error:
                failures.append(error)
        if failures:
            raise failures[0]


def build_tools(entries: Any) -> Open:
    """From a recipe: a list of registered names, or {name: ..., options of it}. Options are checked here, once."""
    if isinstance(entries, (str, Mapping)) or not isinstance(entries, Sequence):
        raise UserError(f"tools: {entries!r}; expected a list of names, such as [calculator, python]")
    sources = [build_tool_source(entry) for entry in entries]
    opened = [tool for source in sources for tool in source()]
    Toolbox(opened)  # names that clash are told before anything runs
    return lambda: [tool for source in sources for tool in source()]


def build_tool_source(entry: Any) -> Open:
    name, options = split_options("tool", entry)
    found = registry.get_entry("tool", name)
    if not inspect.isclass(found):
        if options:
            raise UserError(f"tool {name!r} is a function and has no option {next(iter(options))!r}")
        tool = make_tool(found, name=name)
        return lambda: [tool]
    make = partial(found, **convert_call_options(f"tool {name!r}", found, options))
    if hasattr(found, "tools"):  # several: the object says for each trajectory which
        source: Any = make()
        return lambda: list(source.tools())
    if getattr(found, "shared", False):
        only = make()
        return lambda: [open_tool_instance(name, only)]
    return lambda: [open_tool_instance(name, make())]


def open_tool_instance(name: str, instance: Any) -> Tool:
    return make_tool(instance.call, name=name, close=getattr(instance, "close", None))
