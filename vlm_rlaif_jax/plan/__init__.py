"""What a run will need on chips that nobody here has: compiled, counted, compared."""
