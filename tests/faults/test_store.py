"""What a run keeps on disk survives every crash, every error of the disk and every flipped bit."""

from __future__ import annotations

import ast
import errno
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from ftcore import checkpoints
from ftcore.checkpoints import Checkpoint, Store, locked, publish
from ftcore.errors import FtcoreError, Refused

OPERATIONS = ("open", "mkdir", "write", "fsync", "rename", "unlink", "rmdir")
FILES = ("adapter.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")

WRITE_FILE = ["open", "write", "fsync"]
SYNC_DIRECTORY = ["open", "fsync"]
PLACE = ["mkdir", *WRITE_FILE * len(FILES), *SYNC_DIRECTORY, "rename", *SYNC_DIRECTORY]
ROTATE = ["rename", "open", *["unlink"] * len(FILES), "rmdir"]
SAVE = PLACE + ROTATE
RENAMED = PLACE.index("rename") + 1
QUARANTINE = ["mkdir", *SYNC_DIRECTORY, "rename", *SYNC_DIRECTORY * 2]
PUBLISH = [*WRITE_FILE, "rename", *SYNC_DIRECTORY]

Act = Callable[[int, str, tuple], None]


@pytest.fixture(autouse=True)
def _fast_fsync(monkeypatch):
    """Crashes here are of the process, not of the machine: what was written is there without waiting for it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory in memory where there is one: hundreds of small stores need not wait for a busy disk."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def template() -> Iterator[dict[int, Path]]:
    """By the number to keep, a store filled up to that: steps 10 or 10 and 20."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        roots = {keep: Path(directory, str(keep)) for keep in (1, 2)}
        for keep, root in roots.items():
            for step in range(10, 10 * keep + 1, 10):
                save(Store(root, keep), step)
        yield roots


@pytest.fixture
def fresh(template, tmp_path) -> Callable[[int], Store]:
    """Another copy of a filled store at every call."""

    def copy(keep: int) -> Store:
        root = tmp_path / "run" / "checkpoints"
        shutil.rmtree(root.parent, ignore_errors=True)
        return Store(Path(shutil.copytree(template[keep], root)), keep)

    return copy


def contents(step: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(8, 4, generator=generator)
    return {
        "adapter": {"a.weight": weight, "b.weight": weight.T.to(torch.bfloat16), "tied": weight[:2]},
        "optimizer": {"a.weight.exp_avg": torch.randn(8, 4, generator=generator), "step": torch.tensor(1.0 * step)},
    }


def state(step: int) -> dict[str, object]:
    return {"step": step, "groups": [{"lr": 1e-3 / step}]}


def save(store: Store, step: int) -> Path:
    return store.save(step, contents(step), state(step))


def raw(tensor: torch.Tensor) -> list[int]:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8).tolist()


def silent(line: str) -> None:
    raise AssertionError(line)


def assert_holds(found: Checkpoint | None, step: int) -> None:
    assert found is not None
    assert found.step == step
    assert found.path.name == f"step-{step:09d}"
    assert found.state == state(step)
    assert {stem: set(group) for stem, group in found.tensors.items()} == {
        stem: set(group) for stem, group in contents(step).items()
    }
    for stem, group in contents(step).items():
        for name, tensor in group.items():
            read = found.tensors[stem][name]
            assert (read.dtype, read.shape, raw(read)) == (tensor.dtype, tensor.shape, raw(tensor)), name


def leftovers(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.name.startswith((".tmp-", ".trash-")))


@contextmanager
def watched(act: Act) -> Iterator[None]:
    """Before the n-th file operation of the block, `act(n, name, arguments)`."""
    count = 0

    def watch(name: str) -> Callable:
        real = getattr(os, name)

        def operation(*args, **kwargs):
            nonlocal count
            count += 1
            act(count, name, args)
            return real(*args, **kwargs)

        return operation

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, watch(name))
        yield


def trace(work: Callable[[], object]) -> list[str]:
    names: list[str] = []
    with watched(lambda n, name, args: names.append(name)):
        work()
    return names


def dying(at: int, half: bool) -> Act:
    """The process is gone before operation `at`, or half-way through it."""

    def act(n: int, name: str, args: tuple) -> None:
        if n == at:
            if half:
                descriptor, data = args
                os.pwrite(descriptor, data[: len(data) // 2], 0)
            os._exit(9)

    return act


def failing(at: int, number: int, lasting: bool) -> Act:
    """Operation `at`, and with `lasting` every later one, fails with errno `number`."""

    def act(n: int, name: str, args: tuple) -> None:
        if n == at or (lasting and n > at):
            raise OSError(number, os.strerror(number))

    return act


def in_child(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def crash_points(operations: list[str]) -> list[tuple[int, bool]]:
    """Before every operation, and half-way through every write."""
    before = [(n, False) for n in range(1, len(operations) + 1)]
    return before + [(n, True) for n, name in enumerate(operations, 1) if name == "write"]


def killed(work: Callable[[], object], at: int, half: bool) -> None:
    def crash() -> None:
        with watched(dying(at, half)):
            work()

    assert in_child(crash) == 9, (at, half)


# Crashes


def test_a_save_is_this_sequence_of_file_operations(fresh):
    store = fresh(2)
    staged, root = f".tmp-30-{os.getpid()}", store.root.name
    operations: list[str] = []

    def note(n: int, name: str, args: tuple) -> None:
        place = os.readlink(f"/proc/self/fd/{args[0]}") if isinstance(args[0], int) else args[0]
        operations.append(f"{name} {Path(place).name}")

    with watched(note):
        save(store, 30)
    assert operations == [
        f"mkdir {staged}",
        *[f"{name} {file}" for file in FILES for name in WRITE_FILE],
        *[f"{name} {staged}" for name in SYNC_DIRECTORY],
        f"rename {staged}",
        *[f"{name} {root}" for name in SYNC_DIRECTORY],
        "rename step-000000010",
        f"open .trash-10-{os.getpid()}",
        *[operation for operation in operations if operation.startswith("unlink ")],
        f"rmdir .trash-10-{os.getpid()}",
    ]
    assert [operation.split()[0] for operation in operations] == SAVE
    assert (len(SAVE), SAVE.count("fsync")) == (25, 6)
    assert store.steps() == (20, 30)


def test_no_file_operation_escapes_the_count(fresh):
    events = {"os.rename": "rename", "os.mkdir": "mkdir", "os.remove": "unlink", "os.rmdir": "rmdir"}
    store = fresh(2)

    def compare() -> None:
        counted: list[str] = []
        happened: list[str] = []

        def count(n: int, name: str, args: tuple) -> None:
            if name in events.values() or (name == "open" and args[1] & os.O_WRONLY):
                assert name != "open" or args[1] & os.O_EXCL
                counted.append(name)

        def audit(event: str, args: tuple) -> None:
            if event in events or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
                happened.append(events.get(event, event))

        sys.addaudithook(audit)
        with watched(count):
            save(store, 30)
        assert len(counted) == 1 + 4 + 2 + 5
        assert happened == counted

    assert in_child(compare) == 0


@pytest.mark.parametrize("keep", [1, 2])
def test_a_save_killed_anywhere_leaves_the_old_or_the_new_checkpoint(fresh, keep):
    old, new = 10 * keep, 10 * keep + 10
    points = crash_points(SAVE)
    assert len(points) == 25 + 4
    for at, half in points:
        store = fresh(keep)
        killed(lambda store=store: save(store, new), at, half)
        assert_holds(store.latest(silent), new if at > RENAMED else old)
        save(store, new + 10)
        assert_holds(store.latest(silent), new + 10)
        assert leftovers(store.root) == []
        assert len(store.steps()) == keep


def test_a_quarantine_killed_anywhere_still_falls_back(fresh):
    points = crash_points(QUARANTINE)
    assert len(points) == 8
    for at, half in points:
        store = fresh(2)
        (store.root / "step-000000020" / FILES[0]).write_bytes(b"")
        killed(lambda store=store: store.latest(lambda line: None), at, half)
        assert_holds(store.latest(lambda line: None), 10)
        assert os.listdir(store.root / "quarantine") == ["step-000000020"]


def test_the_first_save_into_a_new_directory_can_be_killed_anywhere(tmp_path):
    store = Store(tmp_path / "run" / "checkpoints")
    operations = trace(lambda: save(store, 10))
    assert operations == [*["mkdir", *SYNC_DIRECTORY] * 2, *PLACE]
    for at, half in crash_points(operations):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        killed(lambda: save(store, 10), at, half)
        found = store.latest(silent)
        assert (found is None) == (at <= 6 + RENAMED)
        save(store, 10)
        assert_holds(store.latest(silent), 10)


def test_publish_killed_anywhere_leaves_the_old_or_the_new_file(tmp_path):
    path = tmp_path / "ftcore.json"
    points = crash_points(PUBLISH)
    assert len(points) == 7
    for at, half in points:
        publish(path, b"old" * 100)
        killed(lambda: publish(path, b"new" * 200), at, half)
        assert path.read_bytes() == (b"new" * 200 if at > 4 else b"old" * 100)
        publish(path, b"next")
        assert [entry.name for entry in tmp_path.iterdir()] == ["ftcore.json"]


# Errors of the disk

CAUSES = {
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "quota",
    errno.EROFS: "read-only",
    errno.EIO: "Input/output error",
}


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("number", CAUSES, ids=errno.errorcode.get)
def test_an_error_anywhere_leaves_the_earlier_checkpoint_and_says_so(fresh, number, keep, lasting):
    old, new = 10 * keep, 10 * keep + 10
    for at in range(1, len(SAVE) + 1):
        store = fresh(keep)
        makes_room = keep == 2 and not lasting and CAUSES[number] in ("disk full", "quota")
        message = None
        with watched(failing(at, number, lasting)):
            try:
                save(store, new)
            except FtcoreError as error:
                message = str(error)
        assert (message is None) == (at > len(PLACE) or makes_room), at
        if message is not None:
            assert str(store.root / f"step-{new:09d}") in message
            assert CAUSES[number] in message
            assert "bytes are needed" in message
            assert f"step {old} is intact" in message
        if not lasting and at <= len(PLACE):
            assert leftovers(store.root) == []
        assert_holds(store.latest(silent), new if at > RENAMED or makes_room else old)
        save(store, new + 10)
        assert_holds(store.latest(silent), new + 10)
        assert leftovers(store.root) == []


def test_a_full_disk_costs_only_what_is_older_than_the_newest_sound_checkpoint(fresh):
    store = fresh(2)
    with watched(failing(5, errno.ENOSPC, lasting=False)):
        save(store, 30)
    assert store.steps() == (20, 30)

    (store.root / "step-000000030" / FILES[1]).write_bytes(b"rot")
    with watched(failing(5, errno.ENOSPC, lasting=False)), pytest.raises(FtcoreError, match="step 20 is intact"):
        save(store, 40)
    assert store.steps() == (20, 30)


def test_a_write_cut_short_by_the_system_is_an_error_and_not_a_checkpoint(fresh):
    store = fresh(1)

    def overflow() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with pytest.raises(FtcoreError, match=r"File too large, 40.* bytes are needed.*step 10 is intact"):
            store.save(20, {"adapter": {"w": torch.ones(10_000)}}, {})

    assert in_child(overflow) == 0
    assert leftovers(store.root) == []
    assert_holds(store.latest(silent), 10)


def test_an_error_in_publish_leaves_the_old_file_and_says_so(tmp_path):
    path = tmp_path / "ftcore.json"
    publish(path, b"old")
    for at in range(1, 5):
        with watched(failing(at, errno.ENOSPC, lasting=False)), pytest.raises(FtcoreError) as raised:
            publish(path, b"newer")
        assert str(raised.value) == f"{path} could not be written: disk full; 5 bytes are needed"
        assert path.read_bytes() == b"old"
        assert [entry.name for entry in tmp_path.iterdir()] == ["ftcore.json"]


def test_a_read_only_disk_still_resumes_from_the_newest_sound_checkpoint(fresh):
    store = fresh(2)
    (store.root / "step-000000020" / FILES[0]).write_bytes(b"")
    said: list[str] = []
    with watched(failing(1, errno.EROFS, lasting=True)):
        assert_holds(store.latest(said.append), 10)
    assert "read-only" in said[0]


# Damage


def flipped(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position * (len(data) - 1) // 23] ^= 1 << position % 8
    return bytes(changed)


DAMAGE: dict[str, list[Callable[[bytes], bytes | None]]] = {
    "flipped": [lambda data, position=position: flipped(data, position) for position in range(24)],
    "cut": [lambda data: data[: len(data) // 2], lambda data: data[:-1]],
    "empty": [lambda data: b""],
    "longer": [lambda data: data + b"\n", lambda data: data + b"\0"],
    "deleted": [lambda data: None],
}


def assert_falls_back(store: Store, bad: Path, name: str) -> None:
    before = {entry.name: entry.read_bytes() for entry in bad.iterdir()}
    said: list[str] = []
    assert_holds(store.latest(said.append), 10)
    assert len(said) == 1
    assert name in said[0]
    assert str(bad) in said[0]
    kept = store.root / "quarantine" / bad.name
    assert {entry.name: entry.read_bytes() for entry in kept.iterdir()} == before
    assert store.steps() == (10,)


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_every_damage_is_found_and_the_checkpoint_before_is_used(fresh, name, kind):
    for damage in DAMAGE[kind]:
        store = fresh(2)
        bad = store.root / "step-000000020"
        data = damage((bad / name).read_bytes())
        if data is None:
            (bad / name).unlink()
        else:
            (bad / name).write_bytes(data)
        assert_falls_back(store, bad, name)


def test_a_file_that_the_manifest_does_not_list_is_found(fresh):
    store = fresh(2)
    (store.root / "step-000000020" / "extra.safetensors").write_bytes(b"")
    assert_falls_back(store, store.root / "step-000000020", "extra.safetensors")


def test_the_files_of_another_step_are_found(fresh):
    store = fresh(2)
    (store.root / "step-000000020").rename(store.root / "step-000000030")
    assert_falls_back(store, store.root / "step-000000030", "MANIFEST.json is of step 20")


def test_sealed_nan_and_sealed_rubbish_are_found(fresh, monkeypatch):
    for spoil in ({"w": torch.tensor([1.0, float("nan")])}, None):
        store = fresh(1)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "_require_finite", lambda step, tensors: None)
            if spoil is None:
                patch.setattr("safetensors.torch.save", lambda tensors, metadata: b"rubbish")
            Store(store.root).save(20, {"adapter": spoil or {}}, {})
        assert_falls_back(Store(store.root), store.root / "step-000000020", "adapter.safetensors")


def test_a_checkpoint_of_a_later_format_is_refused_and_left_alone(fresh, monkeypatch):
    store = fresh(2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "FORMAT", 2)
        save(store, 30)
    with pytest.raises(Refused, match=r"format 2.*update ftcore"):
        store.latest(silent)
    assert store.steps() == (20, 30)


def test_two_bad_checkpoints_of_one_step_are_both_kept(fresh):
    store = fresh(2)
    for _ in range(2):
        (store.root / "step-000000020" / FILES[0]).write_bytes(b"")
        assert_holds(store.latest(lambda line: None), 10)
        save(store, 20)
    assert sorted(os.listdir(store.root / "quarantine")) == ["step-000000020", "step-000000020-2"]


def test_nothing_sound_is_nothing_to_resume(fresh, tmp_path):
    assert Store(tmp_path / "absent").latest(silent) is None
    store = fresh(2)
    for step in (10, 20):
        (store.root / f"step-{step:09d}" / FILES[0]).write_bytes(b"")
    said: list[str] = []
    assert store.latest(said.append) is None
    assert len(said) == 2


# Saving


def test_a_step_that_is_there_is_not_written_again(fresh):
    store = fresh(2)
    assert trace(lambda: save(store, 20)) == SYNC_DIRECTORY
    assert store.steps() == (10, 20)


def test_a_step_that_is_there_unsoundly_is_set_aside_and_written(fresh):
    store = fresh(2)
    (store.root / "step-000000020" / FILES[0]).write_bytes(b"")
    save(store, 20)
    assert_holds(store.latest(silent), 20)
    assert os.listdir(store.root / "quarantine") == ["step-000000020"]


@pytest.mark.parametrize("begin", [lambda store: save(store, 30), lambda store: store.latest(silent)])
def test_what_a_killed_process_left_is_removed_at_the_start(fresh, begin):
    store = fresh(2)
    for name in (".tmp-30-1", ".trash-5-1"):
        (store.root / name).mkdir()
        (store.root / name / FILES[0]).write_bytes(b"half")
    begin(store)
    assert leftovers(store.root) == []


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path, keep):
    store = Store(tmp_path, keep)
    for step in (10, 20, 30, 40, 50):
        save(store, step)
    assert store.steps() == (10, 20, 30, 40, 50)[-keep:]


def test_the_one_just_saved_is_kept_whatever_else_is_there(fresh):
    store = fresh(2)
    save(store, 5)
    assert store.steps() == (5, 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2, torch.complex64], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_checkpoint_is_never_written(fresh, dtype, bad):
    store = fresh(2)
    tensors = contents(30)
    tensors["optimizer"]["spoilt"] = torch.tensor([1.0, bad]).to(dtype)
    with pytest.raises(FtcoreError, match=r"step 30.*optimizer tensor 'spoilt'"):
        store.save(30, tensors, state(30))
    with pytest.raises(FtcoreError, match=r"step 30.*state"):
        store.save(30, contents(30), {"loss": bad})
    assert_holds(store.latest(silent), 20)


def test_tensors_come_back_as_they_were_however_they_lay_in_memory(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "whole": base,
        "same": base,
        "row": base[1],
        "column": base[:, 1],
        "repeated": base[:1].expand(3, 6),
        "number": torch.tensor(-0.0),
        "none": torch.empty(0, 3),
        "also none": torch.empty(0, 3),
        "counts": torch.arange(5),
        "eighth": torch.ones(3).to(torch.float8_e4m3fn),
        "parameter": torch.nn.Parameter(base * 2),
    }
    Store(tmp_path).save(1, {"adapter": tensors, "empty": {}}, {})
    found = Store(tmp_path).latest(silent)
    assert found is not None
    assert found.tensors["empty"] == {}
    assert found.tensors["adapter"].keys() == tensors.keys()
    for name, tensor in tensors.items():
        read = found.tensors["adapter"][name]
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert raw(read) == raw(tensor), name


def test_the_manifest_can_be_read_by_anyone(fresh):
    manifest = json.loads((fresh(1).root / "step-000000010" / "MANIFEST.json").read_text())
    assert manifest["format"] == 1
    assert manifest["step"] == 10
    assert set(manifest["files"]) == set(FILES) - {"MANIFEST.json"}
    assert all(set(entry) == {"size", "sha256"} for entry in manifest["files"].values())


# The lock


@contextmanager
def holder(directory: Path, worker: bool = False) -> Iterator[int]:
    """Another process that holds the lock, with `worker` one that has forked a child of its own."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(directory):
            grandchild = os.fork() if worker else 0
            if not worker or grandchild:
                os.write(tell, f"{grandchild}\n".encode())
            time.sleep(60)
        os._exit(0)
    grandchild = int(os.read(ready, 32))
    try:
        yield child
    finally:
        for pid in filter(None, (child, grandchild)):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(tell)


def assert_refused(directory: Path, pid: int) -> None:
    begun = time.monotonic()
    with pytest.raises(Refused) as raised, locked(directory):
        pass
    assert time.monotonic() - begun < 1
    message = str(raised.value)
    for part in (str(directory), f"pid {pid} ", socket.gethostname(), "started 20"):
        assert part in message


def test_a_second_process_is_refused_and_told_who_holds_the_directory(tmp_path):
    with holder(tmp_path / "run") as pid:
        assert_refused(tmp_path / "run", pid)


def test_a_second_thread_is_refused(tmp_path):
    failures: list[BaseException] = []

    def second() -> None:
        try:
            assert_refused(tmp_path, os.getpid())
        except BaseException as error:
            failures.append(error)

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert_refused(tmp_path, os.getpid())
    assert failures == []


@pytest.mark.parametrize("worker", [False, True], ids=["alone", "its-forked-worker-lives-on"])
def test_kill_9_leaves_no_stale_lock(tmp_path, worker):
    with holder(tmp_path, worker) as pid:
        assert_refused(tmp_path, pid)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with locked(tmp_path):
            assert f"pid {os.getpid()} " in (tmp_path / ".lock").read_text()


def test_the_lock_is_free_after_the_block_and_its_file_stays(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path):
        assert in_child(lambda: assert_refused(tmp_path, os.getppid())) == 0
        assert_refused(tmp_path, os.getpid())


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="name another --output"), locked(tmp_path / "file" / "run"):
        pass


# The module


def test_no_pickle_is_read_or_written():
    source = Path(checkpoints.__file__).read_text()
    names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    attributes = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    assert not (names | imported) & {"pickle", "marshal", "shelve", "dill", "cloudpickle", "eval", "exec"}
    assert not attributes & {"torch.load", "torch.save"}


def test_importing_the_module_imports_no_torch():
    code = "import sys, ftcore.checkpoints; sys.exit(bool({'torch', 'safetensors', 'numpy'} & set(sys.modules)))"
    core = str(Path(checkpoints.__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": core}).returncode == 0
