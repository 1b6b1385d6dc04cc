"""What `lethe` does, one module a subject; `app.cli` puts them together."""
