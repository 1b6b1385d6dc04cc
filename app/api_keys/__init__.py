"""API keys over HTTP: list, make, rotate, revoke."""
