"""Which exits, branch kinds and thresholds meet an SLA best: from two tables, with NumPy and Numba alone."""

from hapi_tvm.search.dataflow import sdf
from hapi_tvm.search.evaluator import evaluate
from hapi_tvm.search.front import pareto
from hapi_tvm.search.ladder import ladder
from hapi_tvm.search.solver import search
from hapi_tvm.search.space import Space

__all__ = ["Space", "evaluate", "ladder", "pareto", "sdf", "search"]
