"""Scores of a dataset whose prompts say what its pictures must show."""
