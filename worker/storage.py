"""What file systems raise."""

import sys


def storage_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """Exceptions by which file systems say that they cannot be reached, read or written, and `others`."""
    botocore = sys.modules.get("botocore.exceptions")  # there once s3fs is in use
    aiohttp = sys.modules.get("aiohttp")  # there once fsspec's HTTP is in use
    return (
        OSError,
        NotImplementedError,
        *others,
        *([botocore.BotoCoreError] if botocore else []),
        *([aiohttp.ClientError] if aiohttp else []),
    )
