"""`lethe train-mixed`: the owner's side of networks, from a network and data to a registration."""
