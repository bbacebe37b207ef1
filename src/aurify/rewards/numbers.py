"""Numbers as texts write them."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

Number = Decimal | Fraction
MAX_DIGITS = 50  # of a number that is divided, or raised to a power

# a comma, a LaTeX space or a thin space may separate thousands
SEPARATORS = re.compile(r"(?<=\d)(?:\\[,;! ]|\s*\{\s*,\s*\}\s*|,\\!\s*|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))")
FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
PLAIN = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
# a minus belongs to a number unless a digit stands before it: "3-5" is 3 and 5
NUMBER = re.compile(rf"(?<!\d)[-\u2212]?{PLAIN}")
VALUE = re.compile(  # with what makes another number of it: 1/2, 10^6, 6e23
    rf"(?P<base>(?<!\d)[-\u2212]?{PLAIN})"
    rf"(?:\s*/\s*(?P<divisor>{PLAIN})(?!\s*/)|\s*(?:\^|\*\*)\s*\{{?(?P<power>-?\d{{1,3}})\}}?|[eE](?P<ten>[+-]?\d{{1,3}})\b)?"
)
PART = re.compile(r"(?:[\^_]\s*\{?|\*\*\s*|\u221a\s*|sqrt\s*[({]?)$")  # a number after it is a part of something else


def numbers_in(text: str) -> list[Decimal]:
    """One after the other, each for itself: "1/10" holds 1 and 10."""
    return [to_decimal(found) for found in NUMBER.findall(SEPARATORS.sub("", text))]


def last_number(text: str) -> Number | None:
    """The value of the last number: "1/2" is a half, "10^6" a million; the 2 of "5 cm^2" is none."""
    text = FRACTION.sub(lambda m: f"{m[1] or m[2]}/{m[3] or m[4]}", SEPARATORS.sub("", text))
    for found in reversed(list(VALUE.finditer(text))):
        before = PART.search(text[max(0, found.start() - 8) : found.start()])
        if before is None:
            is_date = found["divisor"] and text[: found.start()].endswith("/")  # 1/2/2023
            return to_decimal(found["divisor"]) if is_date else evaluate_expression(found)
        if "^" not in before[0]:
            return None  # a root, or a number in another base
    return None


def evaluate_expression(found: re.Match[str]) -> Number | None:
    base = to_decimal(found["base"])
    if found["divisor"] and (divisor := to_decimal(found["divisor"])):
        return None if max(map(len, found.groups(""))) > MAX_DIGITS else Fraction(base) / Fraction(divisor)
    power, ten = int(found["power"] or 0), int(found["ten"] or 0)
    if (power or ten) and len(found["base"]) > MAX_DIGITS:
        return None
    if found["power"]:
        return Fraction(base) ** power if base or power >= 0 else None
    return Fraction(base) * Fraction(10) ** ten if ten else base


def as_number(text: str) -> Decimal | None:
    """The number that a whole text is; a dollar sign may stand before it."""
    plain = SEPARATORS.sub("", text).strip().strip("$").strip()
    return to_decimal(plain) if NUMBER.fullmatch(plain) else None


def to_decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", "").replace("\u2212", "-"))
