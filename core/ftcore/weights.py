"""The tensors of a directory by name, in safetensors or pickled; a pickle is read apart and nothing in it is run."""

from __future__ import annotations

import json
import os
import pickletools
import shutil
import subprocess
import sys
import tempfile
import weakref
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ftcore.errors import Refused

if TYPE_CHECKING:
    from torch import Tensor

UNREADABLE = "not readable is"
MAKERS = ("torch", "collections", "numpy", "_codecs", "builtins")  # packages whose functions make what torch saves
LONGEST_SCAN = 2**20  # bytes of an old file that are looked at; its header and what it calls come first

CHECKPOINT_FILES = ("model.safetensors", "pytorch_model.bin")


class Files:
    """The tensors of a directory by their own names, whatever files they are in: the first kind that is there."""

    def __init__(self, folder: Path, kinds: tuple[str, ...] = CHECKPOINT_FILES) -> None:
        self.folder = folder
        with _said_of(folder):
            self._file_of: dict[str, Path] = {}
            self.shapes: dict[str, tuple[int, ...]] = {}
            for file in self._readable(stored_in(folder, kinds)):
                self._list(file)

    def read(self, name: str) -> Tensor:
        """The tensor `name`, whole."""
        from safetensors import safe_open

        with _said_of(self.folder), safe_open(self._file_of[name], framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor

    def _list(self, file: Path) -> None:
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  it is no mapping
                self._file_of[name] = file
                self.shapes[name] = tuple(opened.get_slice(name).get_shape())

    def _readable(self, files: list[Path]) -> list[Path]:
        """The files, those that are pickled repacked by a process of their own into a directory that goes with this."""
        if all(file.suffix == ".safetensors" for file in files):
            return files
        folder = tempfile.mkdtemp("-ftcore")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        _repack_apart(files, folder)
        return sorted(Path(folder).glob("*.safetensors"))


@contextmanager
def without_pickles(folder: Path) -> Iterator[Path]:
    """A directory with the same configuration and tensors, these in safetensors: `folder` where they are already."""
    with _said_of(folder):
        pickled = not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin"))
    if not pickled:
        yield folder
        return
    with tempfile.TemporaryDirectory("-ftcore") as repacked:
        with _said_of(folder):
            _repack_apart(stored_in(folder), repacked)
        for file in folder.glob("*.json"):
            shutil.copyfile(file, Path(repacked, file.name))
        _index(Path(repacked))
        yield Path(repacked)


def _index(folder: Path) -> None:
    """The directory's files are one checkpoint."""
    from safetensors import safe_open

    where: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            where |= dict.fromkeys(opened.keys(), file.name)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


@contextmanager
def _said_of(folder: Path) -> Iterator[None]:
    """Inside, what cannot be read is Refused with the directory's name."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, SafetensorError) as unreadable:
        reason = " ".join(str(unreadable).split())[:200] or type(unreadable).__name__
        raise Refused(f"the weights in '{folder}' cannot be read: {reason}") from None


def stored_in(folder: Path, kinds: tuple[str, ...] = CHECKPOINT_FILES) -> list[Path]:
    """The files that hold the tensors: of the first of `kinds` that is there, in shards where an index says so."""
    for stem in kinds:
        index = folder / f"{stem}.index.json"
        if index.is_file():
            held = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / Path(name).name for name in sorted(set(held))]
        if (folder / stem).is_file():
            return [folder / stem]
    raise FileNotFoundError(f"there is neither {' nor '.join(kinds)}")


def _repack_apart(files: list[Path], into: str) -> None:
    """The tensors of pickled files are in `into`; another process reads the pickles, and runs nothing in them."""
    lost = [file.name for file in files if not file.is_file()]
    if lost:
        raise FileNotFoundError(f"{lost[0]} is missing")
    for file in files:
        if called := next(calls_in(file), None):
            raise ValueError(f"{UNREADABLE} {file.name}: it would call '{called}', which makes no tensor")
    command = "import sys; from ftcore.weights import repack; repack(*sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", command, into, *map(str, files)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"reading {files[0].name} ended with code {done.returncode}"]
        raise ValueError(next((line for line in said if line.startswith(UNREADABLE)), said[-1]))


def calls_in(file: Path) -> Iterator[str]:
    """What a pickle would call that no file of tensors calls, by reading and not by running it."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as opened:
            content = b"".join(opened.read(name) for name in opened.namelist() if name.endswith("data.pkl"))
    else:
        with open(file, "rb") as raw:
            content = raw.read(LONGEST_SCAN)
    with suppress(
        ValueError, IndexError, UnicodeDecodeError
    ):  # what is no pickle, or goes on, is for the reader to say
        for operation, argument, _ in pickletools.genops(content):
            if operation.name == "STACK_GLOBAL":
                yield "a name that it makes up"
            elif operation.name in ("GLOBAL", "INST") and str(argument).partition(".")[0].split()[0] not in MAKERS:
                yield str(argument).replace(" ", ".")


def repack(into: str, *files: str) -> None:
    """Each tensor of pickled files is in a safetensors file of its own in `into`; what is no tensor is an error."""
    import torch
    from safetensors.torch import save_file

    number = 0
    for file in files:
        try:
            held = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
            odd = [name for name, value in held.items() if not isinstance(value, torch.Tensor)]
        except Exception as unreadable:  # whatever a stranger's pickle provokes is a reason not to read it
            reason = " ".join(str(unreadable).split())[:150]
            sys.exit(f"{UNREADABLE} {Path(file).name}: {reason}")
        if odd:
            sys.exit(f"{UNREADABLE} {Path(file).name}: '{odd[0]}' in it is no tensor")
        for name, tensor in held.items():
            save_file({name: tensor.contiguous().clone()}, Path(into, f"{number:06d}.safetensors"))
            number += 1
