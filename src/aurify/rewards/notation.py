"""Mathematics as people write it, made into what math-verify reads, and what it reads wrongly decided here: units,
letters of a choice, numbers in other bases, words."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from aurify.rewards.numbers import (
    LOWERED,
    PLAIN_DIGITS,
    RAISED,
    SCALES,
    SEPARATORS,
    read_exact_number,
    read_number_in_words,
)

SYMBOLS = {
    "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ", "\u00f7": "/",
    "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ", "\u221e": r"\infty ", "\u00b1": r"\pm ",
    "\u00b0": r"^\circ ", "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2208": r"\in ", "\u2205": r"\emptyset ",
    "\u211d": r"\mathbb{R}", "\u2124": r"\mathbb{Z}", "\u2061": "", "\u200b": "", "\u2044": "/", "\u2236": ":",
    "\u00ba": r"^\circ ", "\u2219": r"\cdot ", "\u2a7d": r"\le ", "\u2a7e": r"\ge ", "\u3001": ", ", "~": " ",
}  # fmt: skip
OPERAND = r"\s*(\d+(?:\.\d+)?|[a-zA-Z]|\([^()]*\)|\{[^{}]*\})"
ROOT = rf"\u221a{OPERAND}|(?<![\\a-zA-Z])sqrt\s*(\([^()]*\))"
REWRITES = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\(?:thinspace|enspace|hspace\*?\s*\{[^{}]*\})(?![a-zA-Z])", " "),
        (r"\\\\\s*\[[^\[\]]*\]", r"\\\\"),  # the space below a row of a matrix
        (r"\\varnothing(?![a-zA-Z])", r"\\emptyset"),
        (r"\\(?:mathrm|text|operatorname)\s*\{\s*([ei])\s*\}", r"\1"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (rf"\u221b{OPERAND}", r"\\sqrt[3]{\1}"),
        (rf"(?<![\w)}}])\^\{{(\d)\}}\u221a{OPERAND}", r"\\sqrt[\1]{\2}"),
        (r"^\s*\\(?:text|mathrm|textbf)\s*\{[^{}]*(?:[:=]|\bis)\s*\}\s*", ""),  # \text{Answer: }3
        (r"^\s*(?i:(?:the )?(?:final )?(?:answer|solution|result)\s*(?:is\b|:))\s*", ""),
        (r"^\s*(?:[=\u2248+]|\\(?:approx|simeq)(?![a-z]))\s*|(?<=\d)\.$", ""),
        (r"\\frac\s*\{\\(?:text|mathrm)\{(\w+)\}\}\{\\(?:text|mathrm)\{(\w+)\}\}", r"\\text{ \1/\2}"),
        (r"(?<=\d)\s*[x*]\s*10\s*\^", r" \\times 10^"),
        (r"\s*(?:\\text\s*\{)?\s*\(?(?:in )?base[ -](\w+)\)?\s*\}?\s*$", r"_{\1}"),
        (r"\^\s*\{?\s*\\circ\s*\}?\s*(?:\\(?:text|mathrm)\s*\{)?\s*C\s*\}?$", r"\\text{ celsius}"),
        (r"\^\s*\{?\s*\\circ\s*\}?\s*(?:\\(?:text|mathrm)\s*\{)?\s*F\s*\}?$", r"\\text{ fahrenheit}"),
        (r"^\s*\](?=[^\[\]]*[,;][^\[\]]*[\[\]]\s*$)", "("),  # ]1, 2[ of the French
        (r"(?<=[,;\d])([^\[\](),;]*)\[\s*$", r"\1)"),
        (r"^\\\{\s*[a-z]\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?::|\||\\mid|\\vert|\\colon)(.+)\\\}$", r"\1"),
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
SCALE = re.compile(rf"(?<=\d)\s*(?:\\[, ])?\s*(?:\\text\s*\{{\s*)?({'|'.join(SCALES)})s?\b\s*\}}?", re.IGNORECASE)

STYLE = r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mathsf|mbox|emph)\s*\{"
TEXT = re.compile(rf"{STYLE}([^{{}}]*)\}}")
LETTER = re.compile(rf"{STYLE}\s*([A-Z])\s*\}}|([A-Z])")
CHOICE = re.compile(  # \\textbf{(C)}\\ 12, C) 12, C. 12, Option C
    rf"(?:{STYLE}\s*)?(?:(?:[Oo]ption|[Cc]hoice)\s+)?(?:\(\s*([A-Z])\s*\)|([A-Z])(?:\)|[.:](?=\s|\}})|(?<=[a-z] .)))"
    rf"\s*\}}?(?:\\ |[\s:.,}}])*(.*)",
    re.DOTALL,
)
WORDS = re.compile(r"[a-z][a-z' -]{3,}|yes|no|odd|all", re.IGNORECASE)  # "abc" may be a product

BASED = re.compile(r"\(?(-?[0-9A-Fa-f]+)\)?_\s*(?:\{?\s*(?:\\(?:text|mathrm)\s*\{)?\s*(\w{2,}|\d)\s*\}*)")
BASE_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
BASES = {word: base for base, word in enumerate(BASE_WORDS, 2)} | {"sixteen": 16}

UNIT_NAMES = {
    "m": "m meter metre", "cm": "cm centimeter centimetre", "mm": "mm millimeter millimetre",
    "km": "km kilometer kilometre", "in": "in inch inche", "ft": "ft foot feet", "yd": "yd yard", "mi": "mi mile",
    "g": "g gram", "kg": "kg kilogram", "mg": "mg milligram", "lb": "lb pound", "oz": "oz ounce",
    "s": "s sec second", "ms": "ms millisecond", "min": "min minute", "h": "h hr hour", "day": "day", "week": "week",
    "month": "month", "year": "year yr", "l": "l liter litre", "ml": "ml milliliter millilitre", "cent": "cent",
    "dollar": "dollar", "euro": "euro", "degree": "degree", "n": "N newton", "j": "J joule", "w": "W watt",
    "v": "V volt", "2": "sq square", "3": "cu cubic", "yen": "yen", "rupee": "rupee", "sterling": "sterling",
    "yuan": "yuan", "won": "won", "celsius": "celsius", "fahrenheit": "fahrenheit",
}  # fmt: skip
CURRENCIES = {"\u20ac": "euro", "EUR": "euro", "\u00a3": "sterling", "\u00a5": "yen", "\u20b9": "rupee", "Rs": "rupee"}
CURRENCIES |= {"\u5143": "yuan", "\u5186": "yen", "\uc6d0": "won"}
CURRENCY = re.compile(
    r"([-+\u2212]?)\s*(?:\\text\s*\{\s*)?((?:US)?\\?\$|[\u20ac\u00a3\u00a5\u20b9]|USD|EUR|Rs\.?)\s*\}?\s*"
    r"([-+\u2212]?)((?:\d[\d,]*)?\.?\d+)"
)
CURRENCY_BEHIND = re.compile(
    rf"([-+]?[\d.,]*\d)\s*(?:\\text\s*\{{\s*)?([{''.join(c for c in CURRENCIES if len(c) == 1)}])\s*\}}?"
)
PERCENT = re.compile(r"\s*\\%\s*$|\s*\\%(?=\S*$)")
DOTS = re.compile(r"\\[lcd]?dots|\u2026|\.\.\.")
UNITS = {name: unit for unit, names in UNIT_NAMES.items() for name in names.split()}
NO_UNITS = {"or", "and", "plus", "minus", "times", "over", "squared", "cubed", "half", "dozen", "million", "pi", "to"}
UNIT = re.compile(
    r"([-+]?[\d.,]*\d(?:/\d+)?(?:\\pi\s|\\sqrt\{[^{}]*\})?)((?:\\ |~|\s|\\(?:text|mathrm|textrm)\s*\{)*)"
    r"((?:[A-Za-z\u00b5]+\}?(?:\^\{?\d\}?)?[\s./*\u00b7-]*)+)"
)


def rewrite_answer(text: str) -> str:
    """Unicode, plain-text mathematics and thousands as LaTeX."""
    text = move_answer_currency(text.strip())
    text = re.sub(f"[{RAISED}]+", lambda m: "^{" + m[0].translate(PLAIN_DIGITS) + "}", text)
    text = re.sub(f"[{LOWERED}]+", lambda m: "_{" + m[0].translate(PLAIN_DIGITS) + "}", text)
    text = "".join(SYMBOLS.get(c) or rewrite_answer_character(c) for c in SEPARATORS.sub("", text))
    for pattern, by in REWRITES:
        text = pattern.sub(by, text)
    return SCALE.sub(lambda m: f" \\times 10^{{{SCALES[m[1].lower()]}}}", text).strip()


def move_answer_currency(text: str) -> str:
    r"""\$18 as 18 dollar, so that its unit is known."""
    if found := CURRENCY_BEHIND.fullmatch(text):
        return f"{found[1]} {CURRENCIES[found[2]]}"
    found = CURRENCY.fullmatch(text)
    if not found or (found[2] == "$" and text.count("$") != 1):
        return text
    unit = CURRENCIES.get(found[2].strip("US\\").removesuffix(".") or found[2], "dollar")
    return f"{found[1] or found[3]}{found[4]} {unit}"


def rewrite_answer_character(character: str) -> str:
    if character.isascii():
        return character
    if unicodedata.decomposition(character).startswith("<fraction>"):
        above, below = unicodedata.normalize("NFKC", character).split("\u2044")
        return rf"\frac{{{above}}}{{{below}}}"
    name = unicodedata.name(character, "")
    if name.startswith("GREEK SMALL LETTER ") and name.count(" ") == 3:
        return f"\\{name.rpartition(' ')[2].lower().replace('lamda', 'lambda')} "
    return unicodedata.normalize("NFKC", character)


def compare_answers(answer: str, gold: str) -> bool | tuple[str, str]:
    """Whether they are equal; or both as LaTeX, where only mathematics can tell."""
    answer, gold = rewrite_answer(answer), rewrite_answer(gold)
    if squeeze_answer(answer) == squeeze_answer(gold):
        return True
    if DOTS.search(answer + gold) or {find_answer_brackets(answer), find_answer_brackets(gold)} == {"set", "pair"}:
        return False
    letters = compare_answer_choices(answer, gold)
    if letters is not None:
        return letters
    if (based := read_number_base(gold)) or read_number_base(answer):
        return based is not None and based == read_number_base(answer)
    said, wanted = flatten_answer(answer), flatten_answer(gold)
    if re.search(r"(?<![\\a-z])[a-z]{3}", wanted) and said == wanted:
        return True
    if (number := read_number_in_words(wanted)) is not None:
        gold = wanted = str(number)
    if (number := read_number_in_words(said)) is not None:
        answer = said = str(number)
    if WORDS.fullmatch(wanted) or (TEXT.fullmatch(gold) and wanted.isalpha()):
        return said == wanted
    if TEXT.fullmatch(answer):
        answer = TEXT.sub(r"\1", answer).strip()
    gold, unit = split_answer_unit(gold)
    answer, other = split_answer_unit(answer, loose=read_exact_number(gold) is not None)
    if unit and other and unit != other:
        return False
    if PERCENT.search(answer + gold) and (shares := compare_answer_percents(answer, gold)) is not None:
        return shares
    one, two = read_exact_number(answer), read_exact_number(gold)
    if one is None or two is None:
        return answer == gold or (answer, gold)
    # 0.0833333333333333 is 1/12; whole numbers are compared to the last digit
    near = Fraction(0) if one.denominator == two.denominator == 1 else max(abs(one), abs(two)) / 10**12
    return abs(one - two) <= near


def compare_answer_percents(answer: str, gold: str) -> bool | None:
    """Where one has a percent sign: 25% is 0.25, and 25 where that is what was asked for. None where they are no
    numbers."""
    said, wanted = (read_exact_number(PERCENT.sub("", text)) for text in (answer, gold))
    if said is None or wanted is None:
        return None
    if PERCENT.search(answer) and PERCENT.search(gold):
        return said == wanted
    if PERCENT.search(gold):
        return said in (wanted, wanted / 100)
    return said == wanted * 100 or (said == wanted and abs(wanted) >= 1)


def flatten_answer(text: str) -> str:
    """Words without styles, spaces of LaTeX, capitals, articles and a full stop."""
    plain = re.sub(r"\\[ ,;!]", " ", TEXT.sub(r" \1 ", text)).casefold()
    return re.sub(r"^(?:the|an?) (?=[a-z]{2})", "", " ".join(plain.split()).rstrip(" ."))


def squeeze_answer(text: str) -> str:
    """Without white space that separates nothing."""
    return re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", text)


def find_answer_brackets(text: str) -> str:
    """Whether braces or brackets stand around a list: a set is no pair and no interval."""
    text = text.strip()
    if text.startswith("\\{"):
        return "set"
    return "pair" if re.fullmatch(r"[(\[][^()\[\]]*[,;][^()\[\]]*[)\]]", text) else ""


def compare_answer_choices(answer: str, gold: str) -> bool | tuple[str, str] | None:
    r"""For answers such as "\textbf{(C)}\ 12": by their letters and, where both have it, by what follows. None where
    neither is one."""
    said, wanted = CHOICE.fullmatch(answer), CHOICE.fullmatch(gold)
    if said and wanted:
        if read_answer_letter(said) != read_answer_letter(wanted):
            return False
        return compare_answers(said[3], wanted[3]) if said[3] and wanted[3] else True
    if not said and not wanted:
        return None
    choice, other = (said, gold) if said else (wanted, answer)
    assert choice is not None
    if letter := LETTER.fullmatch(other):
        return (letter[1] or letter[2]) == read_answer_letter(choice)
    if not choice[3]:
        return False
    return compare_answers(choice[3], gold) if said else compare_answers(answer, choice[3])


def read_answer_letter(choice: re.Match[str]) -> str:
    return choice[1] or choice[2]


def read_number_base(text: str) -> int | None:
    """The value of a number with a base, such as 1011_2; None for all others."""
    found = BASED.fullmatch(text)
    base = found and found[2]
    if not found or not base:
        return None
    number = BASES.get(base.lower()) or (int(base) if base.isdecimal() else 0)
    try:
        return int(found[1].lower(), number) if 2 <= number <= 36 else None
    except ValueError:
        return None


def split_answer_unit(text: str, loose: bool = False) -> tuple[str, str]:
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
        if len(words[0]) == 1 and not (loose and (found[2] or "^" in found[3]) and known[0]):
            return text, ""
        if not known[0] and (len(words[0]) < 4 or not found[2]):
            return text, ""
    power = re.sub(r"[^\d/]", "", found[3])
    if known[0] in ("2", "3"):  # square, cubic
        known = [*known[1:], known[0]]
    return found[1], "".join(known) + power if all(known) else ""
