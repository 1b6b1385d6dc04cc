"""Audit log, signed records and their offline verification."""
