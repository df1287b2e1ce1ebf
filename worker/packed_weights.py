"""The weights of this package, packed without loss: bfloat16 numbers take two thirds of their bytes.

A file is cut into pairs of bytes, one a number. Parquet's BYTE_STREAM_SPLIT puts the bytes of equal significance side
by side, and Zstandard finds that exponents repeat. `python -m toprovar_batch.worker.packed_weights FOLDER` packs.
"""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq

from .cached_copy import make_once
from .whole_file import whole_file

SUFFIX = ".parquet"
_COLUMN = "numbers"
_LEVEL = 19  # of Zstandard; reading is as fast at any


def pack(source: Path, target: Path) -> None:
    """Write `source` packed as `target`.

    Raises:
        ValueError: `source` has an odd number of bytes.
    """
    content = source.read_bytes()
    if len(content) % 2:
        raise ValueError(f"{source}: {len(content)} bytes are no whole number of pairs")
    numbers = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(2), len(content) // 2, [None, pa.py_buffer(content)]
    )
    with whole_file(target) as aside:
        pq.write_table(
            pa.table({_COLUMN: numbers}),
            aside,
            row_group_size=max(1, len(numbers)),
            use_dictionary=False,
            use_byte_stream_split=[_COLUMN],
            compression="zstd",
            compression_level=_LEVEL,
            write_statistics=False,
            write_page_checksum=True,
        )


def unpack(source: Path, target: Path) -> None:
    """Write the bytes that `source` was packed from as `target`.

    Raises:
        OSError: `source` is damaged, or `target` cannot be written.
    """
    column = pq.read_table(source, page_checksum_verification=True).column(_COLUMN)
    with target.open("wb") as file:
        for chunk in column.chunks:
            first = 2 * chunk.offset
            file.write(memoryview(chunk.buffers()[1])[first : first + 2 * len(chunk)])


def unpacked(path: Path, cache: Path) -> Path | None:
    """The file or folder that stands packed at `path`, unpacked once into `cache`.

    Args:
        path: as it is called unpacked. Files of a folder that are not packed are copied.
        cache: a folder that may be written.

    Returns:
        Its path in the cache; None where nothing is packed at `path`.

    Raises:
        OSError: what is packed is damaged, or the cache cannot be written.
    """
    files = dict(_files_of(path))
    if not any(file.suffix == SUFFIX for file in files.values()):
        return None
    key = hashlib.blake2b(digest_size=8)
    for name, file in files.items():
        key.update(f"{name}:{file.stat().st_size}:".encode())
        key.update(file.read_bytes())

    def write(target: Path) -> None:
        for name, file in files.items():
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == SUFFIX:
                unpack(file, place)
            else:
                shutil.copyfile(file, place)

    return make_once(cache / f"package-{key.hexdigest()}" / path.name, write)


def _files_of(path: Path) -> Iterator[tuple[str, Path]]:
    """Unpacked name within `path` ("" for `path` itself) and place of every file, in a fixed order."""
    packed = path.with_name(path.name + SUFFIX)
    if packed.is_file():
        yield "", packed
        return
    for file in sorted(path.rglob("*")):
        if file.is_file():
            yield str(file.relative_to(path)).removesuffix(SUFFIX), file


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Pack every .safetensors file below FOLDER in its place."""
    for file in sorted(folder.rglob("*.safetensors")):
        packed = file.with_name(file.name + SUFFIX)
        pack(file, packed)
        click.echo(f"{file}: {file.stat().st_size:,} -> {packed.stat().st_size:,} bytes")
        file.unlink()


if __name__ == "__main__":
    main()
