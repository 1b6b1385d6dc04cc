"""Until when what a deletion supersedes is kept: fixed in the transaction that supersedes it."""

import datetime
from dataclasses import dataclass
from typing import Self

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Deadlines:
    """When the keys of what one deletion supersedes are destroyed; None: in its transaction.

    Settings that change later change nothing about it: a signed record names these times.

    Attributes:
        downloads: Of the old weights as delivered, which can be downloaded until then.
        replay: Of what a replay needs (the old weights without noise, the old statistics, the
            forget samples), which never leaves the service.
    """

    downloads: datetime.datetime | None
    replay: datetime.datetime | None

    @classmethod
    def of(cls, session: Session, settings: Settings) -> Self:
        """Return the deadlines that the settings give to what is superseded now."""
        now = session.execute(select(func.clock_timestamp())).scalar_one()

        def end(days: int) -> datetime.datetime | None:
            return now + datetime.timedelta(days=days) if days else None

        return cls(end(settings.superseded_weights_days), end(settings.replay_days))

    @property
    def last(self) -> datetime.datetime | None:
        """Return when the last of it is due."""
        return max((end for end in (self.downloads, self.replay) if end), default=None)
