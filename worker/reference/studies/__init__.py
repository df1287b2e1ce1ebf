"""What the studies of pruning compare, measure and print."""
