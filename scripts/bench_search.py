#!/usr/bin/env python3
"""The exact search against the other mechanisms: same tables, same designs, same wall time, one core each.

The exact search runs once for each of ``--seconds``, to have its proven gap. Then each peer runs once, for the
longest; its values at the shorter times are its best-so-far then, for nothing that a peer does depends on how much time
it will have. One that has found what the exact search proved to be the best is stopped. All choose thresholds from the
same grid. JSON on stdout, progress on stderr, ``--plot`` in SVG or PNG. Needs the extra ``bench``.

``best``: mean latency in microseconds where an accuracy drop is allowed, else the accuracy drop as a share of the
samples; null where nothing was found that keeps the SLA; after the longest time, and under ``at`` after each.
``gap``: how far the exact search's value may be from the optimum, as a share of the latency or of the samples;
0 if ``proven``. ``exact_never_worse`` compares whole keys (the value, then the other one of latency and accuracy,
then fewer exits) on every instance after every time.

``median_speedup_to_equal_quality``: over the instances, the time that the fastest of the others took to reach the
best value of all the others (never more than they were given), over the time that the exact search took to reach the
same or a better value; 0 where it never did. ``median_budget_to_equal_quality``: the longest time over the latter.

``designs_per_second``: random designs, one by one in any order (``Batch``), on the instance named under
``rates``; ``exact_designs_per_second``: those that branch and bound counted, which share their beginnings.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import pathlib
import platform
import statistics
import sys
from dataclasses import asdict
from typing import Any

from hapi_tvm.records import SLA
from hapi_tvm.search.instance import PS_PER_US
from hapi_tvm.search.objective import Goal, Key
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.strategies import STRATEGIES
from search_instances import Case, default_cases, quick_cases, run_cases
from search_race import CLOCKS, EXACT, Result, batch_designs_per_second, race, warm_up
from search_results import Kept

PEERS = tuple(name for name in STRATEGIES if name not in (EXACT, "exhaustive"))
RATED, RATED_SECONDS = "four-drop-1", 5.0
QUICK_SECONDS = (0.1, 0.3)


def run_all(
    cases: tuple[Case, ...], strategies: list[str], seconds: list[float], seed: int, jobs: int, clock: str, kept: Kept
) -> dict[str, list[Result]]:
    """By instance."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        jobs, mp_context=spawn, initializer=warm_up, initargs=(strategies,)
    ) as pool:
        if EXACT in strategies:
            races = [(case, EXACT, given, seed, clock) for case in cases for given in seconds]
            _gather(pool, races, kept)
        proven = {case: _proven(kept.of(case.name, EXACT)) for case in cases}
        peers = [strategy for strategy in strategies if strategy != EXACT]
        races = [(case, peer, seconds[-1], seed, clock, proven[case]) for case in cases for peer in peers]
        _gather(pool, races, kept)
    return {case.name: [found for name in strategies for found in kept.of(case.name, name)] for case in cases}


def _gather(pool: concurrent.futures.Executor, races: list[tuple], kept: Kept) -> None:
    waiting = [pool.submit(race, *asked) for asked in races if not kept.has(asked[0].name, *asked[1:3])]
    for count, done in enumerate(concurrent.futures.as_completed(waiting), 1):
        result = done.result()
        kept.add(result)
        print(f"{count}/{len(waiting)} {result.case} {result.strategy} {result.seconds:g} s", file=sys.stderr)


def _proven(exact: list[Result]) -> Key | None:
    """The best key there is, if one of the runs has proven it."""
    return next((result.outcome.key for result in exact if result.outcome.proven), None)


class Row:
    """One instance's results."""

    def __init__(self, case: Case, results: list[Result], seconds: list[float]):
        self.case, self.seconds = case, seconds
        self.problem, self.sla = case.problem()
        self.peers = {result.strategy: result for result in results if result.strategy != EXACT}
        self.exact = {result.seconds: result for result in results if result.strategy == EXACT}

    def results(self, seconds: float) -> dict[str, Result]:
        """Those that tell what was known after so long."""
        exact = {EXACT: self.exact[seconds]} if self.exact else {}
        return exact | self.peers

    def keys(self, seconds: float) -> dict[str, Key | None]:
        return {name: _key(result, seconds) for name, result in self.results(seconds).items()}

    def worse(self) -> list[dict[str, Any]]:
        """Where a peer knew something better than the exact search."""
        found = []
        for seconds in self.seconds if self.exact else []:
            keys = self.keys(seconds)
            ours = keys.pop(EXACT)
            better = [name for name, key in keys.items() if key is not None and (ours is None or key < ours)]
            found += [{"instance": self.case.name, "seconds": seconds, "strategy": name} for name in better]
        return found

    def times_to_equal_quality(self) -> tuple[float, float | None] | None:
        """Seconds of the fastest peer to the best value of all peers, and of the exact search to no worse a one.
        None where there is nothing to compare."""
        longest = self.seconds[-1]
        keys = [key for name, key in self.keys(longest).items() if name != EXACT and key is not None]
        if not keys or not self.exact:
            return None
        times = [peer.seconds_to(min(keys)) for peer in self.peers.values()]
        return min(time for time in times if time is not None), self.exact[longest].seconds_to(min(keys))

    def report(self) -> dict[str, Any]:
        longest = self.results(self.seconds[-1])
        return {
            "name": self.case.name,
            "E": len(self.problem.instance.reach_ps) - 1,
            "kinds": len({option.kind for option in self.problem.instance.options}),
            "T": self.case.grid,
            "N": self.problem.instance.samples,
            "shared": self.case.shared,
            "max_exits": self.sla.max_exits,
            "sla": _asked(self.sla),
            "best": self._values(self.seconds[-1]),
            "at": {f"{seconds:g}": self._values(seconds) for seconds in self.seconds},
            "gap": self._gaps()[-1] if self.exact else None,
            "gap_at": {f"{s:g}": gap for s, gap in zip(self.seconds, self._gaps(), strict=False)},
            "proven_at": {f"{seconds:g}": result.outcome.proven for seconds, result in self.exact.items()},
            "seconds_to_proof": next((r.took_s for _, r in sorted(self.exact.items()) if r.outcome.proven), None),
            "seconds_to_best": {
                name: result.outcome.trace[-1].seconds if result.outcome.trace else None
                for name, result in longest.items()
            },
            "designs": {name: result.outcome.designs for name, result in longest.items()},
            "peak_bytes": {name: result.peak_bytes for name, result in longest.items()},
        }

    def value(self, key: Key) -> float:
        """Microseconds, or a share of the samples."""
        samples = self.problem.instance.samples
        return key[0] / samples if self.problem.objective.goal is Goal.ACCURATE else key[0] / (samples * PS_PER_US)

    def _values(self, seconds: float) -> dict[str, float | None]:
        return {name: None if key is None else self.value(key) for name, key in self.keys(seconds).items()}

    def _gaps(self) -> list[float | None]:
        return [_gap(self.problem, self.exact[seconds]) for seconds in self.seconds if self.exact]


def _key(result: Result, seconds: float) -> Key | None:
    """What it returned, if that was asked for then: the last batch may end a little late."""
    return result.outcome.key if result.seconds == seconds else result.key_at(seconds)


def _gap(problem: Problem, result: Result) -> float | None:
    if result.outcome.proven or result.outcome.key is None:
        return 0.0 if result.outcome.proven else None
    return problem.objective.gap(result.outcome.key[0], result.outcome.floor)


def _asked(sla: SLA) -> dict[str, float]:
    return {name: value for name, value in asdict(sla).items() if value is not None and name != "max_exits"}


def report(rows: list[Row], seconds: list[float], rated: Case, clock: str) -> dict[str, Any]:
    worse = [entry for row in rows for entry in row.worse()]
    times = [pair for row in rows if (pair := row.times_to_equal_quality()) is not None]
    rated_exact = race(rated, EXACT, RATED_SECONDS, 0)
    return {
        "machine": platform.machine(),
        "seconds": seconds,
        "clock": clock,
        "instances": [row.report() for row in rows],
        "rates": rated.name,
        "designs_per_second": batch_designs_per_second(rated),
        "exact_designs_per_second": rated_exact.outcome.designs / rated_exact.took_s,
        "exact_never_worse": not worse if times else None,
        "worse": worse,
        "median_speedup_to_equal_quality": _median([theirs / ours if ours else 0.0 for theirs, ours in times]),
        "median_budget_to_equal_quality": _median([seconds[-1] / ours if ours else 0.0 for _, ours in times]),
    }


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", nargs="+", type=float, default=[1.0, 10.0, 60.0])
    parser.add_argument("--strategies", nargs="+", choices=[*PEERS, EXACT], default=[EXACT, *PEERS])
    parser.add_argument("--instances", nargs="+", default=[""], help="parts of the names of those to run")
    parser.add_argument("--run", nargs="+", default=[], help="run folders whose tables are searched, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="worker processes; more than idle cores distorts")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: processor time, for a busy machine")
    parser.add_argument("--keep", type=pathlib.Path, help="file of results, so that a run that was stopped goes on")
    parser.add_argument("--plot", type=pathlib.Path, help="where to draw best-so-far over time")
    parser.add_argument("--quick", action="store_true", help="small instances and a fraction of a second")
    args = parser.parse_args()
    seconds = sorted(QUICK_SECONDS if args.quick else args.seconds)
    known = quick_cases() if args.quick else default_cases()
    known = (*known, *(case for folder in args.run for case in run_cases(folder)))
    cases = tuple(case for case in known if any(part in case.name for part in args.instances))
    if not cases:
        parser.error(f"no instance is named like {' or '.join(args.instances)}: {', '.join(c.name for c in known)}")
    kept = Kept(args.keep, args.seed, args.clock)
    results = run_all(cases, args.strategies, seconds, args.seed, args.jobs, args.clock, kept)
    rows = [Row(case, results[case.name], seconds) for case in cases]
    rated = next((case for case in default_cases() if case.name == RATED and not args.quick), cases[0])
    print(json.dumps(report(rows, seconds, rated, args.clock), indent=1))
    if args.plot:
        from search_plot import draw

        draw(rows, args.plot)


if __name__ == "__main__":
    main()
