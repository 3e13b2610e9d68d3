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
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
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


# How a date is written in English; where the month is a number, the day comes first.
WAYS = [
    "{day} {month} {year}",
    "{day} {mon} {year}",
    "{weekday}, {day} {month} {year}",
    "{wed} {day} {mon} {yy}",
    "{month} {day}, {year}",
    "{mon}. {day}, {year}",
    "{weekday}, {month} the {nth}, {year}",
    "{nth} of {month} {year}",
    "{nth} {mon} '{yy}",
    "{day}.{m}.{year}",
    "{dd}.{mm}.{yy}",
    "{dd}/{mm}/{year}",
    "{day}-{MON}-{yy}",
    "{year} {month} {day}",
    "the {ordinal} of {month}, {year}",
    "{month} the {ordinal}, {year_in_words}",
]


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
        [(choose.choice(WAYS).format(**pieces(date)), date.isoformat()) for date in part]
        for part in dates
    ]


def pieces(date: datetime.date) -> dict[str, object]:
    """What the braces in `WAYS` stand for."""
    day, year = date.day, date.year
    month, weekday = MONTHS[date.month - 1], WEEKDAYS[date.weekday()]
    end = "th" if 10 < day < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return {
        "day": day,
        "dd": f"{day:02}",
        "nth": f"{day}{end}",
        "ordinal": ordinal(day),
        "weekday": weekday,
        "wed": weekday[:3],
        "month": month,
        "mon": month[:3],
        "MON": month[:3].upper(),
        "m": date.month,
        "mm": f"{date.month:02}",
        "year": year,
        "yy": f"{year % 100:02}",
        "year_in_words": year_in_words(year),
    }


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
