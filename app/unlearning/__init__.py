"""Unlearning requests and the queue that they form."""
