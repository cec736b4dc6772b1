"""Every error that a user can cause. The command line prints the message and exits with code 2.

HapiError
├── ModelError          the file or module cannot be imported
├── NoLegalCut          the network has no place for an exit
├── DataError           images, labels or splits do not fit
├── SLAError            the SLA contradicts itself
├── InfeasibleSLA       no design meets the SLA; carries the nearest one
├── RecordError         a record on disk is broken or contradicts itself
├── RunMismatch         the run folder belongs to another model, target, data set or version
├── RunBusy             another process builds in the run folder
├── TargetError         the target is unknown or cannot be used here
├── BuildError          the compiler refused, or a kernel computes wrong numbers
├── MissingCompiler     no compiler on this machine links for the target
├── MissingPackage      what was asked for needs a package of an extra that is not installed
└── ArtifactError       the ``.so`` is no artifact of ours, or was fed something it does not take
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "BuildError",
    "DataError",
    "HapiError",
    "InfeasibleSLA",
    "MissingCompiler",
    "MissingPackage",
    "ModelError",
    "NoLegalCut",
    "RecordError",
    "RunBusy",
    "RunMismatch",
    "SLAError",
    "TargetError",
]


class HapiError(Exception):
    """Root of the tree. A message says what is wrong, shows the values, and names the next step."""


class ModelError(HapiError):
    pass


class NoLegalCut(HapiError):
    pass


class DataError(HapiError):
    pass


class SLAError(HapiError):
    pass


class InfeasibleSLA(HapiError):
    """No design meets the SLA.

    nearest: the design that comes closest to its latencies together (a ``Design``). closest: by field of the SLA,
    the design that comes closest to that limit among those that keep all others, or among all where none does.
    """

    def __init__(self, message: str, nearest=None, closest=None):
        super().__init__(message)
        self.nearest = nearest
        self.closest = closest or {}


class RecordError(HapiError):
    pass


class RunMismatch(HapiError):
    pass


class RunBusy(HapiError):
    pass


class TargetError(HapiError):
    pass


class BuildError(HapiError):
    pass


class MissingCompiler(HapiError):
    pass


class MissingPackage(HapiError):
    pass


class ArtifactError(HapiError):
    pass
