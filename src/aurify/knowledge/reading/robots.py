"""What robots.txt allows (RFC 9309): the group that names the crawler, else the one for all; of its rules the longest
that matches, and where two are equally long, the one that allows."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_CHARS = 500_000  # more than this a crawler need not read
MAX_DELAY = 60.0  # seconds; what asks for more is taken as this


@dataclass(frozen=True)
class Robots:
    rules: tuple[tuple[str, bool], ...] = ()  # (pattern of a path, whether it allows)
    delay: float = 0.0  # seconds between two requests

    def allows(self, path: str) -> bool:
        matching = [(len(pattern), allowed) for pattern, allowed in self.rules if matches(pattern, path)]
        return max(matching)[1] if matching else True


ALL_FORBIDDEN = Robots((("/", False),))


def parse_robots(text: str, agent: str) -> Robots:
    groups: dict[str, list[tuple[str, str]]] = {}  # agent -> its lines
    agents: list[str] = []
    reading_agents = False
    for line in text[:MAX_CHARS].splitlines():
        key, _, value = line.partition("#")[0].partition(":")
        key, value = key.strip().lower(), value.strip()
        if key == "user-agent":
            agents = [*agents, value.lower()] if reading_agents else [value.lower()]
            reading_agents = True
            groups.setdefault(value.lower(), [])
        elif key in ("allow", "disallow", "crawl-delay"):
            reading_agents = False
            for name in agents:
                groups[name].append((key, value))
    lines = groups.get(agent.lower(), groups.get("*", []))
    rules = tuple((value, key == "allow") for key, value in lines if value and key != "crawl-delay")
    return Robots(rules, delay=max((to_seconds(value) for key, value in lines if key == "crawl-delay"), default=0.0))


def to_seconds(value: str) -> float:
    return min(float(value), MAX_DELAY) if re.fullmatch(r"\d{1,6}(\.\d{1,6})?", value) else 0.0


def matches(pattern: str, path: str) -> bool:
    """`*` is any text, `$` at the end the end of the path. Piece by piece, so that no pattern takes long."""
    ends = pattern.endswith("$")
    first, *pieces = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    at = len(first)
    if not pieces:
        return not ends or at == len(path)
    for piece in pieces[:-1] if ends else pieces:
        found = path.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return not ends or (len(path) - at >= len(pieces[-1]) and path.endswith(pieces[-1]))
