"""Right or wrong: a detector of what a picture shows, the verdict on its prompt, and measures of likeness."""
