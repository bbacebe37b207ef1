"""The letter that a reply to a multiple-choice question settles on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from aurify.rewards.answers import TAG, read_boxes
from aurify.rewards.words import strip_markdown

LATEX = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}|\\(?=[() ])|\$")
LETTER = r"[\"'\[(\s]*(?P<{}>[A-Za-z])(?![\w'])"
STATEMENT = re.compile(  # of several, the last one counts
    r"\b(?i:answer|option|choice|solution|letter|alternative)\b(?i:\s+(?:to|for|of)\b[^.\n:]{0,60}?)?"
    r"(?:\s+(?:is|was|would be|should be|must be)\b|\s*[:=])"
    r"(?i:\s*(?:therefore|thus|then|clearly|option|choice)\b)?[\s:]*"
    + LETTER.format("answer")
    + r"|\b(?P<subject>[A-Z])\)?\s+is\s+(?:the\s+)?(?:correct|right|best|true|answer)\b"
    + r"|\b(?i:choose|chose|pick|select|selected|go(?:ing)? with)\s+(?i:option|choice|answer)?\s*"
    + LETTER.format("chosen")
    + r"|(?:\u7b54\u6848(?:\u662f|\u4e3a|[:=])|\u9009(?:\u9879|\u62e9)?)\s*:?"  # Chinese
    + LETTER.format("chinese")
)
LINE = re.compile(r"^\W*(?P<letter>[A-Za-z])\W*$", re.MULTILINE)
FIRST = re.compile(r"\s*\(?(?P<letter>[A-Za-z])(?:[).:,]|\s*$|\s*\n|\s+[-\u2013])")
REMARKS = (  # weaker signs, where nothing else is said
    re.compile(r"\b(?i:option|choice)\s+\(?(?P<letter>[A-Z])\b"),
    re.compile(r"\((?P<letter>[A-Z])\)"),
    re.compile(r"\b(?:is|be|it's|say|think|so|thus|therefore|hence)\s+(?P<letter>[A-Z])(?=[.,!]|\s*$)"),
)
ANOTHER = re.compile(r"\)?\s*(?:,|/|&|\band\b|\bor\b)+\s*\(?([A-Z])(?![\w'])")
CLAUSE = re.compile(r"\s*[,;!?]\s*(?!I\b)|\s+(?:because|since|as|and|but|for|which|so|is|with|by|from)\b")
GOLD = re.compile(r"\s*(?:option|choice|answer)?[\s:]*\(?([A-Za-z])\)?\s*(?:[.):,\]].*|)\s*", re.DOTALL | re.IGNORECASE)


def read_gold_choice(gold: str) -> str | None:
    """B, of "B", "(b)", "B) Paris" or "\\text{(B)}"; None where it is no letter, or more than one."""
    text = strip_latex(read_boxes(gold) or gold)
    found = GOLD.fullmatch(text)
    return found[1].upper() if found and not ANOTHER.match(text, found.end(1)) else None


def read_choice(text: str) -> str | None:
    """None where the reply names no letter, or more than one in the end."""
    boxed = read_boxes(text)
    if boxed is not None:
        return read_gold_choice(boxed) if boxed else None
    if tags := list(TAG.finditer(text)):
        return read_choice(tags[-1][2]) if tags[-1][3] and tags[-1][2].strip() else None
    text = strip_latex(strip_markdown(unicodedata.normalize("NFKC", text)))
    for pattern in (STATEMENT, LINE):
        if letters := list(find_letters(pattern, text)):
            return letters[-1]
    if (found := FIRST.match(text)) and is_choice(found, text, "letter"):
        return name_choice(found, text, "letter")
    for pattern in REMARKS:
        if letters := list(find_letters(pattern, text)):
            return letters[-1]
    return None


def find_letters(pattern: re.Pattern[str], text: str) -> Iterator[str | None]:
    for found in pattern.finditer(text):
        group = str(found.lastgroup)
        if is_choice(found, text, group):
            yield name_choice(found, text, group)


def is_choice(found: re.Match[str], text: str, group: str) -> bool:
    """Whether the letter is none of the words "a", "A" and "I"."""
    letter, after = found[group], text[found.end(group) :]
    if group == "subject" or re.match(r"[)\].:]|\s*(?:\n|$)", after):
        return True
    return letter.isupper() and (letter not in "AI" or CLAUSE.match(after) is not None)


def name_choice(found: re.Match[str], text: str, group: str) -> str | None:
    """The letter, or None where another one follows: "A or B"."""
    letter = found[group].upper()
    other = ANOTHER.match(text, found.end(group))
    if other and other[1] != letter and (other[1] not in "AI" or not re.match(r"\s+[a-z]", text[other.end() :])):
        return None
    return letter


def strip_latex(text: str) -> str:
    return LATEX.sub(lambda m: m[1] or "", text)
