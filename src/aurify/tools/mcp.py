"""Tools of an MCP server, over stdio or HTTP (extra `mcp`).

    tools: [{name: mcp, command: [python, server.py], allow: [search, fetch]}, {name: mcp, url: "http://127.0.0.1:8000/mcp"}]

The server is asked for its tools once. What goes wrong in a call is an answer that the model reads; a server that died
is started again at the next call. A server that is started here ends with this process, also when that is killed."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import logging
import shlex
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

from aurify.errors import UserError
from aurify.files import require
from aurify.threads import Room, TimeLimit
from aurify.tools.tool import CallError, Tool

# Linux ends a child with the thread that made it, if the child asks for that: prctl(PR_SET_PDEATHSIG, SIGKILL).
LAUNCHER = (
    "import ctypes, os, sys\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, 9)\n"
    "os.execvp(sys.argv[1], sys.argv[1:])\n"
)
START_SECONDS = 60.0


class MCP:
    """All tools of an MCP server. command: of a server that speaks over stdio. url: of one that speaks HTTP. allow:
    names of the tools to offer; None: all. one_session: all trajectories share a session; False: each has its own, for
    servers that keep state. env: variables for the server beside a few harmless ones. seconds: for each call."""

    def __init__(
        self,
        command: str | list[str] | None = None,
        url: str | None = None,
        allow: list[str] | None = None,
        one_session: bool = True,
        env: dict[str, str] | None = None,
        seconds: float = 30.0,
    ) -> None:
        if (command is None) == (url is None):
            raise UserError("tool 'mcp': give either command (of a server to start) or url (of one that runs)")
        require("mcp", "mcp", "to use MCP servers")
        logging.getLogger("mcp").setLevel(logging.ERROR)  # what matters reaches the model, or the person, as an error
        self.words = shlex.split(command) if isinstance(command, str) else list(command or ())
        self.url, self.env, self.seconds, self.one_session = url, env, seconds, one_session
        self.where = f"MCP server {url or shlex.join(self.words)!r}"
        self.shared = self._connect()
        found = {tool.name: tool for tool in self.shared.list_tools()}
        if unknown := [name for name in allow or () if name not in found]:
            raise UserError(f"{self.where} has no tool {unknown[0]!r}; its tools are: {', '.join(sorted(found))}")
        self.offered = [found[name] for name in (allow if allow is not None else found)]
        if not one_session:
            self.shared.close()

    def _connect(self) -> Connection:
        return Connection(self.where, self.words, self.url, self.env, self.seconds)

    def tools(self) -> list[Tool]:
        """Those of one trajectory."""
        connection = self.shared if self.one_session else self._connect()
        close = None if self.one_session else connection.close
        return [
            Tool(
                tool.name,
                tool.description or "",
                tool.input_schema,
                partial(connection.call, tool.name),
                close,
                blocking=False,
            )
            for tool in self.offered
        ]


class Connection:
    """A session with a server, opened at the first call. One task in a thread of its own opens and closes it: the
    library's contexts must be left by the task that entered them."""

    def __init__(
        self, where: str, words: Sequence[str], url: str | None, env: Mapping[str, str] | None, seconds: float
    ) -> None:
        self.where, self.words, self.url, self.env, self.seconds = where, words, url, env, seconds
        self.room: Room | None = None
        self.session: Any = None
        self.keeper: asyncio.Task[None] | None = None
        self.ended: asyncio.Event | None = None
        self.lock: asyncio.Lock | None = None
        self.stderr: Any = None

    def list_tools(self) -> list[Any]:
        async def listed() -> list[Any]:
            from mcp.types import PaginatedRequestParams

            session = await self._open()
            page = await session.list_tools()
            found = list(page.tools)
            while page.next_cursor:
                page = await session.list_tools(params=PaginatedRequestParams(cursor=page.next_cursor))
                found += page.tools
            return found

        async def ask() -> list[Any]:
            return await self._room().run(listed, START_SECONDS, f"{self.where}: listing its tools")

        try:
            return asyncio.run(ask())
        except (TimeLimit, ConnectionError) as error:
            last_words = self._last_words()
            self.close()
            raise UserError(f"{error}{last_words}") from None

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        async def called() -> Any:
            session = await self._open()
            try:
                return await session.call_tool(name, dict(arguments), read_timeout_seconds=self.seconds)
            except Exception as error:
                if not self._is_dead(error):
                    raise CallError(f"{type(error).__name__}: {error}") from None
                await self._shut()
                raise CallError(f"the server of {name} ended during the call; the next call starts it again") from None

        result = await self._room().run(called, None, name)
        text = read_mcp_result(result)
        if getattr(result, "is_error", False):
            raise CallError(text)
        return text

    def close(self) -> None:
        room, self.room = self.room, None
        if room is None:
            return
        atexit.unregister(self.close)
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._shut(), room.loop).result(5.0)
        room.leave()
        self._close_stderr()

    def _close_stderr(self) -> None:
        if self.stderr is not None:
            self.stderr.close()
            self.stderr = None

    def _room(self) -> Room:
        if self.room is None:
            self.room, self.lock = Room("aurify-mcp"), None
            atexit.register(self.close)
        return self.room

    # ------------------------------------------------------------------ in the room's event loop

    async def _open(self) -> Any:
        self.lock = self.lock or asyncio.Lock()
        async with self.lock:
            if self.session is None:
                ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self.ended = asyncio.Event()
                self.keeper = asyncio.create_task(self._keep(ready, self.ended))
                try:
                    await asyncio.wait_for(asyncio.shield(ready), START_SECONDS)
                except Exception as error:
                    await self._shut()
                    raise ConnectionError(f"{self.where} does not answer ({describe_mcp_error(error)})") from None
            return self.session

    async def _keep(self, ready: asyncio.Future[None], ended: asyncio.Event) -> None:
        from mcp import ClientSession

        try:
            async with self._streams() as (read, write), ClientSession(read, write) as session:
                await session.initialize()
                self.session = session
                ready.set_result(None)
                await ended.wait()
        except BaseException as error:
            if not ready.done():
                ready.set_exception(ConnectionError(describe_mcp_error(error)))
        finally:
            self.session = None

    @contextlib.asynccontextmanager
    async def _streams(self) -> AsyncIterator[tuple[Any, Any]]:
        if self.url is not None:
            from mcp.client.streamable_http import streamable_http_client

            async with streamable_http_client(self.url) as streams:
                yield streams[0], streams[1]
            return
        from mcp.client.stdio import StdioServerParameters, stdio_client

        self._close_stderr()
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  (the server writes into it)
        arguments = ["-c", LAUNCHER, *self.words]
        env = dict(self.env) if self.env is not None else None
        parameters = StdioServerParameters(command=sys.executable, args=arguments, env=env)
        async with stdio_client(parameters, self.stderr) as (read, write):
            yield read, write

    async def _shut(self) -> None:
        if self.ended is not None:
            self.ended.set()
        if self.keeper is not None:
            keeper, self.keeper = self.keeper, None
            done, _ = await asyncio.wait({keeper}, timeout=5.0)
            if not done:
                keeper.cancel()
        self.session = None

    def _is_dead(self, error: Exception) -> bool:
        words = str(error).lower()
        lost = isinstance(error, (ConnectionError, EOFError)) or type(error).__name__ in (
            "ClosedResourceError",
            "BrokenResourceError",
            "EndOfStream",
        )
        return lost or "connection closed" in words or self.keeper is None or self.keeper.done()

    def _last_words(self) -> str:
        """What a server wrote to stderr before it gave up."""
        if self.stderr is None:
            return ""
        self.stderr.seek(0)
        lines = [line for line in self.stderr.read()[-2000:].splitlines() if line.strip()]
        return f"; it wrote: {lines[-1]}" if lines else ""


def describe_mcp_error(error: BaseException) -> str:
    """The first error of a group says more than the group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def read_mcp_result(result: Any) -> str:
    """The text of a result; other parts are named, not shown: a text model cannot see them."""
    parts = []
    for block in result.content:
        if block.type == "text":
            parts.append(block.text)
        elif block.type == "resource" and getattr(block.resource, "text", None) is not None:
            parts.append(block.resource.text)
        else:
            parts.append(f"[{block.type}]")
    if not parts and (structured := getattr(result, "structured_content", None)) is not None:
        parts.append(json.dumps(structured, ensure_ascii=False))
    return "\n".join(parts)
