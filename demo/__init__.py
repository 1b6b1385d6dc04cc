"""`lethe demo`: the whole way on real data, from training to certificates."""
