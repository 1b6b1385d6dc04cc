"""What signed records say, version by version, and how they become bytes."""
