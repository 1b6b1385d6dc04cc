"""The services of this worker process, for whatever Celery calls."""

from functools import lru_cache

from app.services import Services
from app.settings import get_settings


@lru_cache
def get_services() -> Services:
    """Return this process's services, made at first use."""
    return Services.from_settings(get_settings(), traced_as="lethe-worker")
