"""Rows of a Parquet file, a batch at a time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from typing import IO

from ftcore.errors import Refused
from ftcore.reading.rows import Row
from ftcore.reading.unpacking import File, bytes_of

_BATCH = 512


def rows(file: File) -> Iterator[Row]:
    """Every row as an object, by its number; a packed file is unpacked to the disk, since it is read from its end."""
    if not file.packing:
        with bytes_of(file) as stream:
            yield from _rows(file, stream)
        return
    with tempfile.TemporaryFile() as unpacked:
        with bytes_of(file) as stream:
            shutil.copyfileobj(stream, unpacked)
        yield from _rows(file, unpacked)


def _rows(file: File, stream: IO[bytes]) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(stream, pre_buffer=False).iter_batches(_BATCH, use_threads=False):
            for fields in batch.to_pylist():
                number += 1
                yield number, 0, fields
    except (pyarrow.ArrowException, OSError) as error:
        cause = " ".join(str(error).split())[:120]
        raise Refused(
            f"{file.source}:{number + 1}: the Parquet file cannot be read ({cause}); copy it again."
        ) from error
    if not number:
        raise Refused(f"{file.source} holds no row; pass a file with rows.")
