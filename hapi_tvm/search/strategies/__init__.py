"""Search mechanisms by name: the exact one, and the peers that it is compared with."""

from collections.abc import Mapping
from types import MappingProxyType

from hapi_tvm.search.exact import Exact
from hapi_tvm.search.strategies.annealing import Annealing
from hapi_tvm.search.strategies.coordinate import CoordinateDescent
from hapi_tvm.search.strategies.exhaustive import Exhaustive
from hapi_tvm.search.strategies.genetic import Genetic
from hapi_tvm.search.strategies.insertion import Insertion
from hapi_tvm.search.strategies.nsga2 import NSGA2
from hapi_tvm.search.strategies.random_designs import RandomDesigns
from hapi_tvm.search.strategies.tpe import TPE
from hapi_tvm.search.strategy import Strategy

__all__ = ["STRATEGIES"]

_ALL = (
    Exact(),
    RandomDesigns(),
    Annealing(),
    Genetic(),
    NSGA2(),
    TPE(),
    CoordinateDescent(),
    Insertion(),
    Exhaustive(),
)
STRATEGIES: Mapping[str, Strategy] = MappingProxyType({strategy.name: strategy for strategy in _ALL})
