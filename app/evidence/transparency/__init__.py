"""The log as a transparency log: its tree, signed checkpoints, and where these go."""
