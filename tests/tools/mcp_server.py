"""A small MCP server for tests: python mcp_server.py stdio | http PORT."""

import os
import sys
import time

from mcp.server import MCPServer

server = MCPServer("numbers")
total = 0


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def count(by: int) -> int:
    """Count on; the server remembers."""
    global total
    total += by
    return total


@server.tool()
def fail() -> str:
    """Always fails."""
    raise ValueError("out of ink")


@server.tool()
def sleep(seconds: float) -> str:
    """Takes its time."""
    time.sleep(seconds)
    return "awake"


@server.tool()
def die() -> str:
    """Ends the server."""
    os._exit(1)


@server.tool()
def pid() -> int:
    """The number of the process."""
    return os.getpid()


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run("stdio")
    else:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[2]))
