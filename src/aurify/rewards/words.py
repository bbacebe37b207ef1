"""Texts made comparable: one form for what reads alike, and the words of a text in any script."""

from __future__ import annotations

import re
import unicodedata

from aurify.tools.forms import strip_fence

ALIKE = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc\u00b4`", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\u300c\u300d\u300e\u300f", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
)
POINTS = re.compile(
    "[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0640\u064b-\u0652\u0670]"
)  # vowels that Hebrew and Arabic may leave out
KEPT = ("<super>", "<sub>", "<fraction>")  # characters that mean something else in their plain form
END = re.compile(r"(?:[.\u3002\u2026,;:\u3001\u060c\u061b\u061f\u06d4\u0964\u0965]|(?<!\d)[!?])+$")  # "5!" is no five
EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3}|_{1,3}|~~|`+)(?=\S)(.+?)(?<=\S)\1(?![\w*])", re.DOTALL)
HEADING = re.compile(r"^\s{0,3}(?:#{1,6}|>|[-*+](?=\s+[^\W\d]))\s+", re.MULTILINE)  # and list items, quotations

# scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
)
# with the vowels of Hebrew, Arabic and the scripts of India, which stand on letters
LETTER = r"\w\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[{LETTER}])+")


def fold_text(text: str) -> str:
    """One form for all that looks the same: Unicode's compositions and widths, quotes and dashes, invisible characters,
    vowel points, case and white space."""
    text = text.translate(ALIKE)  # before NFKC, which takes some of them apart
    parts = (c if unicodedata.decomposition(c).startswith(KEPT) else unicodedata.normalize("NFKC", c) for c in text)
    plain = unicodedata.normalize("NFC", "".join(parts)).translate(ALIKE).casefold()
    return " ".join("".join(c for c in POINTS.sub("", plain) if unicodedata.category(c) != "Cf").split())


def normalise_words(text: str) -> str:
    """Folded, without punctuation at the end and quotes around all of it."""
    text = fold_text(text)
    text = END.sub("", text) or text
    if len(text) > 2 and text[0] == text[-1] and text[0] in "\"'" and text[0] not in text[1:-1]:
        text = text[1:-1]
        text = END.sub("", text) or text
    return text.strip()


def strip_answer_markdown(text: str) -> str:
    """Without emphasis, code marks, headings and a fence around it: "**Paris**" -> "Paris"; "2*3*4" stays."""
    text, num = HEADING.sub("", strip_fence(text)), 1
    while num:
        text, num = EMPHASIS.subn(r"\2", text)
    return text


def list_words(text: str) -> list[str]:
    """Lower-case words. Where a script has no spaces between words, each character is one."""
    return WORD.findall(fold_text(text))


def contains_words(text: str, part: str) -> bool:
    """Whether `part` stands in the text as whole words, both folded."""
    part = fold_text(part)
    before = rf"(?<![{LETTER}])" if part and not re.match(f"[{UNSPACED}]", part) else ""
    after = rf"(?![{LETTER}])" if part and not re.search(f"[{UNSPACED}]$", part) else ""
    return re.search(before + re.escape(part) + after, fold_text(text)) is not None
