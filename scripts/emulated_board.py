#!/usr/bin/env python3
"""An emulated AArch64 board: TVM's RPC server for Arm, which QEMU runs on this machine.

    python scripts/emulated_board.py setup
    python scripts/emulated_board.py serve --tracker 127.0.0.1:9190

``setup`` unpacks Debian's arm64 packages and PyPI's AArch64 wheels into one folder. It installs nothing and needs
no root rights; it needs apt-get, dpkg-deb, pip and a network. What the board computes is what a real one computes;
what it measures is no processor's time, so its key must say that it is emulated.
"""

from __future__ import annotations

import argparse
import getpass
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata

from hapi_tvm.addresses import parse_address, valid_key

MIRROR, RELEASE = "http://deb.debian.org/debian", "bookworm"
KEYRING = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# With all that they depend on; the release's Python, whose version chooses the wheels.
DEBIAN = ("python3.11", "libstdc++6")
PYTHON_VERSION = "3.11"
WHEELS = ("apache-tvm", "apache-tvm-ffi", "cloudpickle", "numpy", "psutil")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
QEMU = ("qemu-aarch64-static", "qemu-aarch64")
QEMU_PACKAGES = ("qemu-user-static", "qemu-user")
KEY = "emulated-arm"
START_TIMEOUT_S = 300
CHECKOUT = pathlib.Path(__file__).resolve().parent.parent

PYTHON = """#!/bin/sh
# AArch64 Python with TVM, emulated. It is its own sys.executable, so that what it starts is emulated too.
unset LD_LIBRARY_PATH LD_PRELOAD
export PYTHONHOME={root}/usr PYTHONPATH={site}
exec {qemu} -L {root} -0 {python} {root}/usr/bin/python{version} "$@"
"""
SERVER = """
import sys
sys.path.append({checkout!r})
sys.modules["torch"] = None
from hapi_tvm.board_server import serve
print("warning: TVM's RPC runs whatever it is sent; this board listens on 127.0.0.1 only", flush=True)
serve({tracker!r}, {key!r}, "127.0.0.1", None, lambda line: print(line, flush=True))
"""


def run(command: Sequence[str], folder: pathlib.Path | None = None) -> None:
    """In ``folder``, if one is given. Raises SystemExit with the command and what it said."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode != 0:
        raise SystemExit(f"error: {' '.join(command)} ended with {done.returncode}:\n{done.stderr.strip()[-2000:]}")


def default_folder() -> pathlib.Path:
    """Where the platform keeps caches (XDG on Linux)."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "hapi_tvm" / "emulated-board"


def version(package: str) -> str:
    """Of a package that is installed here."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise SystemExit(
            f"error: {sys.executable} has no {package}: run this script by the Python that hapi_tvm is installed for"
        ) from None


def is_ready(folder: pathlib.Path) -> bool:
    """Whether ``folder`` holds a board with the TVM of this Python."""
    mark = folder / "ready"
    return mark.is_file() and mark.read_text() == version("apache-tvm")


def set_up(folder: pathlib.Path) -> None:
    if is_ready(folder):
        print(f"{folder}: an emulated board with TVM {version('apache-tvm')}, as it was set up before")
        return
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise SystemExit(f"error: {tool} is not on the PATH; the board is made of Debian's packages")
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ready").unlink(missing_ok=True)
    print("1/4 QEMU")
    qemu = find_qemu(folder / QEMU[0])
    print("2/4 Debian's packages for arm64")
    unpack_debian(folder / "root", folder / "apt")
    print("3/4 wheels for AArch64")
    install_wheels(folder / "site")
    print("4/4 trying it out")
    write_python(folder, qemu)
    check(folder / "python")
    (folder / "ready").write_text(version("apache-tvm"))
    print(f"{folder}: ready after {time.monotonic() - started:.0f} s")


def find_qemu(path: pathlib.Path) -> str:
    """The emulator: this machine's, or one that is put at ``path``, out of the hundreds of MB of its package."""
    for name in QEMU:
        if found := shutil.which(name):
            return found
    for package in QEMU_PACKAGES:
        with tempfile.TemporaryDirectory(dir=path.parent) as name:
            folder = pathlib.Path(name)
            # By root, apt would fetch as a user who may not write here.
            run(["apt-get", "download", "-o", f"APT::Sandbox::User={getpass.getuser()}", package], folder)
            unpack(folder, folder)
            found = [binary for binary in (folder / "usr" / "bin" / name for name in QEMU) if binary.is_file()]
            if found:
                found[0].replace(path)
                return str(path)
    raise SystemExit("error: no qemu-aarch64-static: `apt-get install qemu-user-static` brings it")


def unpack_debian(root: pathlib.Path, apt: pathlib.Path) -> None:
    """An arm64 system in ``root``, of ``DEBIAN`` and what that needs. apt: a folder for apt's state, then removed."""
    if not KEYRING.is_file():
        raise SystemExit(f"error: {KEYRING} is missing: `apt-get install debian-archive-keyring` brings it")
    emptied(root)
    emptied(apt)
    for part in ("lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR} {RELEASE} main\n")
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": getpass.getuser(),
        "Debug::NoLocking": "true",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::Etc::SourceList": apt / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State": apt,
        "Dir::State::Lists": apt / "lists",
        "Dir::State::Status": apt / "status",
    }
    get = ["apt-get", "--quiet", "--yes", *(f"--option={name}={value}" for name, value in options.items())]
    run([*get, "update"])
    run([*get, "install", "--download-only", "--no-install-recommends", *DEBIAN])
    unpack(apt / "cache" / "archives", root)
    shutil.rmtree(apt)


def install_wheels(site: pathlib.Path) -> None:
    """The versions that are installed here, for AArch64."""
    emptied(site)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:"]
    platforms = [f"--platform={name}" for name in PLATFORMS]
    pinned = [f"{name}=={version(name)}" for name in WHEELS]
    run([*pip, f"--target={site}", f"--python-version={PYTHON_VERSION}", *platforms, *pinned])


def write_python(folder: pathlib.Path, qemu: str) -> None:
    python = folder / "python"
    paths = {"root": folder / "root", "site": folder / "site", "qemu": qemu, "python": python}
    quoted = {name: shlex.quote(str(path)) for name, path in paths.items()}
    python.write_text(PYTHON.format(**quoted, version=PYTHON_VERSION))
    python.chmod(0o755)


def check(python: pathlib.Path) -> None:
    """Raises SystemExit where the board's TVM does not run."""
    program = "import platform, tvm.rpc; print(platform.machine())"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, timeout=START_TIMEOUT_S)
    if done.stdout.strip() != "aarch64":
        raise SystemExit(f"error: the emulated Python does not run:\n{(done.stdout + done.stderr)[-2000:]}")


def emptied(folder: pathlib.Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def unpack(packages: pathlib.Path, destination: pathlib.Path) -> None:
    for package in sorted(packages.glob("*.deb")):
        run(["dpkg-deb", "--extract", str(package), str(destination)])
        package.unlink()


def serve(folder: pathlib.Path, tracker: str, key: str) -> None:
    """Become the server, as ``hapi-tvm board serve`` makes it on a real board, until SIGINT or SIGTERM."""
    if not is_ready(folder):
        raise SystemExit(f"error: {folder} holds no board with this TVM: type `python {sys.argv[0]} setup` first")
    if "emulated" not in key:
        raise SystemExit(f"error: --key {key} must contain the word emulated, so that nobody takes its times for real")
    python = str(folder / "python")
    program = SERVER.format(checkout=str(CHECKOUT), tracker=parse_address(tracker), key=valid_key(key))
    os.execv(python, [python, "-c", program])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument("folder", nargs="?", type=pathlib.Path, default=default_folder(), help="default: %(default)s")
    commands.add_parser("setup", parents=[folder], help="make the board in a folder")
    server = commands.add_parser("serve", parents=[folder], help="run it, behind a key of a tracker")
    server.add_argument("--tracker", required=True, metavar="HOST:PORT")
    server.add_argument("--key", default=KEY, help="default: %(default)s")
    args = parser.parse_args()
    if args.command == "setup":
        set_up(args.folder.resolve())
    else:
        serve(args.folder.resolve(), args.tracker, args.key)


if __name__ == "__main__":
    main()
