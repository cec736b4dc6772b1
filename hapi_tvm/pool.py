"""The pool of threads that runs parallel kernels, at a target's size.

TVM makes a pool for each thread that calls a parallel kernel, with its first such call, and asks the environment
for the size then; without an answer it takes half the logical processors of an x86 (0.27,
``src/runtime/threading_backend.cc``).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["VARIABLE", "with_pool"]

T = TypeVar("T")

VARIABLE = "TVM_NUM_THREADS"
_environment_lock = threading.RLock()


def with_pool(threads: int, function: Callable[[], T]) -> T:
    """What ``function`` returns, called in a thread of its own, whose parallel kernels run on ``threads`` threads."""
    with _environment_lock, _variable(str(threads)), ThreadPoolExecutor(max_workers=1) as fresh:
        return fresh.submit(function).result()


@contextmanager
def _variable(value: str) -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
