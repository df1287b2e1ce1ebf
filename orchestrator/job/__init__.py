"""The job file: its keys checked and frozen, its errors said in one sentence, and its policy files."""
