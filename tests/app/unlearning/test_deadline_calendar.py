"""The calendar that settings describe: known places and zones, and a mistake that names itself."""

import datetime
from concurrent.futures import ThreadPoolExecutor

import holidays
import pytest
from pydantic import ValidationError

from app.unlearning.deadline_calendar import _holidays_of, make_calendar


def date(text):
    return datetime.date.fromisoformat(text)


def test_a_part_of_a_country_has_holidays_of_its_own():
    germany, bavaria = make_calendar("UTC", "DE", ""), make_calendar("UTC", "DE-BY", "")
    epiphany, unity = date("2026-01-06"), date("2026-10-03")
    assert not germany.is_holiday(epiphany)
    assert bavaria.is_holiday(epiphany)
    assert germany.is_holiday(unity)
    assert bavaria.is_holiday(unity)


def test_further_dates_count_beside_a_countrys_and_without_one():
    further = " 2026-12-24,2026-12-31 ,"
    for country in (None, "DE"):
        calendar = make_calendar("UTC", country, further)
        assert calendar.is_holiday(date("2026-12-24"))
        assert calendar.is_holiday(date("2026-12-31"))
        assert calendar.is_holiday(date("2026-12-25")) == (country == "DE")
        assert not calendar.is_holiday(date("2026-12-30"))


# What is kept of New Year's Day in the year before, among others.
@pytest.mark.parametrize("country", ["US", "GB", "IE", "DE", "FR", "PL"])
def test_a_year_by_itself_has_the_holidays_that_it_has_among_others(country):
    years = range(2018, 2041)
    among_others = holidays.country_holidays(country, years=[2017, *years, 2041])
    alone = set().union(*(_holidays_of(country, year) for year in years))
    assert alone == {day for day in among_others if day.year in years}


def test_many_threads_that_ask_first_get_one_answer():
    calendar = make_calendar("UTC", "FR", "")
    days = [datetime.date(year, 7, 14) for year in range(2018, 2060)] * 8
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(calendar.is_holiday, days))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("deadline_time_zone", "Europe/Nowhere"),
        ("deadline_time_zone", "Europe"),
        ("deadline_time_zone", "../../etc/passwd"),
        ("deadline_time_zone", ""),
        ("deadline_holidays", "XX"),
        ("deadline_holidays", "DE-ZZ"),
        ("deadline_holidays", "Germany, "),
        ("deadline_further_holidays", "24.12.2026"),
        ("deadline_further_holidays", "2026-12-24;2026-12-31"),
        ("deadline_further_holidays", "2026-02-29"),
    ],
)
def test_a_setting_that_says_nothing_known_stops_the_start_and_is_named(
    make_settings, database_url, setting, value
):
    with pytest.raises(ValidationError) as caught:
        make_settings(database_url=database_url, **{setting: value})
    assert setting.upper() in str(caught.value)
    assert repr(value[:10])[:-1] in str(caught.value)


@pytest.mark.parametrize("days", [-1, 91, "soon"])
def test_days_at_risk_are_a_sensible_number(make_settings, database_url, days):
    with pytest.raises(ValidationError, match="at_risk_days"):
        make_settings(database_url=database_url, at_risk_days=days)


def test_what_a_compose_file_passes_on_of_settings_that_are_not_set_is_none(
    make_settings, database_url
):
    settings = make_settings(
        database_url=database_url, deadline_holidays="", deadline_further_holidays=""
    )
    assert settings.deadline_holidays is None
