"""Linking for another machine: LLVM compiles for every processor, a library also takes that machine's linker."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence

from hapi_tvm.errors import BuildError, MissingCompiler

__all__ = ["cross_linker", "find_cross_compiler"]

# Of Debian and Ubuntu, by what the GNU compiler for it is called.
PACKAGES = {"aarch64-linux-gnu": "gcc-aarch64-linux-gnu"}


def find_cross_compiler(triple: str, cc: str | None = None) -> str:
    """The path of a C compiler that links for ``triple``.

    cc: its name or path; None takes GNU's, ``<triple>-gcc``, or where this machine is such a one, its own.
    Raises MissingCompiler, which names the package to install.
    """
    names = [cc] if cc is not None else [f"{triple}-gcc"]
    if cc is None and triple == f"{platform.machine()}-linux-gnu":
        names.append("cc")
    for name in names:
        if found := shutil.which(name):
            return found
    if cc is not None:
        raise MissingCompiler(
            f"cc={cc!r} is no program: give the name or the path of a C compiler that links for {triple}, "
            f"or leave cc out to take {triple}-gcc"
        )
    if package := PACKAGES.get(triple):
        advice = f"on Debian and Ubuntu `apt-get install {package}` brings it; or give another one as cc=..."
    else:
        advice = "give the compiler of that system as cc=..., for Android the clang of its NDK"
    raise MissingCompiler(f"{triple}-gcc, which links for {triple}, is not on the PATH: {advice}")


def cross_linker(compiler: str) -> Callable[..., None]:
    """What ``export_library`` takes as ``fcompile``, by the C compiler of another machine.

    A missing symbol is an error of the load, which names it, and not of the first call. The linker raises
    BuildError with what ``compiler`` says.
    """

    def link(output: str, objects: Sequence[str], options: Sequence[str] | None = None) -> None:
        flags = ["-shared", "-fPIC", "-Wl,-z,now", *(options or ())]
        command = [compiler, *flags, "-o", output, *objects, "-lm"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise BuildError(
                f"{compiler} could not link {output}: {said[0]}. Give a compiler for the target's processor as cc=..."
            )

    return link
