"""The search of a pruning policy for a requested amount of work or loss."""
