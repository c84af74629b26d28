"""What a process shares with everybody in it, and how to tell that somebody changed it."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Mapping
from typing import Any


def process() -> dict[str, Any]:
    """Environment, directory, logging, warnings, signals, import path, threads and random state, as plain values."""
    root = logging.getLogger()
    seen: dict[str, Any] = {
        "the environment": dict(os.environ),
        "the working directory": os.getcwd(),
        "the root logger's level": root.level,
        "the root logger's handlers": len(root.handlers),
        "what logging is disabled below": logging.root.manager.disable,
        "the warning filters": [str(one) for one in warnings.filters],
        "the handler of SIGINT": str(signal.getsignal(signal.SIGINT)),
        "the handler of SIGTERM": str(signal.getsignal(signal.SIGTERM)),
        "sys.path": list(sys.path),
        "the running threads": sorted(filter(_stays, (t.name for t in threading.enumerate() if not t.daemon))),
        "standard output": [str(type(sys.stdout)), str(type(sys.stderr))],
        "the umask": _umask(),
        "the random state of Python": _short(repr(random.getstate())),
    }
    if "numpy" in sys.modules:
        seen["the random state of numpy"] = _short(repr(sys.modules["numpy"].random.get_state()[1].tolist()))
    if "torch" in sys.modules:
        seen |= _torch(sys.modules["torch"])
    return seen


def _torch(torch: Any) -> dict[str, Any]:
    return {
        "the random state of torch": _short(repr(torch.random.get_rng_state().tolist())),
        "torch's default dtype": str(torch.get_default_dtype()),
        "torch's number of threads": torch.get_num_threads(),
        "whether torch records gradients": torch.is_grad_enabled(),
        "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch's matmul precision": torch.get_float32_matmul_precision(),
        "torch's anomaly detection": torch.is_anomaly_enabled(),
    }


def _stays(thread: str) -> bool:
    """Whether a thread is there to stay: a pool's, such as transformers reads weights with, is about to end."""
    return not thread.startswith("ThreadPoolExecutor")


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs, each with how, but for what appeared because a library was imported."""
    return [f"{name} ({_how(before[name], after[name])})" for name in before if before[name] != after.get(name)]


def _how(before: Any, after: Any) -> str:
    if isinstance(before, dict):
        names = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
        return f"{names[0]} was {before.get(names[0])!r} and is {after.get(names[0])!r}"
    if isinstance(before, list):
        new = [one for one in after if one not in before] or [one for one in before if one not in after]
        return str(new[0]) if new else "the order"
    return f"{before!r} before, {after!r} after"
