"""The HTTP process: HTTP, SQL and evidence. Imports neither torch nor a solver, even indirectly."""
