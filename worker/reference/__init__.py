"""The small reference model: the pictures it learns from, how it is trained, and how its pictures are judged."""
