"""The HTTP process: HTTP, SQL and evidence. Imports neither torch nor a solver, even indirectly."""

from app.logging import never_print_locals

never_print_locals()
