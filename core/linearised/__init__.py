"""Mixed-linear networks: the last layers of a network, linearised around public weights."""
