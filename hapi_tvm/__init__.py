"""hapi_tvm: a trained CNN classifier becomes an early-exit network compiled for one device."""

from __future__ import annotations

import importlib
import pathlib

__version__ = "0.1.0"

# In a checkout that was never installed, ``passes`` and ``targets`` stand beside this package; the
# wheel carries them inside. Appended last, so an installed copy and a checkout never mix.
_ROOT = pathlib.Path(__file__).resolve().parent.parent
if (_ROOT / "passes" / "__init__.py").exists():
    __path__.append(str(_ROOT))

_PUBLIC = {
    "SLA": "hapi_tvm.records",
    "HapiError": "hapi_tvm.errors",
    "import_model": "hapi_tvm.importing",
    "load_dataset": "hapi_tvm.datasets",
    "build": "hapi_tvm.building",
    "load": "hapi_tvm.runtime",
    "port": "hapi_tvm.porting",
    "targets": "hapi_tvm.targets",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str):
    """Import a public name when it is first used: ``--help`` must not wait for TVM."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hapi_tvm' has no attribute {name!r}; public names: {', '.join(__all__)}")
    module = importlib.import_module(_PUBLIC[name])
    value = module if module.__name__ == f"hapi_tvm.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(__all__))
