"""Issue 16, MCP: a real server over stdio and HTTP; one that dies, hangs or is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aurify.errors import UserError
from aurify.tools.toolbox import Toolbox, build_tools

pytest.importorskip("mcp", reason="MCP servers need the extra mcp")
SERVER = str(Path(__file__).with_name("mcp_server.py"))
STDIO = {"name": "mcp", "command": [sys.executable, SERVER, "stdio"]}


def calls(open_tools, *wanted, seconds=20.0):
    async def all_of():
        box = Toolbox(open_tools(), seconds)
        try:
            return [await box.call(name, arguments) for name, arguments in wanted]
        finally:
            await box.close()

    return asyncio.run(all_of())


@pytest.fixture(scope="module")
def stdio():
    return build_tools([STDIO])


@pytest.fixture(scope="module")
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, SERVER, "http", str(port)], stderr=subprocess.DEVNULL)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/mcp"
    process.kill()
    process.wait()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_tools_are_discovered_and_called(stdio):
    schemas = {s["function"]["name"]: s["function"] for s in Toolbox(stdio()).schemas}
    assert schemas["add"]["description"] == "Add two numbers."
    assert set(schemas["add"]["parameters"]["properties"]) == {"a", "b"}
    texts = calls(stdio, ("add", {"a": 2, "b": 3}), ("fail", {}), ("add", {"a": "x", "b": 3}))
    assert texts[0] == "5" and "Error executing tool fail" in texts[1] and texts[1].startswith("Error: ")
    assert texts[2].startswith("Error: ")


def test_over_http(address):
    open_tools = build_tools([{"name": "mcp", "url": address, "allow": ["add"]}])
    assert [tool.name for tool in open_tools()] == ["add"]
    assert calls(open_tools, ("add", {"a": 2, "b": 3})) == ["5"]


def test_a_session_for_each_trajectory(stdio):
    own = build_tools([STDIO | {"one_session": False, "allow": ["count"]}])
    assert calls(own, ("count", {"by": 2}), ("count", {"by": 2})) == ["2", "4"]
    assert calls(own, ("count", {"by": 2})) == ["2"]
    assert calls(stdio, ("count", {"by": 2})) == ["2"] and calls(stdio, ("count", {"by": 2})) == ["4"]  # shared


def test_a_server_that_dies_is_an_answer_and_starts_again(stdio):
    texts = calls(stdio, ("die", {}), ("add", {"a": 1, "b": 1}))
    assert texts[0].startswith("Error: ") and "ended during the call" in texts[0]
    assert texts[1] == "2"


def test_a_call_that_takes_too_long_is_an_answer(stdio):
    begun = time.monotonic()
    texts = calls(stdio, ("sleep", {"seconds": 5}), seconds=0.5)
    assert "took longer than 0.5 seconds" in texts[0] and time.monotonic() - begun < 4


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"name": "mcp"}, "either command"),
        (STDIO | {"allow": ["ad"]}, "has no tool 'ad'; its tools are: add, count"),
        ({"name": "mcp", "command": [sys.executable, "-c", "raise SystemExit('no licence')"]}, "no licence"),
        ({"name": "mcp", "command": ["/no/such/server"]}, "does not answer"),
        ({"name": "mcp", "url": "http://127.0.0.1:9/mcp"}, "does not answer"),
    ],
)
def test_what_cannot_work_is_told_at_the_start(entry, told):
    with pytest.raises(UserError, match=told):
        build_tools([entry])


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends children on Linux alone")
def test_no_server_outlives_a_killed_run():
    program = (
        "import asyncio, sys, time\n"
        "from aurify.tools.toolbox import Toolbox, build_tools\n"
        f"box = Toolbox(build_tools([{STDIO!r}])())\n"
        "print(asyncio.run(box.call('pid', {})), flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=os.environ) as run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        assert is_alive(pid)
        run.send_signal(signal.SIGKILL)
    for _ in range(100):
        if not is_alive(pid):
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the server outlived the run")
