"""`python -m toprovar_batch`, the same as the `toprovar-batch` command."""

from toprovar_batch.orchestrator.cli import main

main()
