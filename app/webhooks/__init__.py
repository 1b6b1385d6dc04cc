"""Webhooks: what happened, told to other systems, signed and tried again until they take it."""
