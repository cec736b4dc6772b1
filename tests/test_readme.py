"""What the README tells a stranger to type exists, and what exists is told."""

from __future__ import annotations

import ast
import os
import pathlib
import re

import click
import pytest

import hapi_tvm
from hapi_tvm import cli

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(group=cli.main, path: tuple[str, ...] = ()) -> dict[str, click.Command]:
    """Every command by the words that call it, such as "board check"."""
    found = {}
    for name, command in group.commands.items():
        words = (*path, name)
        found |= commands(command, words) if isinstance(command, click.Group) else {" ".join(words): command}
    return found


def options(command) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts if name.startswith("--")}


def test_every_command_is_told_and_every_told_command_exists():
    told = set(re.findall(r"`hapi-tvm ([a-z]+(?: [a-z]+)*)", README))
    assert told == set(commands())


def test_every_option_named_exists():
    known = set().union(*(options(command) for command in commands().values()))
    for script in (ROOT / "scripts").glob("*.py"):
        known |= set(re.findall(r'add_argument\("(--[a-z-]+)"', script.read_text(encoding="utf-8")))
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", page.read_text(encoding="utf-8")))
        assert named <= known, page.name


def test_scripts_named_exist_and_run():
    for page in PAGES:
        for name in re.findall(r"(?<![\w/])scripts/([\w.]+)", page.read_text(encoding="utf-8")):
            assert os.access(ROOT / "scripts" / name, os.X_OK), f"{page.name}: scripts/{name}"


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", python_blocks())
def test_python_uses_public_names_only(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hapi":
            assert node.attr in hapi_tvm.__all__
            assert getattr(hapi_tvm, node.attr) is not None


def test_the_demo_shows_every_stage_of_a_first_build():
    """The stages in the README's output are those of the code, in its order."""
    first = re.search(r"\$ scripts/demo\n(.*?)```", README, re.DOTALL).group(1)
    shown = re.findall(r"^\[([a-z ]+)\] ", first, re.MULTILINE)
    source = "".join(
        (ROOT / "hapi_tvm" / name).read_text(encoding="utf-8") for name in ("building.py", "backbone_build.py")
    )
    stages = set(re.findall(r'stage\("([a-z ]+)"', source)) | {"calibrate", "test"}
    assert set(shown) == stages
    assert len(shown) == len(stages)
