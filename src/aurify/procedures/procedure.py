"""A procedure (SOP): when to use it, its steps in order, what to check. Read from Markdown or YAML.

    ---                                       name: refund
    name: refund                              when: A customer wants money back
    when: A customer wants money back         tools: [find_order]
    tools: [find_order]                       steps:
    ---                                         - {do: Look the order up, tool: find_order}
    ## Steps                                    - {do: Tell the sum, says: "refund of \\d+"}
    1. Look the order up [tool: find_order]
    2. Tell the sum [says: refund of \\d+]

`tool` (a call of it) and `says` (a regular expression that the reply matches) are how a step shows, so that a reward
can see it; steps may have neither. An `outcome` is such a sign for the end. Both kinds of file know the same keys; in
Markdown, lists may stand under headings of the same names, and everything else in the body is kept as notes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aurify.config import did_you_mean
from aurify.knowledge.reading.refusals import FRONT_MATTER

SUFFIXES = (".md", ".yaml", ".yml")
LISTS = ("triggers", "tools", "steps", "checks", "examples")
KEYS = ("name", "when", *LISTS, "outcome", "notes")
HEADING = re.compile(r"(#{1,6})\s+(.+?)\s*#*")
ITEM = re.compile(r"^(?:\d+[.)]|[-*+])\s+", re.MULTILINE)
SIGN = re.compile(r"\s*\[(tool|says):\s*(.+)\]\s*$")
MAX_BYTES = 200_000


@dataclass(frozen=True, slots=True)
class Sign:
    """How it shows that a step was done. One of both."""

    tool: str = ""
    says: str = ""

    def record(self) -> dict[str, str]:
        return {"tool": self.tool} if self.tool else {"says": self.says}


@dataclass(frozen=True, slots=True)
class Step:
    text: str
    sign: Sign | None = None


@dataclass(frozen=True, slots=True)
class Procedure:
    name: str
    when: str
    steps: tuple[Step, ...]
    triggers: tuple[str, ...] = ()  # further ways in which people ask for it
    tools: tuple[str, ...] = ()  # without which it cannot be followed
    checks: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    outcome: Sign | None = None
    notes: str = ""
    place: str = ""

    @property
    def asked_by(self) -> list[str]:
        """What a question is compared with."""
        return [f"{self.name.replace('-', ' ').replace('_', ' ')}: {self.when}", *self.triggers]

    def prompt(self) -> str:
        """As a model reads it. Patterns are left out: they judge a reply, and are not to be recited."""
        steps = [
            f"{number}. {step.text}" + (f" (tool: {step.sign.tool})" if step.sign and step.sign.tool else "")
            for number, step in enumerate(self.steps, 1)
        ]
        parts = [f"## Procedure: {self.name}", f"Use it when: {self.when}", "\n".join(["Steps:", *steps])]
        for title, entries in (("Before you finish, check", self.checks), ("Examples", self.examples)):
            if entries:
                parts.append("\n".join([f"{title}:", *(f"- {entry}" for entry in entries)]))
        return "\n\n".join([*parts, self.notes] if self.notes else parts)

    def record(self) -> dict[str, Any]:
        """For a task's column `procedure`, by which the reward of that name judges."""
        signs = [step.sign.record() for step in self.steps if step.sign]
        return {"name": self.name, "signs": signs + ([self.outcome.record()] if self.outcome else [])}


def read_procedure(path: Path) -> tuple[Procedure | None, list[str]]:
    """The procedure in a file, and everything that is wrong with it. None if it cannot be used."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None, [f"it has more than {MAX_BYTES:,} bytes; a procedure is a page or two"]
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        return None, [f"it cannot be read as UTF-8 text ({error})"]
    values, problems = values_of_markdown(text) if path.suffix == ".md" else values_of_yaml(text)
    procedure = built(values, str(path), problems)
    return (None if problems else procedure), problems


def values_of_yaml(text: str) -> tuple[dict[str, Any], list[str]]:
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return {}, [f"it is no YAML ({' '.join(str(error).split())})"]
    if not isinstance(values, dict):
        return {}, [f"it holds a {type(values).__name__}; expected keys such as name, when and steps"]
    return {str(key): value for key, value in values.items()}, []


def values_of_markdown(text: str) -> tuple[dict[str, Any], list[str]]:
    front = FRONT_MATTER.match(text)
    values, problems = values_of_yaml(front[1]) if front and front[1] else ({}, [])
    body = text[front.end() :] if front else text
    notes, titled = [], False
    for marks, heading, content in sections(body):
        key = {"when to use": "when", "when to use it": "when"}.get(heading.lower(), heading.lower())
        if key in (*LISTS, "when"):
            if key in values:
                problems.append(f"{key!r} stands in its head and under a heading; keep one of them")
            values[key] = " ".join(content.split()) if key == "when" else items(content)
        elif marks == "#" and not titled:
            titled = True
            values.setdefault("name", re.sub(r"\W+", "-", heading.lower()).strip("-"))
            notes.append(content)
        else:
            notes.append(f"{marks} {heading}\n\n{content}".strip())
    values["notes"] = "\n\n".join(filter(None, [str(values.get("notes") or ""), *notes]))
    return values, problems


def sections(body: str) -> list[tuple[str, str, str]]:
    """(marks, heading, content) of each; what stands above the first heading has neither. What is fenced is code."""
    found: list[tuple[str, str, list[str]]] = [("", "", [])]
    fenced = False
    for line in body.splitlines():
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        if not fenced and (heading := HEADING.fullmatch(line.rstrip())):
            found.append((heading[1], heading[2], []))
        else:
            found[-1][2].append(line)
    return [(marks, heading, "\n".join(lines).strip()) for marks, heading, lines in found]


def items(content: str) -> list[str]:
    """Of a list, each with the lines that belong to it; paragraphs, where there is no list."""
    parts = ITEM.split(content)
    if len(parts) == 1:
        return [part.strip() for part in re.split(r"\n\s*\n", content) if part.strip()]
    return [part.strip() for part in ([parts[0]] if parts[0].strip() else []) + parts[1:]]


def built(values: Mapping[str, Any], place: str, problems: list[str]) -> Procedure:
    """Appends to problems."""
    for key in values:
        if key not in KEYS:
            problems.append(f"unknown key {key!r}{did_you_mean(key, KEYS)}")
    texts = {key: text_of(values.get(key), key, problems) for key in ("name", "when", "notes")}
    for key in ("name", "when"):
        if not texts[key] and not problems:
            problems.append(f"it has no {key!r}")
    if texts["name"] and not re.fullmatch(r"[\w.-]+", texts["name"]):
        problems.append(f"its name is {texts['name']!r}; use letters, digits, '-', '_' and '.'")
    lists = {key: list_of(values.get(key), key, problems) for key in LISTS}
    steps = tuple(step_of(entry, number, problems) for number, entry in enumerate(lists.pop("steps"), 1))
    if not steps and not problems:
        problems.append("it has no steps; write them as a list under 'steps:', or under the heading '## Steps'")
    plain = {key: tuple(text_of(entry, key, problems) for entry in entries) for key, entries in lists.items()}
    outcome = values.get("outcome")
    sign = None if outcome is None else sign_of(outcome, "outcome", problems)
    signs = [*(step.sign for step in steps), sign]
    for name in dict.fromkeys(sign.tool for sign in signs if sign and sign.tool):
        if name not in plain["tools"]:
            problems.append(f"the tool {name!r} of a step is missing in its tools{did_you_mean(name, plain['tools'])}")
    return Procedure(
        texts["name"],
        texts["when"],
        steps,
        triggers=plain["triggers"],
        tools=plain["tools"],
        checks=plain["checks"],
        examples=plain["examples"],
        outcome=sign,
        notes=texts["notes"],
        place=place,
    )


def text_of(value: Any, key: str, problems: list[str]) -> str:
    if value is None or isinstance(value, str | int | float):
        return "" if value is None else str(value).strip()
    problems.append(f"{key!r} holds {str(value)[:60]!r}; expected text")
    return ""


def list_of(value: Any, key: str, problems: list[str]) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, list):
        return value
    problems.append(f"{key!r} is {str(value)[:60]!r}; expected a list")
    return []


def step_of(entry: Any, number: int, problems: list[str]) -> Step:
    place = f"step {number}"
    if isinstance(entry, Mapping):
        sign = {key: value for key, value in entry.items() if key != "do"}
        text = text_of(entry.get("do"), place, problems)
    else:
        text, sign = text_of(entry, place, problems), {}
        if found := SIGN.search(text):
            text, sign = text[: found.start()], {found[1]: found[2]}
    if not text:
        problems.append(f"{place} does not say what to do")
    return Step(text, sign_of(sign, place, problems) if sign else None)


def sign_of(value: Any, place: str, problems: list[str]) -> Sign | None:
    if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in ("tool", "says"):
        problems.append(f"{place} shows by {value!r}; expected {{tool: NAME}} or {{says: REGULAR EXPRESSION}}")
        return None
    [(kind, content)] = value.items()
    try:
        re.compile(str(content))
    except re.error as error:
        if kind == "says":
            problems.append(f"{place}: {content!r} is no regular expression ({error})")
    return Sign(**{kind: str(content)})
