"""The shipped sample data and the rules that made it."""
