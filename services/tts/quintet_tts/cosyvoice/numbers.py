"""English number words, as Britons say them: "two thousand and twenty-four"."""

from __future__ import annotations

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TIES = "_ _ twenty thirty forty fifty sixty seventy eighty ninety"
_POWERS = (
    "_ thousand million billion trillion quadrillion quintillion sextillion septillion octillion nonillion decillion"
)
_SMALL, _TENS, _SCALES = _UNITS.split(), _TIES.split(), _POWERS.split()


def in_words(digits: str) -> str:
    """A run of digits as a number; digit by digit where it begins with a nought or has no name."""
    if len(digits) > 3 * len(_SCALES) or (len(digits) > 1 and int(digits[0]) == 0):
        return " ".join(_SMALL[int(digit)] for digit in digits)
    number = int(digits)
    if number < 1000:
        return _below_thousand(number)
    groups = [int(group) for group in f"{number:,}".split(",")]
    said = [
        f"{_below_thousand(group)} {_SCALES[scale]}"
        for group, scale in zip(groups[:-1], range(len(groups) - 1, 0, -1), strict=True)
        if group
    ]
    rest = groups[-1]
    words = ", ".join(said)
    if not rest:
        return words
    return f"{words}{' and' if rest < 100 else ','} {_below_thousand(rest)}"


def _below_thousand(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    words = [f"{_SMALL[hundreds]} hundred"] if hundreds else []
    if rest or not hundreds:
        tens, ones = divmod(rest, 10)
        words.append(_SMALL[rest] if rest < 20 else _TENS[tens] + (f"-{_SMALL[ones]}" if ones else ""))
    return " and ".join(words)
