"""Which exits, branch kinds and thresholds meet an SLA best: from two tables, with NumPy alone."""

from hapi_tvm.search.evaluator import evaluate
#from hapi_tvm.search.front import pareto
#from hapi_tvm.search.solver import search

__all__ = ["evaluate", "pareto", "search"]
