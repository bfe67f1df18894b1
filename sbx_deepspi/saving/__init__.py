"""Model files: a format that holds no code, and what goes into it."""
