"""Prints the API's schema: `python -m app.http.openapi > docs/openapi.json`."""

import json
import sys

from app.main import assemble


def render() -> str:
    """Return the schema as it is committed."""
    return json.dumps(assemble().openapi(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
