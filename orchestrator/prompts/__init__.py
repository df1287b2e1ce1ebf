"""Prompt files of any format as one table, and the samples that a job makes of them."""
