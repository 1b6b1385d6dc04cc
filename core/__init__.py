"""Unlearning numerics on torch: no I/O but safetensors, no clock, no environment."""
