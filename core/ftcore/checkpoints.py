"""What a run keeps on disk: written whole or not at all, and checked before it is trusted."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.errors import FtcoreError, Refused

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, Mapping[str, torch.Tensor]]

FORMAT = 1
MANIFEST = "MANIFEST.json"
STATE = "state.json"
SUFFIX = ".safetensors"

_STEP = re.compile(r"step-(\d{9}|[1-9]\d{9,})")
_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FULL = {errno.ENOSPC: "disk full", errno.EDQUOT: "disk quota exceeded"}
_CAUSES = {**_FULL, errno.EROFS: "read-only file system"}


@dataclass(frozen=True)
class Checkpoint:
    """One sound checkpoint, read: its tensors by file and name, and its state."""

    step: int
    path: Path
    tensors: Tensors
    state: Mapping[str, object]


# The lock


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Inside, `directory` exists and is this run's alone; the kernel frees it however the process ends."""
    held = [_open_lock(directory)]
    # flock belongs to the open file, which a forked data worker would share and hold beyond our death.
    os.register_at_fork(after_in_child=lambda: _close_all(held))
    try:
        _take_lock(held[0], directory)
        yield
    finally:
        _close_all(held)


def _open_lock(directory: Path) -> int:
    try:
        _ensure_directory(directory)
        return os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise Refused(f"{directory} cannot be used: {_cause(error)}; name another --output") from error


def _take_lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        os.ftruncate(descriptor, 0)
        _write_all(descriptor, f"pid {os.getpid()} on {socket.gethostname()}, started {started}\n".encode())
    except BlockingIOError as error:
        holder = os.pread(descriptor, 4096, 0).decode(errors="replace").strip() or "a run that just started"
        message = f"{directory} is in use by {holder}: wait until it ends or name another --output"
        raise Refused(message) from error
    except OSError as error:
        raise Refused(f"{directory} cannot be locked: {_cause(error)}; name another --output") from error


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


# One file


def publish(path: Path, data: bytes) -> None:
    """`path` holds exactly `data`, or, after an error or a crash, exactly what it held before."""
    staging = f".tmp-{path.name}-"
    staged = path.with_name(f"{staging}{os.getpid()}")
    try:
        for leftover in [entry for entry in path.parent.iterdir() if entry.name.startswith(staging)]:
            os.unlink(leftover)
        try:
            _write_file(staged, data)
            os.rename(staged, path)
        except OSError:
            with suppress(OSError):
                os.unlink(staged)
            raise
        _sync_directory(path.parent)
    except OSError as error:
        message = f"{path} could not be written: {_cause(error)}; {len(data)} bytes are needed"
        raise FtcoreError(message) from error


# All checkpoints of a run


@dataclass(frozen=True)
class Store:
    """The checkpoints under `root`, the newest `keep` of them; the caller holds the run's lock."""

    root: Path
    keep: int = 2

    def save(self, step: int, tensors: Tensors, state: Mapping[str, object]) -> Path:
        """The checkpoint of `step` is on disk, whole and finite, and only then are surplus ones gone."""
        _require_finite(step, tensors)
        encoded = _encode_state(step, state)
        try:
            self._place_making_room(step, tensors, encoded)
        except OSError as error:
            raise FtcoreError(self._not_saved(step, tensors, encoded, error)) from error
        self._rotate(step)
        return self._path(step)

    def latest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest sound checkpoint; every unsound one newer than it is named and in quarantine."""
        _sweep(self.root)
        for step in reversed(self._present()):
            try:
                return _read(self._path(step), step)
            except _UnsoundError as reason:
                say(f"checkpoint {self._path(step)} is unsound, {reason}: {self._set_aside(step)}")
        return None

    def steps(self) -> tuple[int, ...]:
        """The steps on disk that look sound, ascending; nothing has been read."""
        return tuple(step for step in self._present() if (self._path(step) / MANIFEST).is_file())

    def _path(self, step: int) -> Path:
        return self.root / f"step-{step:09d}"

    def _present(self) -> list[int]:
        names = os.listdir(self.root) if self.root.is_dir() else []
        return sorted(int(found[1]) for found in map(_STEP.fullmatch, names) if found)

    def _place_making_room(self, step: int, tensors: Tensors, state: bytes) -> None:
        try:
            self._place(step, tensors, state)
        except OSError as error:
            if error.errno not in _FULL or not self._make_room(step):
                raise
            self._place(step, tensors, state)

    def _place(self, step: int, tensors: Tensors, state: bytes) -> None:
        _ensure_directory(self.root)
        _sweep(self.root)
        if not self._holds(step):
            staged = self.root / f".tmp-{step}-{os.getpid()}"
            try:
                _stage(staged, step, tensors, state)
                os.rename(staged, self._path(step))
            except OSError:
                _delete(staged)
                raise
        _sync_directory(self.root)

    def _holds(self, step: int) -> bool:
        """Whether `step` is soundly on disk; an unsound one is in quarantine afterwards."""
        if step not in self._present():
            return False
        try:
            _read(self._path(step), step)
        except _UnsoundError:
            self._quarantine(step)
            return False
        return True

    def _rotate(self, saved: int) -> None:
        others = [step for step in self.steps() if step != saved]
        self._discard(others[: max(0, len(others) + 1 - self.keep)])

    def _make_room(self, step: int) -> bool:
        """Whether anything older than the newest sound checkpoint could go, `step` itself not counted."""
        newest = self._newest_sound(step)
        surplus = [other for other in self.steps() if newest is not None and other < newest and other != step]
        self._discard(surplus)
        return bool(surplus)

    def _discard(self, steps: list[int]) -> None:
        with suppress(OSError):  # what stays is tried again by the next rotation
            for step in steps:
                trash = self.root / f".trash-{step}-{os.getpid()}"
                os.rename(self._path(step), trash)
                _delete(trash)

    def _newest_sound(self, besides: int) -> int | None:
        for step in reversed([step for step in self._present() if step != besides]):
            with suppress(_UnsoundError):
                return _read(self._path(step), step).step
        return None

    def _quarantine(self, step: int) -> Path:
        quarantine = self.root / "quarantine"
        _ensure_directory(quarantine)
        target, copies = quarantine / self._path(step).name, 1
        while os.path.lexists(target):
            copies += 1
            target = quarantine / f"{self._path(step).name}-{copies}"
        os.rename(self._path(step), target)
        _sync_directory(quarantine)
        _sync_directory(self.root)
        return target

    def _set_aside(self, step: int) -> str:
        try:
            return f"moved to {self._quarantine(step)}"
        except OSError as error:
            return f"left out, but not moved to quarantine: {_cause(error)}"

    def _not_saved(self, step: int, tensors: Tensors, state: bytes, error: OSError) -> str:
        needed = len(state) + sum(tensor.nbytes for group in tensors.values() for tensor in group.values())
        newest = self._newest_sound(step)
        safe = "there is no earlier one" if newest is None else f"the earlier one of step {newest} is intact"
        return (
            f"checkpoint {self._path(step)} could not be saved: {_cause(error)}, {needed} bytes are needed; "
            f"{safe}; put that right and run the same command again"
        )


# What a checkpoint is made of


class _UnsoundError(Exception):
    """A checkpoint is not what was written; the message names the file and the reason."""


def _stage(staged: Path, step: int, tensors: Tensors, state: bytes) -> None:
    os.mkdir(staged)
    files = {}
    for name, data in _contents(tensors, state):
        _write_file(staged / name, data)
        files[name] = _describe(data)
    _write_file(staged / MANIFEST, _encode_manifest({"format": FORMAT, "step": step, "files": files}))
    _sync_directory(staged)


def _contents(tensors: Tensors, state: bytes) -> Iterator[tuple[str, bytes]]:
    from safetensors.torch import save

    for stem, group in tensors.items():
        assert _STEM.fullmatch(stem), stem
        yield f"{stem}{SUFFIX}", save(_apart(group), metadata={"format": "pt"})
    yield STATE, state


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same values on the CPU, contiguous, no two in one storage: safetensors takes nothing else."""
    apart: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        apart[name] = tensor.detach().cpu().contiguous()
        if apart[name].untyped_storage().data_ptr() in storages:
            apart[name] = apart[name].clone()
        storages.add(apart[name].untyped_storage().data_ptr())
    return apart


def _encode_state(step: int, state: Mapping[str, object]) -> bytes:
    try:
        return json.dumps(state, indent=1, allow_nan=False).encode()
    except ValueError as error:
        raise FtcoreError(f"checkpoint of step {step} refused: its state is no JSON, {error}") from error


def _encode_manifest(content: Mapping[str, object]) -> bytes:
    sealed = {**content, "sha256": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}
    return json.dumps(sealed, indent=1, sort_keys=True).encode()


def _describe(data: bytes) -> dict[str, object]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _require_finite(step: int, tensors: Tensors) -> None:
    for stem, group in tensors.items():
        if name := _non_finite(group):
            raise FtcoreError(f"checkpoint of step {step} refused: NaN or infinity in {stem} tensor {name!r}")


def _non_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    return next((name for name, tensor in tensors.items() if not _is_finite(tensor)), None)


def _is_finite(tensor: torch.Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    # torch has no isfinite for some of its one-byte floats.
    return bool((tensor.float() if tensor.element_size() == 1 else tensor).isfinite().all())


def _read(path: Path, step: int) -> Checkpoint:
    files = _read_manifest(path, step)
    state = json.loads(_read_file(path / STATE, files.pop(STATE)))
    tensors = {name.removesuffix(SUFFIX): _read_tensors(path / name, files[name]) for name in files}
    return Checkpoint(step, path, tensors, state)


def _read_manifest(path: Path, step: int) -> dict[str, dict[str, object]]:
    content = _decode_manifest(_read_bytes(path / MANIFEST))
    if content["format"] != FORMAT:
        raise Refused(f"{path} has checkpoint format {content['format']}, known is {FORMAT}: update ftcore")
    if content["step"] != step:
        raise _UnsoundError(f"{MANIFEST} is of step {content['step']}")
    present, listed = set(os.listdir(path)), {MANIFEST, *content["files"]}
    if present != listed:
        fault = "is not in its manifest" if present - listed else "is missing"
        raise _UnsoundError(f"{min(present - listed or listed - present)} {fault}")
    return dict(content["files"])


def _decode_manifest(data: bytes) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(data)
        del content["sha256"]
    except (ValueError, TypeError, KeyError) as error:
        raise _UnsoundError(f"{MANIFEST} is not a manifest") from error
    if _encode_manifest(content) != data:
        raise _UnsoundError(f"{MANIFEST} does not match its own sha256")
    return content


def _read_file(path: Path, expected: Mapping[str, object]) -> bytes:
    data = _read_bytes(path)
    if len(data) != expected["size"]:
        raise _UnsoundError(f"{path.name} has {len(data)} bytes instead of {expected['size']}")
    if _describe(data) != expected:
        raise _UnsoundError(f"{path.name} does not match its sha256")
    return data


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _UnsoundError(f"{path.name} cannot be read ({_cause(error)})") from error


def _read_tensors(path: Path, expected: Mapping[str, object]) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, torch.Tensor] = load(_read_file(path, expected))
    except SafetensorError as error:
        raise _UnsoundError(f"{path.name} is not safetensors ({error})") from error
    if name := _non_finite(tensors):
        raise _UnsoundError(f"{path.name} holds NaN or infinity in {name!r}")
    return tensors


# File operations


def _write_file(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _ensure_directory(path: Path) -> None:
    if not path.is_dir():
        _ensure_directory(path.parent)
        path.mkdir(exist_ok=True)
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what file systems say that cannot sync a directory
            raise
    finally:
        os.close(descriptor)


def _sweep(root: Path) -> None:
    """What a killed save or rotation left in `root` is gone; under the lock it is nobody's."""
    for leftover in [*root.glob(".tmp-*"), *root.glob(".trash-*")]:
        _delete(leftover)


def _delete(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def _cause(error: OSError) -> str:
    return _CAUSES.get(error.errno or 0) or error.strerror or str(error)
