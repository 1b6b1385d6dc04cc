"""One JSON object a line on stderr: what happened, when, in which request.

Never sample values, never keys.
"""

import logging
import re
import sys
import traceback
from typing import TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, Processor

# Three decimals or more, as any number of a sample is printed with; versions and paths have fewer.
_NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d{3,}(?:[eE][+-]?\d+)?")


def _without_numbers(text: str) -> str:
    """Return an error's text without the numbers in it: a message of anybody's may quote data."""
    return _NUMBER.sub("<number>", text)


def _hide_numbers_of_errors(_logger: object, _method: str, event: EventDict) -> EventDict:
    if isinstance(text := event.get("exception"), str):
        event["exception"] = _without_numbers(text)
    return event


def _write_error(stream: TextIO, error: ExcInfo) -> None:
    _, value, _ = error
    stream.write("\n" + _without_numbers("".join(traceback.format_exception(value))))


HTTP_REQUEST_ID = "http_request_id"


def current_request_id() -> str | None:
    """Return the id of the HTTP request that this runs in; None outside of any."""
    found = structlog.contextvars.get_contextvars().get(HTTP_REQUEST_ID)
    return None if found is None else str(found)


_SHARED: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
    structlog.processors.format_exc_info,
    _hide_numbers_of_errors,
)


def never_print_locals() -> None:
    """Take from structlog's defaults what prints the variables of every frame under an error.

    They hold keys and samples. Called when `app` is imported, so that no process of ours prints
    them, whether it is a service, a pool's child, a command or somebody's script.
    """
    if structlog.is_configured():
        return
    *others, _ = structlog.get_config()["processors"]
    plain = structlog.dev.ConsoleRenderer(
        colors=sys.stdout.isatty(), exception_formatter=_write_error
    )
    structlog.configure(processors=[*others, plain])


def configure_logging(level: int = logging.INFO) -> None:
    """Send structlog's and the standard library's records through the same JSON formatter."""
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # http/middleware.py writes the access log, with the request's id.
    logging.getLogger("uvicorn.access").disabled = True
