"""What file systems raise."""

import sys


def storage_errors() -> tuple[type[Exception], ...]:
    """Exceptions by which file systems say that they cannot be reached or written."""
    botocore = sys.modules.get("botocore.exceptions")  # there once s3fs is in use
    return (OSError, NotImplementedError, *([botocore.BotoCoreError] if botocore else []))
