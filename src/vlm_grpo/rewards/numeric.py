"""Numbers with units, and dates, read from a short answer."""

from __future__ import annotations

import math
import re
from datetime import date, datetime
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<currency>[$€£¥]?)\s*"
    r"(?P<whole>\d{1,3}(?:,\d{3})+|\d+)?(?P<decimals>\.\d+)?"
    r"(?:[eE](?P<exponent>[-+]?\d{1,4})|\s*[x×*·]\s*10\s*(?:\^|\*\*)\s*\{?(?P<power>[-+]?\d{1,4})\}?)?"
    r"(?:\s*/\s*(?P<divisor>\d+)(?![.\d]))?"
    r"\s*(?P<unit>(?:[^\W\d_]|[%°'\"])[\w°/^.²³' -]*)?"
)
NOT_A_UNIT = re.compile(r"(?:to|or|and)\b|.*\s\d")  # a range, two answers, a second number
UNIT = re.compile(r"[A-Za-z°µμΩ][A-Za-z°µμΩ0-9/^. ]{0,30}")
MAX_DIGITS = 300  # more is a ramble, and exact arithmetic on it is slow
DATE_FORMS = (
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%Y.%m.%d",
    "%d %B %Y",
    "%d %b %Y",
    "%B %d, %Y",
    "%b %d, %Y",
    "%B %d %Y",
    "%b %d %Y",
)


class Quantity(NamedTuple):
    """An exact value, its unit as written (empty for none), and whether it was written as an integer."""

    value: Fraction | int
    unit: str
    is_integer: bool


@lru_cache(maxsize=65536)
def quantity(text: str) -> Quantity | None:
    """The one number with an optional unit that the text is; None for anything else ("3-5", "2019-05-01", "3 or 4").

    Thousands separators, fractions, percent, scientific notation and a currency sign in front are read.
    """
    text = _bare(text)
    match = NUMBER.fullmatch(text) if len(text) <= MAX_DIGITS else None
    if match is None or not (match["whole"] or match["decimals"]):
        return None
    unit = (match["unit"] or "").strip()
    if NOT_A_UNIT.match(unit):
        return None
    value = _value(match)
    is_integer = not (match["decimals"] or match["exponent"] or match["power"] or match["divisor"])
    return None if value is None else Quantity(value, match["currency"] or unit, is_integer)


def _bare(text: str) -> str:
    """Without white space, a full stop and the dollar signs of LaTeX around it."""
    text = text.strip().replace("−", "-").removesuffix(".")
    return text[1:-1].strip() if len(text) > 2 and text[0] == text[-1] == "$" else text


def _value(match: re.Match[str]) -> Fraction | int | None:
    whole = int((match["whole"] or "0").replace(",", ""))
    exponent = int(match["exponent"] or match["power"] or 0)
    if abs(exponent) > MAX_DIGITS or (match["divisor"] and int(match["divisor"]) == 0):
        return None
    value: Fraction | int = whole
    if match["decimals"]:
        digits = match["decimals"][1:]
        value = whole + Fraction(int(digits), 10 ** len(digits))
    if exponent:
        value = value * Fraction(10) ** exponent
    if match["divisor"]:
        value = Fraction(value) / int(match["divisor"])
    return -value if match["sign"] == "-" else value


def agree(given: Quantity, right: Quantity, tolerance: float | None = None) -> bool:
    """Whether both are the same amount: units are equal or convert ("10 cm" is "0.1 m", "12 cm" is not "12 kg").

    `tolerance` is relative; without one integers are exact and decimals may differ by 1e-6.
    """
    allowed = (0.0 if right.is_integer else 1e-6) if tolerance is None else tolerance
    value: Fraction | int | None = given.value
    if given.unit != right.unit and (not given.unit or not right.unit or _noun(given.unit) != _noun(right.unit)):
        value = converted(given.value, given.unit, right.unit)
        allowed = max(allowed, 1e-9)  # the conversion's own rounding
    if value is None:
        return False
    return value == right.value or abs(value - right.value) <= Fraction(allowed) * abs(right.value)


@lru_cache(maxsize=4096)
def _noun(unit: str) -> str:
    """The unit as written; words that are no unit of measurement without case and plural."""
    plain = " ".join(unit.rstrip(".!?,;: ").split())
    return plain if unit_of(plain) is not None else plain.lower().removesuffix("s")


def converted(value: Fraction | int, unit: str, target: str) -> Fraction | None:
    """The value in the target unit; None where the units do not convert into each other, or one is no unit."""
    one, other = unit_of(unit.rstrip(".!?,;: ")), unit_of(target.rstrip(".!?,;: "))
    if one is None or other is None or one.dimensionality != other.dimensionality:
        return None
    try:
        result = float(_registry().Quantity(float(value), one).to(other).magnitude)
    except OverflowError:
        return None
    return Fraction(result) if math.isfinite(result) else None


@lru_cache(maxsize=4096)
def unit_of(text: str) -> Any | None:
    """The unit that a text names (no text is the pure number, "%" a hundredth); None when it names none."""
    from pint.errors import PintError

    text = "percent" if text == "%" else text.replace("²", "^2").replace("³", "^3")
    if text and not UNIT.fullmatch(text):
        return None
    for spelling in dict.fromkeys((text, text.lower())):
        try:
            return _registry().parse_units(spelling.replace("^", "**"))
        except (PintError, ValueError, TypeError, AttributeError):  # what pint raises on words that are no unit
            continue
    return None


@lru_cache(maxsize=1)
def _registry() -> Any:
    """Units by the pint library, made when a conversion is first needed (half a second)."""
    from pint import UnitRegistry

    return UnitRegistry(autoconvert_offset_to_baseunit=True)


@lru_cache(maxsize=65536)
def calendar_date(text: str) -> date | None:
    """The day that the text names in one of DATE_FORMS; None for anything else."""
    text = text.strip().rstrip(".")
    if not (8 <= len(text) <= 20 and text[-1].isdigit()):
        return None
    for form in DATE_FORMS:
        try:
            return datetime.strptime(text, form).date()
        except ValueError:
            continue
    return None
