"""The calendar that an operator configured: a time zone, a country's holidays, further dates."""

import datetime
import zoneinfo
from collections.abc import Iterator
from functools import lru_cache

import holidays

from app.unlearning.deadlines import APPLIES_FROM, Calendar


@lru_cache
def make_calendar(time_zone: str, country: str | None, further: str) -> Calendar:
    """Return the calendar of three settings.

    Args:
        time_zone: DEADLINE_TIME_ZONE.
        country: DEADLINE_HOLIDAYS; None for no holidays but the further ones.
        further: DEADLINE_FURTHER_HOLIDAYS.

    Raises:
        ValueError: One of them says nothing that is known; the message names it.
    """
    zone = _zone(time_zone)
    dates = frozenset(_dates(further))
    if country is None:
        return Calendar(zone, dates.__contains__)
    _require_known(country)
    return Calendar(zone, lambda day: day in dates or day in _holidays_of(country, day.year))


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(
            f"DEADLINE_TIME_ZONE: {name!r} is no time zone; take one of the IANA database, such as"
            " Europe/Berlin"
        ) from error


def _dates(text: str) -> Iterator[datetime.date]:
    for part in text.split(","):
        if not (word := part.strip()):
            continue
        try:
            yield datetime.date.fromisoformat(word)
        except ValueError as error:
            raise ValueError(
                f"DEADLINE_FURTHER_HOLIDAYS: {word!r} is no date; write 2026-12-24,2026-12-31"
            ) from error


def _require_known(country: str) -> None:
    try:
        _holidays_of(country, APPLIES_FROM.year)
    except NotImplementedError as error:  # the library's word for an unknown place
        raise ValueError(
            f"DEADLINE_HOLIDAYS: {country!r} is no place whose holidays are known; take a code of"
            " ISO 3166, such as DE, or DE-BY for a part of a country"
        ) from error


# A year of its own for each call: the library's calendars grow while they are asked, and an answer
# to one thread may come before another has filled the year.
@lru_cache
def _holidays_of(code: str, year: int) -> frozenset[datetime.date]:
    country, _, part = code.partition("-")
    return frozenset(holidays.country_holidays(country, subdiv=part or None, years=year))
