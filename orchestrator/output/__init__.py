"""The output folder: whose it is, which parts it holds, its card, and what must be true before a run writes."""
