"""Parse numbers with units, and dates, in short answers, and compare them."""

from __future__ import annotations

import math
import re
from datetime import date, datetime
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pint import Unit, UnitRegistry

NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<currency>[$€£¥]?)\s*"
    r"(?P<whole>\d{1,3}(?:,\d{3})+|\d+)?(?P<decimals>\.\d+)?"
    r"(?:[eE](?P<exponent>[-+]?\d{1,4})|\s*[x×*·]\s*10\s*(?:\^|\*\*)\s*\{?(?P<power>[-+]?\d{1,4})\}?)?"
    r"(?:\s*/\s*(?P<divisor>\d+)(?![.\d]))?"
    r"\s*(?P<unit>(?:[^\W\d_]|[%°'\"])[\w°/^.²³' -]*)?"
)
NOT_A_UNIT = re.compile(r"(?:to|or|and)\b|.*\s\d")  # a range, two answers, a second number
UNIT = re.compile(r"[A-Za-z°µμΩ][A-Za-z°µμΩ0-9/^. ]{0,30}")
MAX_DIGITS = 300  # exact arithmetic on more is slow
DATE_FORMATS = (
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
def parse_quantity(text: str) -> Quantity | None:
    """Parse a text that is one number with an optional unit; None otherwise ("3-5", "2019-05-01", "3 or 4").

    Thousands separators, fractions, percent, scientific notation and a leading currency sign are accepted.
    """
    text = _strip_number(text)
    match = NUMBER.fullmatch(text) if len(text) <= MAX_DIGITS else None
    if match is None or not (match["whole"] or match["decimals"]):
        return None
    unit = (match["unit"] or "").strip()
    if NOT_A_UNIT.match(unit):
        return None
    value = _value(match)
    is_integer = not (match["decimals"] or match["exponent"] or match["power"] or match["divisor"])
    return None if value is None else Quantity(value, match["currency"] or unit, is_integer)


def _strip_number(text: str) -> str:
    """Return the text without surrounding whitespace, a final period and LaTeX dollar signs."""
    text = text.strip().replace("−", "-").removesuffix(".")
    return text[1:-1].strip() if len(text) > 2 and text[0] == text[-1] == "$" else text


def _value(match: re.Match[str]) -> Fraction | int | None:
    integer = int((match["whole"] or "0").replace(",", ""))
    exponent = int(match["exponent"] or match["power"] or 0)
    if abs(exponent) > MAX_DIGITS or (match["divisor"] and int(match["divisor"]) == 0):
        return None
    value: Fraction | int = integer
    if match["decimals"]:
        digits = match["decimals"][1:]
        value = integer + Fraction(int(digits), 10 ** len(digits))
    if exponent:
        value = value * Fraction(10) ** exponent
    if match["divisor"]:
        value = Fraction(value) / int(match["divisor"])
    return -value if match["sign"] == "-" else value


def quantities_equal(predicted: Quantity, target: Quantity, tolerance: float | None = None) -> bool:
    """Return whether both are the same quantity: "10 cm" equals "0.1 m", "12 cm" does not equal "12 kg".

    `tolerance` is relative; by default integers must be exact and decimals may differ by 1e-6.
    """
    allowed = (0.0 if target.is_integer else 1e-6) if tolerance is None else tolerance
    value: Fraction | int | None = predicted.value
    if predicted.unit != target.unit and (
        not predicted.unit or not target.unit or _normalize_unit(predicted.unit) != _normalize_unit(target.unit)
    ):
        value = convert_unit(predicted.value, predicted.unit, target.unit)
        allowed = max(allowed, 1e-9)  # the conversion's own rounding
    if value is None:
        return False
    if value == target.value:
        return True
    difference, truth = abs(Fraction(value - target.value)), abs(Fraction(target.value))
    return difference <= Fraction(allowed) * truth


@lru_cache(maxsize=4096)
def _normalize_unit(unit: str) -> str:
    """Return a known unit as written, and any other noun in lower case and singular."""
    plain = " ".join(unit.rstrip(".!?,;: ").split())
    return plain if parse_unit(plain) is not None else plain.lower().removesuffix("s")


def convert_unit(value: Fraction | int, unit: str, target: str) -> Fraction | None:
    """Return the value in the target unit; None if the units are incompatible or one is unknown."""
    one, other = parse_unit(unit.rstrip(".!?,;: ")), parse_unit(target.rstrip(".!?,;: "))
    if one is None or other is None or one.dimensionality != other.dimensionality:
        return None
    try:
        result = float(_unit_registry().Quantity(float(value), one).to(other).magnitude)
    except OverflowError:
        return None
    return Fraction(result) if math.isfinite(result) else None


@lru_cache(maxsize=4096)
def parse_unit(text: str) -> Unit | None:
    """Parse a unit: an empty text is dimensionless, "%" is a hundredth; None for an unknown unit."""
    from pint.errors import PintError

    text = "percent" if text == "%" else text.replace("²", "^2").replace("³", "^3")
    if text and not UNIT.fullmatch(text):
        return None
    for spelling in dict.fromkeys((text, text.lower())):
        try:
            return _unit_registry().parse_units(spelling.replace("^", "**"))
        except (PintError, ValueError, TypeError, AttributeError):  # pint raises these on words that are not units
            continue
    return None


@lru_cache(maxsize=1)
def _unit_registry() -> UnitRegistry:
    """Return pint's unit registry, built on first use (half a second)."""
    from pint import UnitRegistry

    return UnitRegistry(autoconvert_offset_to_baseunit=True)


@lru_cache(maxsize=65536)
def parse_date(text: str) -> date | None:
    """Parse a date in one of DATE_FORMATS; None for anything else."""
    text = text.strip().rstrip(".")
    if not (8 <= len(text) <= 20 and text[-1].isdigit()):
        return None
    for form in DATE_FORMATS:
        try:
            return datetime.strptime(text, form).date()
        except ValueError:
            continue
    return None
