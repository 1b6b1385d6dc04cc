"""A look at the whole database: the log, its records, and the state that they speak of."""

from app.evidence.auditing._findings import Code, Finding
from app.evidence.auditing.audit import LogFigures, LogReport, stream_entries, verify_log

__all__ = ["Code", "Finding", "LogFigures", "LogReport", "stream_entries", "verify_log"]
