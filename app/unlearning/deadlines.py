"""When a request has to be answered (Art. 12(3) GDPR).

Counted as Regulation (EEC, Euratom) No 1182/71 counts; Art. 2 and 3 below are its articles.
Calendar arithmetic alone: no clock, no settings, no database.
"""

import calendar
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass

APPLIES_FROM = datetime.datetime(2018, 5, 25, tzinfo=datetime.UTC)  # Art. 99(2) GDPR
MONTHS = 1  # Art. 12(3): "within one month of receipt of the request"
MOST_EXTRA_MONTHS = 2  # "may be extended by two further months where necessary"

_ONE_DAY = datetime.timedelta(days=1)
_DECEMBER = 12
_SATURDAY = 5


@dataclass(frozen=True, slots=True)
class Pause:
    """A time that does not count, since the person's identity was in doubt (Art. 12(6) GDPR).

    Attributes:
        began_at: When the controller asked for what would confirm the identity.
        ended_at: When it was confirmed.
    """

    began_at: datetime.datetime
    ended_at: datetime.datetime


@dataclass(frozen=True, slots=True)
class Calendar:
    """Where the days of a deadline begin and end, and which of them are worked on.

    Attributes:
        zone: Whose days are counted.
        is_holiday: Whether a day is a public holiday where the controller acts (Art. 2(1)).
    """

    zone: datetime.tzinfo
    is_holiday: Callable[[datetime.date], bool]

    def day_of(self, moment: datetime.datetime) -> datetime.date:
        """Return the local day that a moment is part of."""
        return moment.astimezone(self.zone).date()

    def end_of(self, day: datetime.date) -> datetime.datetime:
        """Return the first moment after a local day, in UTC: whoever acts before it is in time.

        Art. 3(2)(c) lets a period end "with the expiry of the last hour" of its last day, which may
        have 23 hours, or 25.
        """
        midnight = datetime.datetime.combine(day + _ONE_DAY, datetime.time(), self.zone)
        return midnight.astimezone(datetime.UTC)

    def working_day_from(self, day: datetime.date) -> datetime.date:
        """Return the day itself or the next one that is worked on.

        Art. 3(4): a period whose last day is a public holiday, Sunday or Saturday ends with the
        following working day.
        """
        while day.weekday() >= _SATURDAY or self.is_holiday(day):
            day += _ONE_DAY
        return day

    def due_on(
        self, received_at: datetime.datetime, *, months: int = MONTHS, pauses: Sequence[Pause] = ()
    ) -> datetime.date:
        """Return the last day for an answer.

        An extended period is one period of so many months from receipt: it is not counted from the
        end of the first, so that a day that was clamped or moved to a Monday is not passed on.

        Nothing in the GDPR says what a check of the identity does to the period. EDPB Guidelines
        01/2022 (version 2.1), paragraph 159: "there may be a suspension in time until the
        controller has obtained the information needed", if it asked without undue delay. Others
        let the month begin anew with the confirmation, which is later but for the odd short
        February. We take the earlier of the two.

        Args:
            received_at: When the request reached the controller.
            months: The length of the period, extension included.
            pauses: Checks of the identity that ended in its confirmation, in their order.
        """
        # The day of the event is not part of the period (Art. 3(1)): from the 5th to the 5th.
        last = months_after(self.day_of(received_at), months)
        if pauses:
            # Whole days alone, in the person's favour: what was asked and answered on one day
            # stops nothing.
            last += sum(map(self._length_of, pauses), datetime.timedelta())
            last = min(last, months_after(self.day_of(pauses[-1].ended_at), months))
        return self.working_day_from(last)

    def due_at(
        self, received_at: datetime.datetime, *, months: int = MONTHS, pauses: Sequence[Pause] = ()
    ) -> datetime.datetime:
        """Return the moment from which an answer is late: the end of `due_on`."""
        return self.end_of(self.due_on(received_at, months=months, pauses=pauses))

    def _length_of(self, pause: Pause) -> datetime.timedelta:
        return self.day_of(pause.ended_at) - self.day_of(pause.began_at)


def months_after(day: datetime.date, months: int) -> datetime.date:
    """Return the same date some months on, or the last day of a month that does not have it.

    Art. 3(2)(c) of Regulation 1182/71.
    """
    whole = day.year * _DECEMBER + day.month - 1 + months
    year, month = divmod(whole, _DECEMBER)
    _, length = calendar.monthrange(year, month + 1)
    return datetime.date(year, month + 1, min(day.day, length))


@dataclass(frozen=True, slots=True)
class Standing:
    """How a request stands against its deadline at some moment.

    Attributes:
        due_on: The last local day for an answer; None while the clock stands still.
        days_left: Calendar days from today to that day: 0 on the day itself, negative after it;
            None when nothing is waited for.
        at_risk: It is near.
        overdue: It has passed.
    """

    due_on: datetime.date | None
    days_left: int | None
    at_risk: bool
    overdue: bool


@dataclass(frozen=True, slots=True)
class Present:
    """A moment, and what is near it.

    Attributes:
        calendar: Whose days are counted.
        now: The moment.
        at_risk_days: A deadline so many days away, or fewer, is at risk.
    """

    calendar: Calendar
    now: datetime.datetime
    at_risk_days: int

    @property
    def horizon(self) -> datetime.datetime:
        """Return the latest deadline that is at risk."""
        today = self.calendar.day_of(self.now)
        return self.calendar.end_of(today + datetime.timedelta(days=self.at_risk_days))

    def standing(self, due_at: datetime.datetime | None, *, is_open: bool) -> Standing:
        """Return how a request stands.

        Args:
            due_at: Its deadline; None while the clock stands still.
            is_open: Whether it still waits for its end.
        """
        if due_at is None:
            return Standing(None, None, at_risk=False, overdue=False)
        # The moment itself belongs to the next day.
        due_on = self.calendar.day_of(due_at - datetime.timedelta(microseconds=1))
        if not is_open:
            return Standing(due_on, None, at_risk=False, overdue=False)
        overdue = self.now >= due_at
        return Standing(
            due_on,
            (due_on - self.calendar.day_of(self.now)).days,
            at_risk=not overdue and due_at <= self.horizon,
            overdue=overdue,
        )
