"""Libraries that only the peers in the benchmark need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hapi_tvm.errors import MissingPackage

__all__ = ["extra"]


@contextlib.contextmanager
def extra(package: str) -> Iterator[None]:
    """Around imports from ``package``, of the extra ``bench``. Raises MissingPackage without it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingPackage(f"{package} is not installed; install the extra: pip install 'hapi-tvm[bench]'") from None
