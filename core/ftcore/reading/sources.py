"""What a source names: a file, the files of a directory or a pattern, or a dataset of the Hub."""

from __future__ import annotations

import difflib
import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ftcore.errors import Refused
from ftcore.problems import abridged
from ftcore.reading.formats import ROW_SUFFIXES
from ftcore.reading.rows import Row
from ftcore.reading.unpacking import SUFFIXES

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_WEIGHT = re.compile(r"(.+):(\d+\.?\d*|\.\d+)")
_PATTERN = re.compile(r"[*?\[]")
_FILES = (*ROW_SUFFIXES, *SUFFIXES, ".xls", ".arrow", ".yaml", ".md")
_CHUNK = 2**20


def weighted(spec: str) -> tuple[str, float | None]:
    """A source and the weight behind its last colon, if there is one; a file of that whole name wins."""
    found = _WEIGHT.fullmatch(spec)
    if not found or Path(os.path.expanduser(spec)).exists():
        return spec, None
    weight = float(found[2])
    if not weight:
        raise Refused(f"{spec} has the weight 0; give it a weight above 0, or leave it out.")
    return found[1], weight


def files_of(source: str, note: Callable[[str], object]) -> list[str] | None:
    """The files that a source names, in order, or None for what can only be a dataset of the Hub."""
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return _of_directory(source, path, note)
    if path.exists():
        return [source]
    if _PATTERN.search(source):
        return _of_pattern(source, str(path))
    inside = len(path.parts) > 1 and path.parent.is_dir()
    if inside or path.suffix.lower() in _FILES or not _HUB_ID.fullmatch(source):
        raise Refused(f"{source} does not exist; {_nearest(path)}.")
    return None


def path_of(source: str) -> Path:
    """Where the file of that name is."""
    return Path(os.path.expanduser(source))


def _of_directory(source: str, path: Path, note: Callable[[str], object]) -> list[str]:
    found = [name for name in sorted(_below(path)) if name.stat().st_size]
    read = [name for name in found if _unpacked_suffix(name) in ROW_SUFFIXES]
    others = [str(name.relative_to(path)) for name in found if name not in set(read)]
    if not read:
        raise Refused(f"{source} is a directory without a file of rows or text; it holds {abridged(others) or 'none'}.")
    if others:
        note(f"{source}: left out, as their suffixes name no rows: {abridged(others)}")
    return [str(Path(source) / name.relative_to(path)) for name in read]


def _below(path: Path) -> Iterator[Path]:
    """The files below a directory, without what is hidden."""
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        yield from (Path(folder) / name for name in names if not name.startswith("."))


def _unpacked_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix == ".zip":
        return ".json"  # what is in it shows when it is opened
    return Path(path.stem).suffix.lower() if suffix in SUFFIXES else suffix


def _of_pattern(source: str, pattern: str) -> list[str]:
    found = sorted(name for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
    if not found:
        raise Refused(f"{source} matches no file; check the pattern, and quote it so that the shell leaves it alone.")
    return found


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no directory {path.parent}"
    names = sorted(child.name for child in path.parent.iterdir())
    close = difflib.get_close_matches(path.name, names, n=1)
    where = "here" if path.parent == Path() else f"in {path.parent}"
    return f"the nearest name {where} is {close[0]}" if close else f"no name {where} is near it"


# --- the Hub -----------------------------------------------------------------------------------------------


def hub_rows(source: str) -> Iterator[Row]:
    """The rows of the split `train`, fetched while they are read."""
    try:
        from datasets import load_dataset

        rows: Any = load_dataset(source, split="train", streaming=True)
        yield from ((number, 0, dict(row)) for number, row in enumerate(rows, start=1))
    except Exception as error:  # whatever the network, the Hub or the dataset's own files raise
        _refuse_hub(source, error)


def _hub_version(source: str) -> str:
    try:
        from datasets import load_dataset_builder

        builder: Any = load_dataset_builder(source)
        return f"{builder.hash} {builder.info.version}"
    except Exception as error:  # as above
        _refuse_hub(source, error)


def _refuse_hub(source: str, error: Exception) -> NoReturn:
    cause = " ".join(str(error).split())[:200]
    raise Refused(
        f"{source} is no file here ({_nearest(Path(source))}) and the Hugging Face Hub did not give it "
        f"({type(error).__name__}: {cause}); check the name, or pass a file."
    ) from error


# --- what rows can be known again by -----------------------------------------------------------------------


def fingerprint(sources: Sequence[str]) -> str:
    """A sha256 that changes with any byte of any file, their order and kinds, or a dataset's version on the Hub."""
    whole = hashlib.sha256()
    for source in sources:
        files = files_of(source, lambda notice: None)
        parts = [f"hub:{source} {_hub_version(source)}"] if files is None else map(_file_print, files)
        for part in parts:
            whole.update(f"{part}\n".encode())
    return whole.hexdigest()


def _file_print(name: str) -> str:
    digest = hashlib.sha256()
    try:
        with path_of(name).open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise Refused(f"{name} cannot be read: {error.strerror}; check its permissions.") from error
    return f"{''.join(Path(name).suffixes[-2:]).lower()} {digest.hexdigest()}"
