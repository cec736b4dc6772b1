"""The results of a long benchmark, kept as they come."""

from __future__ import annotations

import os
import pathlib
import pickle

from search_race import Result

__all__ = ["Kept"]


class Kept:
    """By instance, strategy and time given; of one seed and clock. path: a file that outlives the process, or None.

    A file of another seed or clock, or of something else, raises SystemExit. Results of code that was changed since
    are not told from others: remove the file.
    """

    def __init__(self, path: pathlib.Path | None, seed: int, clock: str):
        self._path, self._made = path, (seed, clock)
        self._results: dict[tuple[str, str, float], Result] = {}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        if path is not None and path.exists():
            made, self._results = _read(path)
            if made != self._made:
                raise SystemExit(f"{path} holds results of seed and clock {made}, and asked is {self._made}: remove it")

    def has(self, case: str, strategy: str, seconds: float) -> bool:
        return (case, strategy, seconds) in self._results

    def add(self, result: Result) -> None:
        self._results[result.case, result.strategy, result.seconds] = result
        if self._path is not None:
            fresh = self._path.with_suffix(".new")
            fresh.write_bytes(pickle.dumps((self._made, self._results)))
            os.replace(fresh, self._path)

    def of(self, case: str, strategy: str) -> list[Result]:
        """By rising time."""
        found = [result for key, result in self._results.items() if key[:2] == (case, strategy)]
        return sorted(found, key=lambda result: result.seconds)


def _read(path: pathlib.Path) -> tuple[tuple[int, str], dict[tuple[str, str, float], Result]]:
    try:
        made, results = pickle.loads(path.read_bytes())
        assert isinstance(results, dict)
    # Whatever bytes that are no pickle, or another one, make of it.
    except Exception as error:
        raise SystemExit(f"{path} holds no results of this benchmark ({error}): give another file") from None
    return made, results
