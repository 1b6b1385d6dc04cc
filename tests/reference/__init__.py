"""Slow, independent versions of what the product computes."""
