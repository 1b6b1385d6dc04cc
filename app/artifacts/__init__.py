"""Encrypted blobs and their keys."""
