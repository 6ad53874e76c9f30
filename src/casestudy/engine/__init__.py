"""How much is computed at once, and how little."""
