import io
import json
import logging

import pytest
import structlog

from app.logging import configure_logging, never_print_locals


@pytest.fixture
def log_lines():
    """Return a function that gives the JSON lines written so far."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    names = ("uvicorn", "uvicorn.error", "uvicorn.access")
    switched = {name: logging.getLogger(name).disabled for name in names}
    configure_logging()
    stream = io.StringIO()
    root.handlers[0].setStream(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers, root.level = handlers, level
    for name, disabled in switched.items():
        logging.getLogger(name).disabled = disabled
    structlog.reset_defaults()
    never_print_locals()
