"""Keys that sign: where they lie, which of them count, how one follows another, whom to trust."""
