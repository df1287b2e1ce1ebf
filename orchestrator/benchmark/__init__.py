"""What the benchmark commands check and time."""
