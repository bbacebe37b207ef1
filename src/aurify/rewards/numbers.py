"""Numbers as texts write them."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

from aurify.rewards.words import strip_answer_markdown

Number = Decimal | Fraction
MAX_DIGITS = 50  # of a number that is divided, or raised to a power

# a comma, a LaTeX space or a thin space may separate thousands
SEPARATORS = re.compile(
    r"(?<=\d)(?:\\[,;! ]|~|\\thinspace\s*|\s*\{\s*,\s*\}\s*|,\\!\s*|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))"
)
FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
PLAIN = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
# a minus belongs to a number unless a digit stands before it: "3-5" is 3 and 5
TIMES_TEN = re.compile(r"\s*(?:\\times|\\cdot)\s*10\s*\^\s*")
REPEATING = re.compile(r"(-?)(\d{0,20})\.(\d{0,20})\\(?:overline|bar|dot)\s*\{?(\d{1,20})\}?")
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
WORDS = {word: value for value, word in enumerate(ONES.split())}
WORDS |= dict(zip(TENS, range(20, 100, 10), strict=True)) | {"hundred": 100, "thousand": 1000}
NUMBER = re.compile(rf"(?<!\d)[-\u2212]?{PLAIN}")
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
VULGAR = re.compile(r"(\d*)\s*([\u00bc-\u00be\u2150-\u215e])")  # 1\u00bd
RAISED, LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "₀₁₂₃₄₅₆₇₈₉₊₋ₙ"
PLAIN_DIGITS = str.maketrans(RAISED + LOWERED, "0123456789+-n" * 2)
POWER = re.compile(rf"(?<=\d)[{RAISED}]+")
OWED = re.compile(r"(?<![\w)])([-\u2212])\s?\\?[$\u20ac\u00a3\u00a5\u20b9]\s?(?=[\d.])")  # -$3
VALUE = re.compile(  # with what makes another number of it: 1/2, 10^6, 6e23
    rf"(?:(?P<whole>(?<![\d.,/])[-\u2212]?\d+)\s+(?=\d+\s*/\s*\d))?(?P<base>(?<!\d)[-\u2212]?{PLAIN})"
    rf"(?:\s*/\s*(?P<divisor>{PLAIN})(?!\s*/)|\s*(?:\^|\*\*)\s*\{{?(?P<power>-?\d{{1,3}})\}}?|[eE](?P<ten>[+-]?\d{{1,3}})\b"
    rf"|\s*(?P<scale>{'|'.join(SCALES)})\b)?",
    re.IGNORECASE,
)
PART = re.compile(
    r"(?:[\^_]\s*\{?|(?<=[\w)\]}])\s*\*\*\s*|\u221a\s*|sqrt\s*[({]?|(?<=\d):)$"
)  # a number after it is a part of something else


def list_numbers(text: str) -> list[Decimal]:
    """One after the other, each for itself: "1/10" holds 1 and 10."""
    return [to_decimal(found) for found in NUMBER.findall(SEPARATORS.sub("", text))]


def last_number(text: str) -> Number | None:
    """The value of the last number: "1/2" is a half, "10^6" a million; the 2 of "5 cm^2" is none."""
    text = VULGAR.sub(
        lambda m: f"{m[1]} {unicodedata.normalize('NFKC', m[2])}", SEPARATORS.sub("", strip_answer_markdown(text))
    )
    text = FRACTION.sub(write_fraction, text.replace("\u2044", "/"))
    text = POWER.sub(lambda m: "^" + m[0].translate(PLAIN_DIGITS), OWED.sub(r"\1", text))
    if re.fullmatch(r"\s*-?\d{1,3}(?: \d{3})+\.?\s*", text):
        text = text.replace(" ", "")
    for found in reversed(list(VALUE.finditer(text))):
        before = PART.search(text[max(0, found.start() - 8) : found.start()])
        if before is None:
            is_date = found["divisor"] and text[: found.start()].endswith("/")  # 1/2/2023
            return to_decimal(found["divisor"]) if is_date else evaluate_number_expression(found)
        if "^" not in before[0]:
            return None  # a root, or a number in another base
    return None


def write_fraction(found: re.Match[str]) -> str:
    """\\frac{1}{2} as 1/2; behind a number, which it adds to, after a space."""
    space = " " if found.string[: found.start()].rstrip()[-1:].isdigit() else ""
    return f"{space}{found[1] or found[2]}/{found[3] or found[4]}"


def evaluate_number_expression(found: re.Match[str]) -> Number | None:
    base = to_decimal(found["base"])
    if found["divisor"] and (divisor := to_decimal(found["divisor"])):
        if max(map(len, found.groups(""))) > MAX_DIGITS:
            return None
        whole, part = Fraction(to_decimal(found["whole"] or "0")), Fraction(base) / Fraction(divisor)
        return whole - part if (found["whole"] or "")[:1] in ("-", "\u2212") else whole + part
    power = int(found["power"] or 0)
    ten = int(found["ten"] or 0) or SCALES.get((found["scale"] or "").lower(), 0)
    if (power or ten) and len(found["base"]) > MAX_DIGITS:
        return None
    if found["power"]:
        return Fraction(base) ** power if base or power >= 0 else None
    return Fraction(base) * Fraction(10) ** ten if ten else base


def read_exact_number(text: str) -> Fraction | None:
    r"""The value of a whole text that is a number: 1,200, \frac{1}{2}, 3\frac12, 6.02 \times 10^{23}, 10^{6}."""
    text = TIMES_TEN.sub("e", SEPARATORS.sub("", text).strip().strip("$").strip())
    text = FRACTION.sub(write_fraction, text.replace("\u2212", "-"))
    text = re.sub(r"^([-+])\s+", r"\1", text.strip()).removeprefix("+")
    text = re.sub(r"(?<=e)\{?\s*([-+]?\d+)\s*\}?$", r"\1", text)
    if repeating := REPEATING.fullmatch(text):
        front, again = repeating[2] + repeating[3], repeating[4]
        value = Fraction(int(front + again) - int(front or 0), 10 ** len(repeating[3]) * (10 ** len(again) - 1))
        return -value if repeating[1] else value
    found = VALUE.fullmatch(text)
    number = evaluate_number_expression(found) if found else None
    return None if number is None else Fraction(number)


def read_number_in_words(text: str) -> int | None:
    """The value of a number in English words, below a hundred, or a round hundred or thousand: twenty-one."""
    parts = text.casefold().replace("-", " ").split()
    values = [WORDS.get(part) for part in parts]
    if not parts or len(parts) > 2 or None in values:
        return None
    first, second = values[0] or 0, values[-1] or 0
    if len(parts) == 1:
        return first
    if 20 <= first < 100 and 0 < second < 10:
        return first + second
    return first * second if 0 < first < 100 and second >= 100 else None


def as_number(text: str) -> Decimal | None:
    """The number that a whole text is; a dollar sign may stand before it."""
    plain = SEPARATORS.sub("", text).strip().strip("$").strip()
    return to_decimal(plain) if NUMBER.fullmatch(plain) else None


def to_decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", "").replace("\u2212", "-"))
