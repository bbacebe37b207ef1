"""A procedure (SOP): when to use it, its steps in order, what to check. Read from Markdown or YAML.

    ---                                       name: refund
    name: refund                              when: A customer wants money back
    when: A customer wants money back         tools: [find_order]
    tools: [find_order]                       steps:
    ---                                         - {do: Look the order up, tool: find_order}
    ## Steps                                    - {do: Tell the sum, says: "refund of \\d+"}
    1. Look the order up [tool: find_order]
    2. Tell the sum [says: refund of \\d+]

`tool` (a call of it) and `says` (a regular expression that the reply matches) are the signs by which a reward sees that
a step was done; a step needs none. `outcome` is such a sign for the end. Both kinds of file know the same keys. In
Markdown, lists may stand under headings of the same names, and everything else in the body becomes notes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aurify.config import did_you_mean
from aurify.knowledge.reading.refusals import FRONT_MATTER

SUFFIXES = (".md", ".yaml", ".yml")
LISTS = ("triggers", "tools", "steps", "checks", "examples")
KEYS = ("name", "when", *LISTS, "outcome", "notes")
SIGNS = ("tool", "says")
HEADING = re.compile(r"(#{1,6})\s+(.+?)\s*#*")
ITEM = re.compile(r"^(?:\d+[.)]|[-*+])\s+", re.MULTILINE)
BRACKET = re.compile(r"\s*\[(\w+):\s*(.+)\]\s*$")  # at the end of a step
MAX_BYTES = 200_000
NEAR = 0.75  # from this likeness on, a heading or bracket is a misspelt key and not a text of its own
Sign = Mapping[str, str]  # how it shows that a step was done: {"tool": NAME} or {"says": PATTERN}


@dataclass(frozen=True, slots=True)
class ProcedureStep:
    text: str
    sign: Sign | None = None


@dataclass(frozen=True, slots=True)
class Procedure:
    name: str
    when: str
    steps: tuple[ProcedureStep, ...]
    triggers: tuple[str, ...] = ()  # further ways in which people ask for it
    tools: tuple[str, ...] = ()  # that its steps need
    checks: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    outcome: Sign | None = None
    notes: str = ""

    @property
    def asked_by(self) -> list[str]:
        """What a question is compared with."""
        return [f"{self.name.replace('-', ' ').replace('_', ' ')}: {self.when}", *self.triggers]

    def prompt(self) -> str:
        """As a model reads it. Patterns are left out: they judge a reply, and are not to be recited."""
        steps = [
            f"{number}. {step.text}" + (f" (tool: {step.sign['tool']})" if step.sign and "tool" in step.sign else "")
            for number, step in enumerate(self.steps, 1)
        ]
        parts = [f"## Procedure: {self.name}", f"Use it when: {self.when}", "\n".join(["Steps:", *steps])]
        for title, entries in (("Before you finish, check", self.checks), ("Examples", self.examples)):
            if entries:
                parts.append("\n".join([f"{title}:", *(f"- {entry}" for entry in entries)]))
        return "\n\n".join([*parts, self.notes] if self.notes else parts)

    def to_record(self) -> dict[str, Any]:
        """For a task's column `procedure`, by which the reward of that name judges."""
        signs = [*(step.sign for step in self.steps), self.outcome]
        return {"name": self.name, "signs": [dict(sign) for sign in signs if sign]}


def read_procedure(path: Path) -> tuple[Procedure | None, list[str]]:
    """The procedure in a file, and everything that is wrong with it. None if it cannot be used."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None, [f"it has more than {MAX_BYTES:,} bytes; a procedure is a page or two"]
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        return None, [f"it cannot be read as UTF-8 text ({error})"]
    problems: list[str] = []
    values = parse_markdown_procedure(text, problems) if path.suffix == ".md" else parse_yaml_procedure(text, problems)
    procedure = build_procedure(values, problems)
    return (None if problems else procedure), problems


# All functions below append what is wrong to `problems`.


def parse_yaml_procedure(text: str, problems: list[str]) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problems.append(f"it is no YAML ({' '.join(str(error).split())})")
        return {}
    if not isinstance(values, dict):
        problems.append(f"it holds a {type(values).__name__}; expected keys such as name, when and steps")
        return {}
    return {str(key): value for key, value in values.items()}


def parse_markdown_procedure(text: str, problems: list[str]) -> dict[str, Any]:
    front = FRONT_MATTER.match(text)
    values = parse_yaml_procedure(front[1], problems) if front and front[1] else {}
    notes, titled = [], False
    for marks, heading, content in split_procedure_sections(text[front.end() :] if front else text):
        key = {"when to use": "when", "when to use it": "when"}.get(heading.lower(), heading.lower())
        if key in (*LISTS, "when"):
            if key in values:
                problems.append(f"{key!r} stands in its head and under a heading; keep one of them")
            values[key] = " ".join(content.split()) if key == "when" else split_procedure_items(content)
        elif marks == "#" and not titled:
            titled = True
            values.setdefault("name", re.sub(r"\W+", "-", heading.lower()).strip("-"))
            notes.append(content)
        else:
            if near := find_near_procedure_key(key, (*LISTS, "when")):
                problems.append(f"heading {heading!r} is no key; did you mean {near!r}?")
            notes.append(f"{marks} {heading}\n\n{content}".strip())
    values["notes"] = "\n\n".join(filter(None, [str(values.get("notes") or ""), *notes]))
    return values


def find_near_procedure_key(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=NEAR)), None)


def split_procedure_sections(body: str) -> list[tuple[str, str, str]]:
    """(marks, heading, content) of each; what stands above the first heading has neither. Lines in fences are code."""
    found: list[tuple[str, str, list[str]]] = [("", "", [])]
    fenced = False
    for line in body.splitlines():
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        if not fenced and (heading := HEADING.fullmatch(line.rstrip())):
            found.append((heading[1], heading[2], []))
        else:
            found[-1][2].append(line)
    return [(marks, heading, "\n".join(lines).strip()) for marks, heading, lines in found]


def split_procedure_items(content: str) -> list[str]:
    """The items of a list, each with the lines that belong to it; paragraphs, where there is no list."""
    parts = ITEM.split(content)
    if len(parts) == 1:
        parts = re.split(r"\n\s*\n", content)
    return [part.strip() for part in parts if part.strip()]


def build_procedure(values: Mapping[str, Any], problems: list[str]) -> Procedure:
    for key in values:
        if key not in KEYS:
            problems.append(f"unknown key {key!r}{did_you_mean(key, KEYS)}")
    texts = {key: check_procedure_text(values.get(key), repr(key), problems) for key in ("name", "when", "notes")}
    for key in ("name", "when"):
        if not texts[key] and not problems:
            problems.append(f"it has no {key!r}")
    if texts["name"] and not re.fullmatch(r"[\w.-]+", texts["name"]):
        problems.append(f"its name is {texts['name']!r}; use letters, digits, '-', '_' and '.'")
    lists = {key: check_procedure_list(values.get(key), key, problems) for key in LISTS}
    steps = tuple(
        check_procedure_step(entry, f"step {number}", problems) for number, entry in enumerate(lists.pop("steps"), 1)
    )
    if not steps and not problems:
        problems.append("it has no steps; write them as a list under 'steps:', or under the heading '## Steps'")
    plain = {
        key: tuple(check_procedure_text(entry, repr(key), problems) for entry in entries)
        for key, entries in lists.items()
    }
    outcome = (
        check_procedure_sign(values["outcome"], "outcome", problems) if values.get("outcome") is not None else None
    )
    signs = [*(step.sign for step in steps), outcome]
    for name in dict.fromkeys(sign["tool"] for sign in signs if sign and "tool" in sign):
        if name not in plain["tools"]:
            problems.append(f"the tool {name!r} of a step is missing in its tools{did_you_mean(name, plain['tools'])}")
    rest: dict[str, Any] = {**texts, **plain}
    return Procedure(steps=steps, outcome=outcome, **rest)


def check_procedure_text(value: Any, where: str, problems: list[str]) -> str:
    if value is None or isinstance(value, str | int | float):
        return "" if value is None else str(value).strip()
    problems.append(f"{where} holds {str(value)[:60]!r}; expected text")
    return ""


def check_procedure_list(value: Any, key: str, problems: list[str]) -> list[Any]:
    if value is None or isinstance(value, list):
        return value or []
    problems.append(f"{key!r} is {str(value)[:60]!r}; expected a list")
    return []


def check_procedure_step(entry: Any, where: str, problems: list[str]) -> ProcedureStep:
    if isinstance(entry, Mapping):
        sign = {str(key): value for key, value in entry.items() if key != "do"}
        text = check_procedure_text(entry.get("do"), where, problems)
    else:
        text, sign = check_procedure_text(entry, where, problems), {}
        bracket = BRACKET.search(text)
        if bracket and (bracket[1] in SIGNS or find_near_procedure_key(bracket[1], SIGNS)):
            text, sign = text[: bracket.start()], {bracket[1]: bracket[2]}
    if not text:
        problems.append(f"{where} does not say what to do")
    return ProcedureStep(text, check_procedure_sign(sign, where, problems) if sign else None)


def check_procedure_sign(value: Any, where: str, problems: list[str]) -> Sign | None:
    if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in SIGNS:
        unknown = [str(key) for key in value if key not in SIGNS] if isinstance(value, Mapping) else []
        near = did_you_mean(unknown[0], ("do", *SIGNS)) if unknown else ""
        problems.append(f"{where} shows by {value!r}; expected {{tool: NAME}} or {{says: REGULAR EXPRESSION}}{near}")
        return None
    [(kind, content)] = value.items()
    if kind == "says":
        try:
            re.compile(str(content))
        except re.error as error:
            problems.append(f"{where}: {content!r} is no regular expression ({error})")
    return {kind: str(content)}
