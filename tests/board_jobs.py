"""Functions that tests run on boards: importable by name, in a worker."""

from __future__ import annotations

import pathlib
import time

from hapi_tvm.targets.rpc.board import Board
from hapi_tvm.targets.rpc.faults import BoardFault

__all__ = ["accuse", "begun", "call", "fail", "read_back", "work_for"]


def _note(diary: str, job: int) -> None:
    with open(diary, "a", encoding="utf-8") as file:
        file.write(f"{job}\n")


def begun(diary: pathlib.Path) -> list[int]:
    """The jobs that were begun, each as often as it was; sorted."""
    return sorted(int(line) for line in diary.read_text().split())


def work_for(board: Board, diary: str, job: int, seconds: float) -> tuple[str, int]:
    """Keep the board busy with short calls; returns its name and job + 1, which the board computed."""
    _note(diary, job)
    add_one = board.session.get_function("rpc.test.addone")
    until_s = time.monotonic() + seconds
    answer = add_one(job)
    while time.monotonic() < until_s:
        answer = add_one(job)
        time.sleep(0.005)
    return board.name, int(answer)


def read_back(board: Board, diary: str, job: int, size_bytes: int) -> tuple[str, int]:
    """Write a file on the board and load it as a library would be: all of it must be there."""
    _note(diary, job)
    data = bytes(size_bytes)
    name = board.write(data)
    if bytes(board.session.download(name)) != data:
        raise ValueError("the file is damaged")
    return board.name, size_bytes


def fail(board: Board, diary: str, job: int) -> None:
    _note(diary, job)
    raise ValueError("no such tile")


def accuse(board: Board, diary: str, job: int, culprit: str) -> str:
    """As a function does that finds a board's answers wrong."""
    _note(diary, job)
    if board.name == culprit:
        raise BoardFault("the logits are not those of the host", lasting=True)
    return board.name


def call(board: Board, diary: str, job: int, name: str) -> str:
    """Call a function of the server's, such as one that crashes."""
    _note(diary, job)
    return str(board.session.get_function(name)())
