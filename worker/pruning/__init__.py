"""Entropy pruning: statistics of attention, policies that decide, and the packed tokens that their plans run on."""
