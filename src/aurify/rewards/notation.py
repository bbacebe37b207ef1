"""Mathematics as people write it, made into what math-verify reads, and what it reads wrongly decided here: units,
letters of a choice, numbers in other bases, words."""

from __future__ import annotations

import re
import unicodedata

from aurify.rewards.numbers import SEPARATORS, as_number

SYMBOLS = {
    "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ", "\u00f7": "/",
    "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ", "\u221e": r"\infty ", "\u00b1": r"\pm ",
    "\u00b0": r"^\circ ", "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2208": r"\in ", "\u2205": r"\emptyset ",
    "\u211d": r"\mathbb{R}", "\u2124": r"\mathbb{Z}", "\u2061": "", "\u200b": "",
}  # fmt: skip
RAISED, LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "₀₁₂₃₄₅₆₇₈₉₊₋ₙ"
PLAIN_DIGITS = str.maketrans(RAISED + LOWERED, "0123456789+-n" * 2)
ROOT = r"\u221a\s*(\d+(?:\.\d+)?|[a-zA-Z]|\([^()]*\)|\{[^{}]*\})|(?<![\\a-zA-Z])sqrt\s*(\([^()]*\))"
REWRITES = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"\\[dtc]frac", r"\\frac"),
        (r"^(-?\d{1,3}) (\d{3})(?: (\d{3}))?(?=\.\d+$|$)", r"\1\2\3"),
        (r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[,;!]", ""),
        (ROOT, r"\\sqrt{\1\2}"),
        (r"(?<![\d.])(\d+)\s+(\d+)/(\d+)(?!\d)", r"\1\\frac{\2}{\3}"),  # 3 1/2
        (r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?![\w.])", r"\1 \\times 10^{\2}"),
        (r"\*\*", "^"),
        (r">=", r"\\ge "),
        (r"<=", r"\\le "),
        (r"!=", r"\\ne "),
        (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi "),
        (r"(?<![\\a-zA-Z])(?:infty|infinity|inf)(?![a-zA-Z])", r"\\infty "),
        (r"(?<!\\)%|(?<=\d)\s*per ?cent\b", r"\\%"),
        (r"^(?:\\?\$|\u20ac|\u00a3|\u00a5|USD|EUR)\s*(?=[\d.])", ""),
        (r"\\?\$|(?<!\\)\\[()\[\]]", ""),  # delimiters of mathematics
        (r"\\q?quad", ", "),
        (r"\(\s*or\s+([^()]*)\)", r", \1"),
        (r"(?<=[\w})\]])\s+(?:or|and)\s+(?=[\w\\({\[-])", ", "),
        (r"^(?=\s*(?:[<>]|\\[gl](?:eq?|t)\b))", "x"),  # "> 3" says something of a variable
    )
)
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
SCALE = re.compile(rf"(?<=\d)\s*(?:\\[, ])?\s*(?:\\text\s*\{{\s*)?({'|'.join(SCALES)})s?\b\s*\}}?", re.IGNORECASE)

STYLE = r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{"
TEXT = re.compile(rf"{STYLE}([^{{}}]*)\}}")
LETTER = re.compile(rf"{STYLE}\s*([A-Z])\s*\}}|([A-Z])")
CHOICE = re.compile(rf"(?:{STYLE}\s*)?\(\s*([A-Z])\s*\)\s*\}}?(?:\\ |[\s:.,~])*(.*)", re.DOTALL)
WORDS = re.compile(r"[a-z][a-z' -]{3,}|yes|no|odd|all", re.IGNORECASE)  # "abc" may be a product

BASED = re.compile(r"(-?[0-9A-F]+)_\s*(?:\{\s*(?:\\text\s*\{)?\s*(\w+)\s*\}*|(\d))")
BASE_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
BASES = {word: base for base, word in enumerate(BASE_WORDS, 2)} | {"sixteen": 16}

UNIT_NAMES = {
    "m": "m meter metre", "cm": "cm centimeter centimetre", "mm": "mm millimeter millimetre",
    "km": "km kilometer kilometre", "in": "in inch inche", "ft": "ft foot feet", "yd": "yd yard", "mi": "mi mile",
    "g": "g gram", "kg": "kg kilogram", "mg": "mg milligram", "lb": "lb pound", "oz": "oz ounce",
    "s": "s sec second", "ms": "ms millisecond", "min": "min minute", "h": "h hr hour", "day": "day", "week": "week",
    "month": "month", "year": "year yr", "l": "l liter litre", "ml": "ml milliliter millilitre", "cent": "cent",
    "dollar": "dollar", "euro": "euro", "degree": "degree", "n": "N newton", "j": "J joule", "w": "W watt",
    "v": "V volt", "2": "sq square", "3": "cu cubic",
}  # fmt: skip
UNITS = {name: unit for unit, names in UNIT_NAMES.items() for name in names.split()}
NO_UNITS = {"or", "and", "plus", "minus", "times", "over", "squared", "cubed", "half", "dozen", "million", "pi", "to"}
UNIT = re.compile(
    r"([-+]?[\d.,]*\d(?:/\d+)?)((?:\\ |~|\s|\\(?:text|mathrm|textrm)\s*\{)*)"
    r"((?:[A-Za-z\u00b5]+\}?(?:\^\{?\d\}?)?[\s./*\u00b7-]*)+)"
)


def rewrite(text: str) -> str:
    """Unicode, plain-text mathematics and thousands as LaTeX."""
    text = re.sub(f"[{RAISED}]+", lambda m: "^{" + m[0].translate(PLAIN_DIGITS) + "}", text)
    text = re.sub(f"[{LOWERED}]+", lambda m: "_{" + m[0].translate(PLAIN_DIGITS) + "}", text)
    text = "".join(SYMBOLS.get(c) or rewrite_character(c) for c in SEPARATORS.sub("", text))
    for pattern, by in REWRITES:
        text = pattern.sub(by, text)
    return SCALE.sub(lambda m: f" \\times 10^{{{SCALES[m[1].lower()]}}}", text).strip()


def rewrite_character(character: str) -> str:
    if character.isascii():
        return character
    if unicodedata.decomposition(character).startswith("<fraction>"):
        above, below = unicodedata.normalize("NFKC", character).split("\u2044")
        return rf"\frac{{{above}}}{{{below}}}"
    name = unicodedata.name(character, "")
    if name.startswith("GREEK SMALL LETTER ") and name.count(" ") == 3:
        return f"\\{name.rpartition(' ')[2].lower().replace('lamda', 'lambda')} "
    return unicodedata.normalize("NFKC", character)


def compare(answer: str, gold: str) -> bool | tuple[str, str]:
    """Whether they are equal; or both as LaTeX, where only mathematics can tell."""
    answer, gold = rewrite(answer), rewrite(gold)
    if answer == gold:
        return True
    letters = compare_choices(answer, gold)
    if letters is not None:
        return letters
    if (based := read_base(gold)) or read_base(answer):
        return based is not None and based == read_base(answer)
    said, wanted = (TEXT.sub(r"\1", text).strip() for text in (answer, gold))
    if WORDS.fullmatch(wanted) or (TEXT.fullmatch(gold) and wanted.isalpha()):
        return said.casefold() == wanted.casefold()
    gold, unit = split_unit(gold)
    answer, other = split_unit(answer, loose=as_number(gold) is not None)
    if unit and other and unit != other:
        return False
    numbers = as_number(answer), as_number(gold)
    return answer == gold or (numbers[0] == numbers[1] if None not in numbers else (answer, gold))


def compare_choices(answer: str, gold: str) -> bool | tuple[str, str] | None:
    r"""For answers such as "\textbf{(C)}\ 12": by their letters and, where both have it, by what follows. None where
    neither is one."""
    said, wanted = CHOICE.fullmatch(answer), CHOICE.fullmatch(gold)
    if said and wanted:
        if said[1] != wanted[1]:
            return False
        return compare(said[2], wanted[2]) if said[2] and wanted[2] else True
    if not said and not wanted:
        return None
    choice, other = (said, gold) if said else (wanted, answer)
    assert choice is not None
    if letter := LETTER.fullmatch(other):
        return (letter[1] or letter[2]) == choice[1]
    if not choice[2]:
        return False
    return compare(choice[2], gold) if said else compare(answer, choice[2])


def read_base(text: str) -> int | None:
    """The value of a number with a base, such as 1011_2; None for all others."""
    found = BASED.fullmatch(text)
    base = found and (found[2] or found[3])
    if not found or not base:
        return None
    number = BASES.get(base.lower()) or (int(base) if base.isdecimal() else 0)
    try:
        return int(found[1], number) if 2 <= number <= 36 else None
    except ValueError:
        return None


def split_unit(text: str, loose: bool = False) -> tuple[str, str]:
    """A number without its unit, and the unit: "" where there is none that is known. "12 dollars" -> 12, dollar.

    loose: a single letter behind a space is a unit, too. Else "5 m" is a product, and only \\text{m} a unit."""
    found = UNIT.fullmatch(text.strip())
    if not found:
        return text, ""
    words = re.findall(r"[A-Za-z\u00b5]+", found[3])
    known = [UNITS.get(word) or UNITS.get(word.lower().removesuffix("s"), "") for word in words]
    if "{" not in found[2]:
        if any(word.lower() in NO_UNITS for word in words):
            return text, ""
        if len(words[0]) == 1 and not (loose and found[2] and known[0]):
            return text, ""
        if not known[0] and (len(words[0]) < 4 or not found[2]):
            return text, ""
    power = re.sub(r"[^\d/]", "", found[3])
    if known[0] in ("2", "3"):  # square, cubic
        known = [*known[1:], known[0]]
    return found[1], "".join(known) + power if all(known) else ""
