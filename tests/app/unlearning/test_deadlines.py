"""Deadlines, worked by hand, and compared with an implementation that walks from day to day."""

import datetime
import zoneinfo
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.unlearning.deadline_calendar import make_calendar
from app.unlearning.deadlines import Calendar, Pause, Present, months_after

UTC = datetime.UTC
DAY = datetime.timedelta(days=1)
BERLIN = make_calendar("Europe/Berlin", "DE", "")
NO_HOLIDAYS = make_calendar("UTC", None, "")


def date(text):
    return datetime.date.fromisoformat(text)


def moment(text):
    return datetime.datetime.fromisoformat(text)


# Worked by hand, with a printed calendar.


@pytest.mark.parametrize(
    ("received", "due"),
    [
        # EDPB Guidelines 01/2022, the two examples on how the period is calculated.
        ("2023-03-05", "2023-04-05"),
        ("2022-08-31", "2022-09-30"),
        # Short months end with their last day, in leap years and in others.
        ("2025-01-31", "2025-02-28"),
        ("2024-01-31", "2024-02-29"),
        ("2024-01-30", "2024-02-29"),
        ("2024-02-29", "2024-03-29"),
        ("2025-02-28", "2025-03-28"),  # the last day of a month is not kept the last
        ("2025-12-31", "2026-02-02"),  # Saturday 31 January -> Monday
        ("2026-05-31", "2026-06-30"),
        # Saturdays and Sundays move on to Monday.
        ("2026-01-07", "2026-02-09"),  # Saturday 7 February
        ("2026-01-08", "2026-02-09"),  # Sunday 8 February
        ("2026-01-09", "2026-02-09"),  # Monday itself
    ],
)
def test_a_month_ends_on_the_same_date_or_the_last_or_the_next_working_day(received, due):
    noon = moment(f"{received}T12:00:00+00:00")
    assert NO_HOLIDAYS.due_on(noon) == date(due)
    assert NO_HOLIDAYS.due_at(noon) == moment(f"{due}T00:00:00+00:00") + DAY


@pytest.mark.parametrize(
    ("received", "due"),
    [
        # Good Friday 3 April 2026, a weekend, Easter Monday -> Tuesday.
        ("2026-03-03", "2026-04-07"),
        ("2026-03-04", "2026-04-07"),
        ("2026-03-02", "2026-04-02"),
        # Thursday and Friday are Christmas in 2025, then a weekend.
        ("2025-11-25", "2025-12-29"),
        ("2025-12-01", "2026-01-02"),  # New Year's Day is a Thursday
    ],
)
def test_public_holidays_move_a_deadline_on(received, due):
    assert BERLIN.due_on(moment(f"{received}T12:00:00+00:00")) == date(due)


@pytest.mark.parametrize(
    ("received", "months", "due"),
    [
        # 28 February is where the first month ends, and the 28th means nothing for the rest.
        ("2025-01-31", 2, "2025-03-31"),
        ("2025-01-31", 3, "2025-04-30"),
        ("2025-11-30", 3, "2026-03-02"),  # Saturday 28 February -> Monday
        # The first month ends on Tuesday 7 April instead of the 3rd, which is not passed on.
        ("2026-03-03", 2, "2026-05-04"),  # Sunday 3 May -> Monday
        ("2026-03-03", 3, "2026-06-03"),
    ],
)
def test_an_extended_period_is_counted_from_receipt_in_one_piece(received, months, due):
    assert BERLIN.due_on(moment(f"{received}T12:00:00+00:00"), months=months) == date(due)


def test_the_day_of_receipt_is_a_local_one():
    late = moment("2026-06-09T22:30:00+00:00")  # half past midnight of the 10th in Berlin
    assert NO_HOLIDAYS.due_on(late) == date("2026-07-09")
    assert BERLIN.due_on(late) == date("2026-07-10")


def test_a_deadline_ends_with_the_local_day_in_winter_and_in_summer():
    winter = BERLIN.due_at(moment("2026-01-27T12:00:00+00:00"))
    assert winter == moment("2026-02-27T23:00:00+00:00")
    # Saturday 28 March -> Monday 30 March, the day after the clocks went forward.
    summer = BERLIN.due_at(moment("2026-02-28T12:00:00+00:00"))
    assert summer == moment("2026-03-30T22:00:00+00:00")


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25)])
def test_a_day_on_which_the_clocks_change_ends_when_it_ends(day, hours):
    length = BERLIN.end_of(date(day)) - BERLIN.end_of(date(day) - DAY)
    assert length == datetime.timedelta(hours=hours)


@pytest.mark.parametrize(
    ("received", "checks", "due"),
    [
        # 2 April, and the seven days that the check took.
        ("2026-03-02", [("2026-03-04T09:00", "2026-03-11T18:00")], "2026-04-09"),
        # Two checks of three and two days: 7 April.
        (
            "2026-03-02",
            [("2026-03-03T09:00", "2026-03-06T10:00"), ("2026-03-09T23:00", "2026-03-11T01:00")],
            "2026-04-07",
        ),
        # Asked and answered on one day.
        ("2026-03-02", [("2026-03-04T00:00", "2026-03-04T23:59")], "2026-04-02"),
        # 31 days after 1 February would be 4 March; a month from the confirmation, on a Sunday,
        # ends earlier.
        ("2026-01-01", [("2026-01-01T13:00", "2026-02-01T09:00")], "2026-03-02"),
    ],
)
def test_the_clock_stands_still_while_an_identity_is_checked(received, checks, due):
    pauses = [Pause(moment(f"{a}+00:00"), moment(f"{b}+00:00")) for a, b in checks]
    noon = moment(f"{received}T12:00:00+00:00")
    assert NO_HOLIDAYS.due_on(noon, pauses=pauses) == date(due)


# An independent implementation, which knows no arithmetic of months.


def walk_months(day, months):
    """Walk on until the month is the wanted one and the date, or its last day, is reached."""
    passed, place = 0, day
    while True:
        place += DAY
        if place.day == 1:
            passed += 1
        is_last = (place + DAY).day == 1
        if passed == months and (place.day == day.day or (is_last and place.day < day.day)):
            return place


def walk_due(calendar, received_at, months, pauses):
    def local(at):
        return at.astimezone(calendar.zone).date()

    last = walk_months(local(received_at), months)
    if pauses:
        for pause in pauses:
            midnight = local(pause.began_at)
            while midnight < local(pause.ended_at):
                midnight += DAY
                last += DAY
        anew = walk_months(local(pauses[-1].ended_at), months)
        last = min(last, anew)
    while last.strftime("%a") in {"Sat", "Sun"} or calendar.is_holiday(last):
        last += DAY
    return last


ZONES = sorted(zoneinfo.available_timezones())
zones = st.sampled_from(ZONES).map(zoneinfo.ZoneInfo)
days = st.dates(date("2018-05-25"), date("2060-01-01"))
moments = st.datetimes(
    datetime.datetime(2018, 5, 26),  # noqa: DTZ001 - hypothesis adds the zone
    datetime.datetime(2060, 1, 1),  # noqa: DTZ001 - as above
    timezones=st.just(UTC),
)
lengths = st.integers(1, 3)


@st.composite
def calendars(draw):
    holidays = draw(st.frozensets(days.filter(lambda day: day.weekday() < 5), max_size=50))
    if draw(st.booleans()):
        return Calendar(draw(zones), lambda day: day in holidays or BERLIN.is_holiday(day))
    return Calendar(draw(zones), holidays.__contains__)


@st.composite
def histories(draw):
    """A receipt, and checks after it that do not overlap."""
    received_at = draw(moments)
    count = 2 * draw(st.integers(0, 3))
    steps = draw(
        st.lists(
            st.timedeltas(datetime.timedelta(), datetime.timedelta(days=40)),
            min_size=count,
            max_size=count,
        )
    )
    times = [received_at]
    for step in steps:
        times.append(times[-1] + step)
    pauses = [Pause(a, b) for a, b in zip(times[1::2], times[2::2], strict=True)]
    return received_at, pauses


@given(days, lengths)
def test_months_are_those_that_one_walks(day, months):
    assert months_after(day, months) == walk_months(day, months)


@given(calendars(), histories(), lengths)
def test_a_deadline_is_where_walking_from_day_to_day_ends(calendar, history, months):
    received_at, pauses = history
    expected = walk_due(calendar, received_at, months, pauses)
    assert calendar.due_on(received_at, months=months, pauses=pauses) == expected


@given(calendars(), histories(), lengths)
def test_a_deadline_is_a_working_day_between_what_either_reading_of_a_check_gives(
    calendar, history, months
):
    received_at, pauses = history
    due = calendar.due_on(received_at, months=months, pauses=pauses)
    assert due.weekday() < 5
    assert not calendar.is_holiday(due)
    assert due >= calendar.due_on(received_at, months=months)
    if pauses:
        assert due <= calendar.due_on(pauses[-1].ended_at, months=months)


@given(calendars(), moments, moments, lengths)
def test_who_asked_later_is_not_due_earlier(calendar, one, other, months):
    earlier, later = sorted((one, other))
    assert calendar.due_at(earlier, months=months) <= calendar.due_at(later, months=months)
    assert calendar.due_at(earlier, months=months) <= calendar.due_at(earlier, months=months + 1)


@given(zones, days)
def test_the_end_of_a_day_is_its_first_moment_that_is_not_part_of_it(zone, day):
    calendar = Calendar(zone, lambda _: False)
    # Minute by minute: no zone has changed its clock within one since 2018.
    at = datetime.datetime.combine(day, datetime.time(10), UTC) - datetime.timedelta(hours=14)
    while at.astimezone(zone).date() <= day:
        at += datetime.timedelta(minutes=1)
    assert calendar.end_of(day) == at


@given(calendars(), moments, moments, st.integers(0, 90))
def test_overdue_and_at_risk_are_what_the_days_left_say(calendar, received_at, now, at_risk_days):
    due_at = calendar.due_at(received_at)
    standing = Present(calendar, now, at_risk_days).standing(due_at, is_open=True)
    assert standing.due_on == calendar.due_on(received_at)
    assert standing.overdue == (standing.days_left < 0) == (now >= due_at)
    assert standing.at_risk == (0 <= standing.days_left <= at_risk_days)
    ended = Present(calendar, now, at_risk_days).standing(due_at, is_open=False)
    assert (ended.due_on, ended.days_left) == (standing.due_on, None)
    assert not ended.overdue
    assert not ended.at_risk


def test_days_left_count_down_by_one_a_day_through_the_deadline():
    due_at = NO_HOLIDAYS.due_at(moment("2026-03-05T12:00:00+00:00"))  # Monday 6 April
    hours = [moment("2026-04-01T00:00:00+00:00") + n * DAY / 24 for n in range(24 * 9)]
    left = [Present(NO_HOLIDAYS, now, 7).standing(due_at, is_open=True).days_left for now in hours]
    assert sorted(set(left), reverse=True) == [5, 4, 3, 2, 1, 0, -1, -2, -3]
    assert all(before - after in {0, 1} for before, after in pairwise(left))
    assert all(left.count(days) == 24 for days in set(left))


def test_the_moment_at_which_the_last_day_ends_is_late():
    due_at = NO_HOLIDAYS.due_at(moment("2026-03-05T12:00:00+00:00"))

    def standing(now):
        return Present(NO_HOLIDAYS, now, 7).standing(due_at, is_open=True)

    last = standing(due_at - datetime.timedelta(microseconds=1))
    assert (last.days_left, last.at_risk, last.overdue) == (0, True, False)
    first = standing(due_at)
    assert (first.days_left, first.at_risk, first.overdue) == (-1, False, True)


def test_a_clock_that_stands_still_is_neither_late_nor_at_risk():
    standing = Present(NO_HOLIDAYS, moment("2026-04-01T00:00:00+00:00"), 90).standing(
        None, is_open=True
    )
    assert (standing.due_on, standing.days_left) == (None, None)
    assert not standing.at_risk
    assert not standing.overdue
