"""Randomness as a function of (seed, what for, when): nothing random is ever stored, and runs in threads never meet."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# torch's, numpy's and Python's generators belong to the process; whoever draws from them holds this.
_generators = threading.RLock()


def mix(seed: int, *purpose: int | str) -> int:
    """A number below 2**63 that is always the same for the same seed and purpose, and unrelated to all others."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int, *purpose: int | str) -> Iterator[None]:
    """Inside, every generator of the process starts from `mix(seed, *purpose)`; afterwards each is as it was."""
    import numpy
    import torch

    value = mix(seed, *purpose)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with _generators, torch.random.fork_rng(devices=devices):
        python, arrays = random.getstate(), numpy.random.get_state()
        torch.manual_seed(value)
        random.seed(value)
        numpy.random.seed(value % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)


def permutation(count: int, seed: int, *purpose: int | str) -> list[int]:
    """The numbers below `count` in an order that depends on nothing but the arguments."""
    order: list[int] = permuted(count, seed, *purpose).tolist()
    return order


def permuted(count: int, seed: int, *purpose: int | str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The same as an array, in a fifth of the memory."""
    import torch

    generator = torch.Generator().manual_seed(mix(seed, *purpose))
    order: np.ndarray[tuple[int], np.dtype[np.int64]] = torch.randperm(count, generator=generator).numpy()
    return order
