"""A run: shards handed to Ray workers, what was heard of them, and what it came to."""
