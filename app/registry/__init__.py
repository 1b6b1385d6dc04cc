"""Registered models, their revisions and stored statistics."""
