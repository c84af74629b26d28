"""Files as bytes, unpacked while they are read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from ftcore.errors import Refused
from ftcore.problems import abridged

_CHUNK = 2**17
SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip")
_OPENINGS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_FAULTS = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError)


@dataclass(frozen=True)
class File:
    """A file as it was named, how it is packed, and what its content is called once it is unpacked."""

    source: str
    path: Path
    packing: str | None
    name: str

    @property
    def suffix(self) -> str:
        """The suffix of the content, in lower case."""
        return Path(self.name).suffix.lower()


def file_at(source: str, path: Path) -> File:
    """The packing is told by the first bytes, whatever the file is called; a workbook is no archive."""
    head = _head(source, path)
    packing = next((kind for opening, kind in _OPENINGS.items() if head.startswith(opening)), None)
    if packing == "bzip2" and head[4:10] not in (b"1AY&SY", b"\x17rE8P\x90"):
        packing = None
    if packing == "zip":
        member = _only_member(source, path)
        return File(source, path, "zip" if member else None, member or path.name)
    packed = packing and path.suffix.lower() in SUFFIXES
    return File(source, path, packing, path.stem if packed else path.name)


def _head(source: str, path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(10)
    except OSError as error:
        raise Refused(f"{source} cannot be read: {error.strerror}; check its permissions.") from error


def _only_member(source: str, path: Path) -> str | None:
    """The name of the one file in an archive, or None for a workbook."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = [info for info in archive.infolist() if not info.is_dir() and not _by_the_way(info.filename)]
    except zipfile.BadZipFile as error:
        raise Refused(f"{source} cannot be unpacked ({error}); copy it again whole.") from error
    names = [info.filename for info in found]
    if "xl/workbook.xml" in names:
        return None
    if len(found) != 1:
        raise Refused(f"{source} holds {len(found)} files, {abridged(names, 4)}; unpack it and pass the directory.")
    if found[0].flag_bits & 1:
        raise Refused(f"{source} is protected by a password; unpack it and pass {names[0]}.")
    return names[0]


def _by_the_way(name: str) -> bool:
    return name.startswith("__MACOSX/") or name.rpartition("/")[2] == ".DS_Store"


@contextmanager
def bytes_of(file: File) -> Iterator[IO[bytes]]:
    """The unpacked bytes; Refused when they cannot be had, be it in the middle."""
    faults: tuple[type[Exception], ...] = _FAULTS
    if file.packing == "zstd":
        faults = (*faults, _zstandard(file).ZstdError)
    try:
        with _opened(file) as stream:
            yield stream
    except faults as error:
        what = "unpacked" if file.packing else "read"
        cause = " ".join(str(error).split())[:120]
        raise Refused(
            f"{file.source} cannot be {what} ({type(error).__name__}: {cause}); copy it again whole."
        ) from error


def _opened(file: File) -> IO[bytes]:
    if file.packing == "gzip":
        return cast("IO[bytes]", gzip.open(file.path))
    if file.packing == "bzip2":
        return cast("IO[bytes]", bz2.open(file.path))
    if file.packing == "xz":
        return cast("IO[bytes]", lzma.open(file.path))
    if file.packing == "zstd":
        return io.BufferedReader(_Zstd(_zstandard(file), file.path.open("rb")), _CHUNK)
    if file.packing == "zip":
        with zipfile.ZipFile(file.path) as archive:
            return archive.open(file.name)
    return file.path.open("rb")


class _Zstd(io.RawIOBase):
    """What is packed with zstd, of which the library's own reader does not notice that its end is missing."""

    def __init__(self, library: Any, packed: IO[bytes]) -> None:
        self._library, self._packed = library, packed
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        """It is there to be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes; EOFError when a frame is not whole."""
        while not self._ready:
            packed = (self._frame.unused_data if self._frame and self._done else b"") or self._packed.read(_CHUNK)
            if not packed:
                if self._done:
                    return 0
                raise EOFError("it ends too early")
            self._frame = self._library.ZstdDecompressor().decompressobj() if self._done else self._frame
            self._ready = self._frame.decompress(packed)
        given, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(given)] = given
        return len(given)

    @property
    def _done(self) -> bool:
        return self._frame is None or self._frame.eof

    def close(self) -> None:
        """The packed file is closed too."""
        self._packed.close()
        super().close()


def _zstandard(file: File) -> Any:
    try:
        import zstandard
    except ModuleNotFoundError:
        raise Refused(f"{file.source} is packed with zstd; run `pip install zstandard`, or unpack it.") from None
    return zstandard
