"""The right answers of a task, and the answer that a reply settles on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from aurify.rows.values import parse_json_value
from aurify.thoughts import final_answer
from aurify.types import Task, Trajectory

Extract = Literal["any", "boxed"]

BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?:(\{)|([^\s{}$]+))")  # \boxed{3}, or \boxed 3
STYLED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
SPAN = re.compile(  # "$5 and $6" are no formula
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)"
    r"|\$\s*((?:(?!\s(?:and|or|to|for|per|in|of|is|the|from|at|on)\b)(?:[^$\n\\]|\\.))+?)\s*\$(?!\d)",
    re.DOTALL,
)
JOINT = re.compile(  # what may stand between the parts of one answer: "$3$ or $4$", "x = \boxed{1}, y = \boxed{2}"
    r"(?:[\s$,;&]|\\[,;!() ]|\\q?quad|\b(?:and|or)\b|\\text\s*\{\s*,?\s*(?:and|or)\s*\})*(?:[a-zA-Z]\s*=[\s$]*)?"
)
TAG = re.compile(r"<(answer|output)>(.*?)(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
WHOLE_TAG = re.compile(
    r"\s*(?:<answer>(.*)</answer>|<output>(.*)</output>|<\|begin_of_solution\|>(.*)<\|end_of_solution\|>"
    r"|<\|START_RESPONSE\|>(.*)<\|END_RESPONSE\|>)\s*",
    re.DOTALL,
)
MARK = re.compile(
    r"(?:####|\banswer\b(?:\s+(?:to|for|of)\b[^.\n:=]{0,80}?)?[\s*_]*(?:\bis\b|[:=\uff1a])|\u7b54\u6848(?:\u662f|\u4e3a|[:\uff1a]))"
    r"[\s*_:\uff1a]*",
    re.IGNORECASE,
)
SENTENCE = re.compile(  # where what is said of the answer ends
    r"(?:[.!?\u3002](?=[\s*_]|$)|;|,?\s+(?:because|since|as|so|for|when|where|which|given|if|after|per|thus|hence|not)\b"
    r"|\s\((?=[^()]*[a-z]{3})).*",
    re.DOTALL | re.IGNORECASE,
)
VERB = re.compile(r"\s(?:is|are|was|were|equals|equal to)\s+(?!not\b)")
SMALL = "\u00b2\u00b3\u00b9\u2070-\u208e\u00bc-\u00be\u2150-\u215e"  # raised and lowered digits, fractions
ATOM = (  # of mathematics without a mark: 1,200, \u221a3, sqrt(3), \u03c0, a letter alone, (x+1)
    r"(?:\d+[ \t]+\d+/\d+(?!\d)|(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*(?:hundred|thousand|million|billion|trillion)\b)?"
    r"|[\u221a\u221b]\s*(?:\d+(?:\.\d+)?|[a-zA-Z]|\([^()\n]*\))|\bsqrt\s*\([^()\n]*\)|(?<![A-Za-z])pi\b|[\u03c0\u221e]"
    rf"|[\u00bc-\u00be\u2150-\u215e]|(?<![A-Za-z'\u2019])[a-zA-Z](?![A-Za-z'\u2019])"
    rf"|\((?=[^()\n]*\d)[\w+*/^ .{SMALL}-]*\))"
    rf"(?:\s?\^\s?\{{?-?\w+\}}?|[{SMALL}])*"
)
NUMERAL = re.compile(rf"[\d\\\u221a\u221b\u03c0\u221e{SMALL}]")
SIGN = r"(?<![\w)])[-\u2212]\s?(?:\\?[$\u20ac\u00a3\u00a5\u20b9]\s?)?"
RUN = (
    rf"(?:{SIGN})?{ATOM}(?:{ATOM}|[*/\u00d7\u00b7\u00f7+\u2212-](?=[^\s]){ATOM}"
    rf"|[ \t]+(?:[*/\u00d7\u00b7\u00f7+\u2212<>\u2264\u2265-]|[<>]=)[ \t]+(?:{SIGN})?{ATOM}"
    rf"|\s?[<>\u2264\u2265]=?\s?{ATOM})*%?"
)
PLAIN = re.compile(
    rf"[(\[][ \t]*{RUN}(?:[ \t]*,[ \t]*{RUN})+[ \t]*[)\]]|{RUN}(?:[ \t]+(?:and|or)[ \t]+{RUN})*", re.IGNORECASE
)


def take_answer(trajectory: Trajectory) -> str | None:
    """What the policy wrote after its thoughts, its turns joined by newlines. None: the last thought never ends."""
    *earlier, last = [message["content"] for message in trajectory.replies] or [""]
    answer = final_answer(last, trajectory.opened_thought)
    if answer is None:
        return None
    return "\n".join([*filter(None, map(final_answer, earlier)), answer])


def read_gold_answers(task: Task) -> list[str]:
    """The right answers: the column `answers` where the task has one, else its answer. `answers` may be a list, one
    text, a number, JSON text, or an object that keeps them under `text` or `aliases`."""
    given = to_answer_list(task.info.get("answers"))
    if isinstance(given, str) and isinstance(found := parse_json_value(given), list | dict):
        given = found
    if isinstance(given, Mapping):
        names = [name for name in ("text", "aliases") if name in given]
        if not names:
            raise ValueError(f"task {task.id!r}: its answers are {str(given)[:80]}; expected a list of texts")
        given = to_answer_list(given[names[0]])
    several = [str(text) for text in (given if isinstance(given, list | tuple) else [given]) if text is not None]
    return several or ([task.answer] if task.answer is not None else [])


def to_answer_list(value: Any) -> Any:
    """Arrays, as parquet files give them, as lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def unwrap_answer(text: str) -> str:
    r"""Without the <answer> tags, or the \boxed{} or \text{}, that the whole text stands in."""
    if found := WHOLE_TAG.fullmatch(text):
        text = next(part for part in found.groups() if part is not None)
    found = BOX.match(text.strip().strip("$"))
    text = read_answer_boxes(text) or text if found and found[1] else text
    styled = STYLED.fullmatch(text.strip().strip("$"))
    return styled[1] if styled else text


def extract_answer(text: str, extract: Extract = "any") -> str | None:
    """The answer that a text settles on: its last box, or several that belong together; else, unless extract is
    "boxed", what stands in its last <answer> tag, after its last `####` or "answer is", or else its last formula or
    number. None where there is none, and where the last box or tag is never closed."""
    boxed = read_answer_boxes(text)
    if boxed is not None or extract == "boxed":
        return boxed or None
    if tags := list(TAG.finditer(text)):
        return (read_answer_statement(tags[-1][2], marked=False) or None) if tags[-1][3] else None
    if marks := list(MARK.finditer(text)):
        return read_answer_statement(text[marks[-1].end() :]) or None
    return strip_answer_marks(text) if is_answer_formula(text) else find_last_formula(text)


def read_short_answer(text: str) -> str | None:
    """A whole reply of one line without a box or tag: "June 20", "1.2 million", "36\u03c0 cm\u00b2"."""
    text = text.strip()
    return None if "\n" in text or len(text) > 100 or BOX.search(text) or TAG.search(text) else strip_answer_marks(text)


def is_answer_formula(text: str) -> bool:
    """Whether a text is one line without words."""
    plain = re.sub(r"\\[a-zA-Z]+|\b(?:and|or|pi|sqrt)\b|\$", " ", text.strip())
    return 0 < len(plain) < 200 and not re.search(rf"(?:(?![{SMALL}])[^\W\d_]){{2}}|\n", plain)


def find_last_formula(text: str) -> str | None:
    """The last formula or number; one that holds a number, or a command of LaTeX, before a lone letter."""
    items = [(span.start(), join_answer_spans(text, span)[0]) for span in SPAN.finditer(text)]
    plain = [(run.start(), run[0]) for run in PLAIN.finditer(SPAN.sub(lambda m: " " * len(m[0]), text))]
    items += [(start, run) for start, run in plain if NUMERAL.search(run)]
    found = [item for _, item in sorted(items)]
    return next((item for item in reversed(found) if NUMERAL.search(item)), found[-1] if found else None)


def read_answer_boxes(text: str) -> str | None:
    """What stands in the last box; of several that only a comma, "and" or "or" separates, all of it. None without a
    box; "" where the last one is empty, or open."""
    found: list[tuple[int, int, str]] = []
    for opening in BOX.finditer(text):
        if found and opening.start() < found[-1][1]:  # a box in a box
            continue
        end = find_answer_brace(text, opening.end()) if opening[1] else opening.end()
        if end is None:
            return ""
        content = text[opening.end() : end - 1] if opening[1] else opening[2].rstrip(".,;")
        found.append((opening.start(), end, content.strip()))
    if not found:
        return None
    parts = [found[-1][2]]
    for (_, end, content), (start, _, _) in zip(found[-2::-1], found[:0:-1], strict=True):
        if not JOINT.fullmatch(text, end, start):
            break
        parts.insert(0, content)
    return ", ".join(dict.fromkeys(parts))


def find_answer_brace(text: str, index: int) -> int | None:
    """Behind the brace that closes the one before `index`; None where it stays open."""
    depth = 1
    for brace in BRACE.finditer(text, index):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.end()
    return None


def read_answer_statement(text: str, marked: bool = True) -> str:
    """What is said of an answer: its formulas, or its words up to the end of the sentence, or of what gives a reason.
    marked: the words come after "the answer is"."""
    if not marked and (marks := list(MARK.finditer(text))):
        text = text[marks[-1].end() :]
    text = text.strip().lstrip("*_:\"'`\u201c ")
    if span := SPAN.match(text):
        formulas, end = join_answer_spans(text, span)
        if not re.match(r"\s*[=<>+*/^-]", text[end:]):
            return strip_answer_marks(formulas)
    line = text.partition("\n")[0]
    said = SENTENCE.sub("", line) or line
    said = said[max((verb.end() for verb in VERB.finditer(said)), default=0) :]
    if re.match(r"\s*(?!not\b)[A-Za-z]{2,}\s+\w", said) and (formula := find_last_formula(said)):
        return formula  # "Jane began 3 hours ago"
    return strip_answer_marks(re.sub(r"\\?\$", "", said))


def join_answer_spans(text: str, first: re.Match[str]) -> tuple[str, int]:
    """The formulas that begin with `first` and belong together, and where they end."""
    parts, end = [], first.end()
    span: re.Match[str] | None = first
    while span:
        parts.append(next(part for part in span.groups() if part is not None).strip())
        end = span.end()
        joint = JOINT.match(text, end)
        between = text[end : joint.end()] if joint else ""
        span = SPAN.match(text, end + len(between.rstrip("$"))) if re.search(r"[,;]|and|or", between) else None
    return ", ".join(dict.fromkeys(parts)), end


def strip_answer_marks(answer: str) -> str:
    """Without dollar signs, emphasis and a closing full stop around it."""
    return answer.strip().strip("*$_`\"'\u201c\u201d").strip().removesuffix(".").strip("*$_`\"' ").strip()
