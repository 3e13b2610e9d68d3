"""Dates as people write them, for the translation example: what it learns to read without data."""

from __future__ import annotations

import datetime
import random

FIRST_YEAR, YEARS = 1950, 100  # so that two digits say which year
# fmt: off
SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
]
# fmt: on
TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
    "twenty": "twentieth",
    "thirty": "thirtieth",
}


def make_dates(*counts: int) -> list[list[tuple[str, str]]]:
    """Lists of `counts` dates, each written in some way and in ISO 8601, always the same ones.

    No date occurs twice, in whatever way it is written.
    """
    choose = random.Random(0)
    first = datetime.date(FIRST_YEAR, 1, 1)
    days = (datetime.date(FIRST_YEAR + YEARS, 1, 1) - first).days
    sample = iter(choose.sample(range(days), sum(counts)))
    dates = [
        [first + datetime.timedelta(days=next(sample)) for _ in range(count)] for count in counts
    ]
    return [
        [(choose.choice(ways_to_write(date)), date.isoformat()) for date in part] for part in dates
    ]


def ways_to_write(date: datetime.date) -> list[str]:
    """The date in English; where the month is a number, the day comes first."""
    day, year = date.day, date.year
    end = "th" if 10 < day < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return [
        f"{day} {date:%B} {year}",
        f"{day} {date:%b} {year}",
        f"{date:%A}, {day} {date:%B} {year}",
        f"{date:%a} {day} {date:%b} {date:%y}",
        f"{date:%B} {day}, {year}",
        f"{date:%b}. {day}, {year}",
        f"{date:%A}, {date:%B} the {day}{end}, {year}",
        f"{day}{end} of {date:%B} {year}",
        f"{day}{end} {date:%b} '{date:%y}",
        f"{day}.{date.month}.{year}",
        f"{date:%d.%m.%y}",
        f"{date:%d/%m/%Y}",
        f"{day}-{date:%b-%y}".upper(),
        f"{year} {date:%B} {day}",
        f"the {ordinal(day)} of {date:%B}, {year}",
        f"{date:%B} the {ordinal(day)}, {year_in_words(year)}",
    ]


def in_words(number: int) -> str:
    """A number from 0 to 99."""
    if number < 20:
        return SMALL[number]
    ten, one = divmod(number, 10)
    return f"{TENS[ten]}-{SMALL[one]}" if one else TENS[ten]


def ordinal(day: int) -> str:
    start, hyphen, last = in_words(day).rpartition("-")
    return start + hyphen + ORDINALS.get(last, f"{last}th")


def year_in_words(year: int) -> str:
    if 2000 <= year < 2010:
        return f"two thousand and {in_words(year - 2000)}".removesuffix(" and zero")
    return f"{in_words(year // 100)} {in_words(year % 100)}"
