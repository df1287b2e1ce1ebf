"""The rules that prune, a module each: a policy decides what runs in the next scale, and never runs anything."""
