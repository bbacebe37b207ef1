"""The letter that a reply to a multiple-choice question settles on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from aurify.rewards.answers import TAG, read_answer_boxes
from aurify.rewards.words import strip_answer_markdown

LATEX = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}|\\(?=[() ])|\$")
LETTER = r"[\"'\[(<\s]*(?P<{}>[A-Za-z])(?![A-Za-z0-9_+#]|'\w)"
CERTAIN = (
    r"(?i:\s*,?\s*\b(?:therefore|thus|then|clearly|definitely|certainly|probably|(?:most )?likely|of course|indeed"
    r"|option|choice|letter)\b,?(?:\s-)?)*"
)
ANSWERS = (  # in other languages
    "respuesta|antwort|r[e\u00e9]ponse|\u043e\u0442\u0432\u0435\u0442|resposta|risposta|odpowied\u017a|cevap|jawaban"
    "|\u0111\u00e1p \u00e1n|\uc815\ub2f5|\ub2f5|\u6b63\u89e3|\u7b54\u3048|\u0909\u0924\u094d\u0924\u0930"
    "|\u0627\u0644\u062c\u0648\u0627\u0628|\u0627\u0644\u0625\u062c\u0627\u0628\u0629"
)
STATEMENT = re.compile(  # of several, the last one counts
    r"\b(?i:answer|option|choice|solution|letter|alternative)\b[\"']?(?i:\s+(?:to|for|of)\b[^.\n:]{0,60}?)?"
    r"(?:\s+(?:is|was|would be|should be|must be)\b|\s*(?:[:=]|\u2192|->))"
    + CERTAIN
    + r"[\s:]*"
    + LETTER.format("answer")
    + r"|\b(?P<subject>[A-Z])\)?\s+(?:is|seems|looks|appears|fits|works|(?:would|must|should|has to) be)\s+"
    r"(?:to be\s+)?(?:the\s+)?(?:most\s+)?(?:likely\s+)?(?:correct|right|best|true|appropriate|answer)\b"
    + rf"|(?i:{ANSWERS})(?i:\s+(?:correcta|correcte|corretta|correta))?"
    r"(?:\s+(?:es|ist|est|\u00e8|\u00e9)\b|\u306f|\u304c|\uc740|\ub294|\s*[:=])?[\s:]*"
    + LETTER.format("foreign")
    + r"|\b(?i:choose|chose|pick|select|selected|go(?:ing)? with)\s+(?i:option|choice|answer)?\s*"
    + LETTER.format("chosen")
    + r"|(?:(?:\u7b54\u6848|\u6b63\u786e\u9009\u9879)(?:\u662f|\u4e3a|[:=])|\u9009(?:\u9879|\u62e9)?)\s*:?"  # Chinese
    + LETTER.format("chinese")
)
LINE = re.compile(
    r"^\W*(?i:(?:answer|ans|option|choice|select(?:ed|ion)|q?\d{1,3})\b)?[^\w+#]*(?P<letter>[A-Za-z])(?![+#])\W*$",
    re.MULTILINE,
)
FIRST = re.compile(r"\s*\(?(?P<letter>[A-Za-z])(?:[).:,]|\s*$|\s*\n|\s+[-\u2013(]|\s+(?:because|since|as)\b)")
REMARKS = (  # weaker signs, where nothing else is said
    re.compile(r"\b(?i:option|choice)\s+\(?(?P<letter>[A-Z])\b"),
    re.compile(r"\((?P<letter>[A-Z])\)"),
    re.compile(
        r"\b(?i:is|be|it['\u2019]s|say|think|so|thus|therefore|hence|but),?\s+(?P<letter>[A-Z])(?=[.,!]|\s*$)",
        re.MULTILINE,
    ),
)
ANOTHER = re.compile(r"\)?\s*(?:,|/|&|\band\b|\bor\b)+\s*\(?([A-Z])(?![\w'])")
BEFORE = re.compile(r"(?<![\w'])\(?[A-Z]\)?\s*(?:,|/|&|\band\b|\bor\b)+\s*\(?$")
NEGATED = re.compile(  # "not (B)", "would not choose B", "B is wrong"
    r"(?:\b(?:not|cannot|never|neither|nor|except|than|instead of|exclud\w+|eliminat\w+|ruled? out)|n['\u2019]t)\b"
    r"(?:(?!\bbut\b)[^.!?\n;,]){0,25}$|\banything but\s*\(?$",
    re.IGNORECASE,
)
DENIED = re.compile(
    r"[\])*\"']*\s*(?:(?:is|was|seems|looks|must be|can be|should be|would be)\s+"
    r"(?:not\b|clearly wrong|too\b|wrong|incorrect|false|out\b"
    r"|eliminated|excluded|ruled out)|(?:isn|wasn|can|couldn|doesn)['\u2019]t\b|cannot\b)",
    re.IGNORECASE,
)
CLAUSE = re.compile(
    r"\s*[,;!?]\s*(?!I\b)|\s+[-\u2013]\s|\s+(?:because|since|as|and|but|for|which|so|is|with|by|from)\b"
)
GOLD = re.compile(r"\s*(?:option|choice|answer)?[\s:]*\(?([A-Za-z])\)?\s*(?:[.):,\]].*|)\s*", re.DOTALL | re.IGNORECASE)


def read_gold_choice(gold: str) -> str | None:
    """B, of "B", "(b)", "B) Paris" or "\\text{(B)}"; None where it is no letter, or more than one."""
    text = strip_choice_latex(strip_answer_markdown(read_answer_boxes(gold) or gold)).rpartition("####")[2]
    text = re.sub(r"^\s*\[([A-Za-z])\]\s*$", r"\1", re.sub(r"^\s*(?i:the )?(?i:answer is)\b", "", text))
    found = GOLD.fullmatch(text)
    return found[1].upper() if found and not ANOTHER.match(text, found.end(1)) else None


def read_choice(text: str) -> str | None:
    """None where the reply names no letter, or more than one in the end."""
    boxed = read_answer_boxes(text)
    if boxed is not None:
        return (read_gold_choice(boxed) or read_choice(strip_choice_latex(boxed))) if boxed else None
    if tags := list(TAG.finditer(text)):
        return read_choice(tags[-1][2]) if tags[-1][3] and tags[-1][2].strip() else None
    text = strip_choice_latex(strip_answer_markdown(unicodedata.normalize("NFKC", text)))
    for pattern in (STATEMENT, LINE):
        if letters := list(find_choice_letters(pattern, text)):
            return letters[-1]
    if (found := FIRST.match(text)) and is_choice_letter(found, text, "letter"):
        return name_choice_letter(found, text, "letter")
    for pattern in REMARKS:
        if letters := list(find_choice_letters(pattern, text)):
            return letters[-1]
    return None


def find_choice_letters(pattern: re.Pattern[str], text: str) -> Iterator[str | None]:
    for found in pattern.finditer(text):
        group = str(found.lastgroup)
        if is_choice_letter(found, text, group):
            yield name_choice_letter(found, text, group)


def is_choice_letter(found: re.Match[str], text: str, group: str) -> bool:
    """Whether the letter is none of the words "a", "A" and "I", and is not denied."""
    letter, after = found[group], text[found.end(group) :]
    if NEGATED.search(text[: found.start(group)]) or DENIED.match(after):
        return False
    if group == "subject" or re.match(r"[)\].:]|\s*(?:\n|$)", after):
        return True
    return letter.isupper() and (letter not in "AI" or CLAUSE.match(after) is not None)


def name_choice_letter(found: re.Match[str], text: str, group: str) -> str | None:
    """The letter, or None where another one follows: "A or B"."""
    letter = found[group].upper()
    if group != "subject" and BEFORE.search(text[: found.start(group)]):
        return None
    other = ANOTHER.match(text, found.end(group))
    if other and other[1] != letter and (other[1] not in "AI" or not re.match(r"\s+[a-z]", text[other.end() :])):
        return None
    return letter


def strip_choice_latex(text: str) -> str:
    return LATEX.sub(lambda m: m[1] or "", text)
