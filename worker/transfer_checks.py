"""Whether a file that came over a network is what its source says, and whole."""

import base64
import binascii
import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

_MOST_HEADER_BYTES = 100 << 20  # of a safetensors file; more is refused by its own library
_HASHES = {"md5": 16, "sha-256": 32, "sha-512": 64}  # those of the header Digest, with their bytes


def stated_sums(headers: Mapping[str, object]) -> dict[str, str]:
    """The checksums that a server states of a file's content.

    An ETag is none: with some servers it has the form of one, and is made from the time of change.

    Args:
        headers: `Content-MD5` and `Digest` as HTTP has them, where there are any.

    Returns:
        Name of the hash in hashlib -> digest in hexadecimal.
    """
    return dict(_sums_of(headers))


def _sums_of(headers: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    stated = [f"md5={headers['Content-MD5']}"] if "Content-MD5" in headers else []
    stated += str(headers.get("Digest", "")).split(",")
    for entry in stated:
        name, _, value = entry.strip().partition("=")
        try:
            digest = base64.b64decode(value, validate=True)
        except binascii.Error:
            continue
        if len(digest) == _HASHES.get(name.lower()):
            yield name.lower().replace("-", ""), digest.hex()


def check_sums(path: Path, sums: Mapping[str, str]) -> None:
    """Read a file once for each of its checksums.

    Raises:
        OSError: one of them differs; says which.
    """
    for name, wanted in sums.items():
        with path.open("rb") as file:
            found = hashlib.file_digest(file, name).hexdigest()
        if found != wanted:
            raise OSError(f"what arrived has the {name} {found}, and not {wanted}; try again")


def is_cut_off(path: Path) -> bool:
    """Whether a file of weights says itself that it is longer than it is; False for other forms.

    safetensors tells its length at its beginning. A checkpoint of PyTorch is a ZIP file, whose directory is its end.
    """
    with path.open("rb") as file:
        start = file.read(8)
        if start[:4] == b"PK\x03\x04":
            return not zipfile.is_zipfile(path)
        if path.suffix != ".safetensors" or 0 < len(start) < 8:
            return False
        length = int.from_bytes(start, "little")
        size = path.stat().st_size
        if length > _MOST_HEADER_BYTES:
            return False
        if 8 + length > size:
            return True
        try:
            header = json.loads(file.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return False  # not cut off but no file of weights, which its reader tells better
    return size < 8 + length + max(ends, default=0)
