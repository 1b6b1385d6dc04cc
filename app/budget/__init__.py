"""The privacy budget of each model's lineage: what noise still hides, and who has reserved it."""
