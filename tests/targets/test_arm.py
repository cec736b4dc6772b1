"""Arm targets without a board: what they are called, what they refuse, and that AArch64 code comes out."""

from __future__ import annotations

import collections
import os
import re
import shutil
import struct

import kernel_samples as samples
import pytest
import tvm
from tvm.s_tir import meta_schedule as ms

import hapi_tvm as hapi
from hapi_tvm import targets
from hapi_tvm.errors import ArtifactError, MissingCompiler, TargetError
from hapi_tvm.kernels import workload
from hapi_tvm.runtime import load
from hapi_tvm.targets.arm_devices import arm_devices
from hapi_tvm.targets.cross import find_cross_compiler
from hapi_tvm.targets.forkserver_builder import remove_library
from hapi_tvm.targets.rpc.builder import CrossBuilder
from tests.early_exit import compiled
from tests.families import resnet

RASPBERRY_PI = "raspberry-pi/4b-aarch64"
# Any program does where nothing is linked.
UNUSED = shutil.which("sh")
AARCH64, LIBRARY, OBJECT = 183, 3, 1


def elf_header(data: bytes) -> tuple[int, int]:
    """e_type and e_machine."""
    assert data[:6] == b"\x7fELF\x02\x01", "a 64-bit little-endian ELF file"
    return struct.unpack_from("<HH", data, 16)


@pytest.fixture(scope="module")
def cross_compiler() -> str:
    try:
        return find_cross_compiler("aarch64-linux-gnu")
    except MissingCompiler as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def target() -> targets.Target:
    return targets.arm(mcpu="cortex-a72", cc=UNUSED)


def scheduled(func: tvm.tirx.PrimFunc, target: targets.Target) -> tvm.runtime.Module:
    schedule = target.default_schedule(workload(func)["main"])
    return tvm.tirx.build(target.finish(schedule.mod), target=target.tvm_target)


def test_describes_a_processor(target):
    assert isinstance(target, targets.Target)
    assert target.name == "arm cortex-a72 threads=1"
    assert target.vector_width == 4
    assert "asimd" in target.needed_flags
    assert not target.emulated


def test_a_key_is_part_of_the_name_and_says_whether_the_board_is_emulated():
    keys = ("rasp4b", "emulated-arm")
    real, emulated = (targets.arm("127.0.0.1:9190", key, mcpu="generic", cc=UNUSED) for key in keys)
    assert real.name == "arm generic threads=1 key=rasp4b" and not real.emulated
    assert "emulated" in emulated.name and emulated.emulated


def test_a_tag_of_tvm_tells_processor_and_cores():
    target = targets.arm(device=RASPBERRY_PI, threads=4, cc=UNUSED)
    assert target.name == "arm cortex-a72 threads=4"
    assert int(target.tvm_target.attrs["num-cores"]) == 4
    with pytest.raises(TargetError, match=rf"threads=5 must lie in 1..4, the cores of {RASPBERRY_PI}"):
        targets.arm(device=RASPBERRY_PI, threads=5)


def test_extensions_and_another_system_are_part_of_the_name():
    assert targets.arm(device="arm/thunderx", cc=UNUSED).name == "arm thunderxt88 +crc +lse threads=1"
    assert targets.arm(device="arm/pixel2", cc=UNUSED).name == "arm generic arm64-linux-android threads=1"


@pytest.mark.parametrize("tag", arm_devices())
def test_every_device_gets_code_of_its_own(tag, tmp_path):
    path = tmp_path / "kernel.o"
    scheduled(samples.add_relu(2, 7, lanes=4), targets.arm(device=tag, cc=UNUSED)).write_to_file(str(path))
    assert elf_header(path.read_bytes()) == (OBJECT, AARCH64)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "raspbery-pi/4b"}, rf"'raspbery-pi/4b' is none of the .*: did you mean {RASPBERRY_PI}"),
        ({"device": "arm/rasp4b"}, r"32-bit system \(armv8l-linux-gnueabihf\).*mcpu="),
        ({"device": "aws/cpu/c5.large"}, r"no Arm CPU .*give one of arm/"),
        ({"device": "nvidia/nvidia-a100"}, r"no Arm CPU .*cuda"),
        ({"mcpu": "cortex-a27"}, r"'cortex-a27' is none of the .*did you mean .*cortex-a72"),
        ({"mcpu": "cascadelake"}, "none of the .* processors that LLVM knows for aarch64-linux-gnu"),
        ({"threads": 0}, "threads=0 must be at least 1"),
        ({"tracker": "127.0.0.1:9190"}, "key=None belong together"),
        ({"key": "rasp4b"}, "tracker=None and key='rasp4b'"),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_what_is_refused(options, said):
    with pytest.raises(TargetError, match=said):
        targets.arm(**options, cc=UNUSED)


def test_a_missing_compiler_names_its_package(monkeypatch, tmp_path):
    with pytest.raises(MissingCompiler, match="cc='no-such-gcc' is no program: .*aarch64-linux-gnu-gcc"):
        targets.arm(cc="no-such-gcc")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingCompiler, match="aarch64-linux-gnu-gcc, .*`apt-get install gcc-aarch64-linux-gnu`"):
        targets.arm()
    with pytest.raises(MissingCompiler, match="arm64-linux-android-gcc.*NDK"):
        targets.arm(device="arm/pixel2")


def test_without_a_board_nothing_runs(target):
    for run in (target.runner, target.reach.facts, lambda: target.reach.run(print, timeout_s=1)):
        with pytest.raises(TargetError, match="has no board.*tracker=.*scripts/emulated_board.py"):
            run()


def test_a_build_without_a_board_ends_before_it_begins(target, unbuilt, tmp_path):
    backbone, data = hapi.import_model(unbuilt.model), hapi.load_dataset(unbuilt.data)
    with pytest.raises(TargetError, match="has no board"):
        hapi.build(backbone, data, target, sla=hapi.SLA(max_accuracy_drop=0.1), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


CONVOLUTIONS = {
    "3x3": samples.blocked(32, 32, 14, lanes=4),
    "1x1": samples.blocked(64, 96, 14, kernel=1, lanes=4),
    "depthwise": samples.depthwise(32, 14, lanes=4),
    "winograd": samples.winograd_blocked(32, 32, 14, 4, lanes=4),
    "dense": samples.matmul(128, 112),
}


def loops(assembly: str) -> list[list[str]]:
    """The bodies of innermost loops: what lies between a label and the next branch back to it."""
    lines = [line.split("//")[0].strip() for line in assembly.splitlines()]
    places = {line[:-1]: number for number, line in enumerate(lines) if re.fullmatch(r"\.LBB\w+:", line)}
    found = []
    for number, line in enumerate(lines):
        jump = re.match(r"(?:b\.\w+|cbn?z\s+\w+,|tbn?z\s+\w+, #\d+,|b)\s+(\S+)$", line)
        if jump and places.get(jump[1], number) < number:
            body = lines[places[jump[1]] + 1 : number]
            if not any(name[:-1] in places for name in body):
                found.append(body)
    return found


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_sums_of_four_lanes_stay_in_registers(name, target):
    """In the loop that multiplies most, whole vectors are multiplied, and none goes to the stack and back."""
    assembly = str(scheduled(CONVOLUTIONS[name], target).inspect_source("asm"))
    busiest = max(loops(assembly), key=lambda body: sum("fmla" in line for line in body))
    count = collections.Counter("".join(re.findall(r"\.(\d[sd])", line)[:1]) for line in busiest if "fmla" in line)
    assert count["4s"] >= 8 and set(count) == {"4s"}
    assert not [line for line in busiest if re.search(r"\bq\d+.*\[sp", line)]


def built(funcs, cc: str) -> list[ms.builder.BuilderResult]:
    tvm_target = targets.arm(mcpu="cortex-a72", cc=cc).tvm_target
    return CrossBuilder(2, cc).build([ms.builder.BuilderInput(workload(func), tvm_target) for func in funcs])


def test_candidates_are_libraries_for_the_board(cross_compiler):
    (result,) = built([samples.add_relu(2, 7, lanes=4)], cross_compiler)
    assert result.error_msg is None
    path = str(result.artifact_path)
    with open(path, "rb") as library:
        assert elf_header(library.read()) == (LIBRARY, AARCH64)
    remove_library(path)
    assert not os.path.exists(os.path.dirname(path))


def test_a_compiler_of_another_machine_is_one_failed_result():
    """``false`` stands for a compiler that refuses what it is given."""
    (result,) = built([samples.add_relu(2, 7, lanes=4)], shutil.which("false"))
    assert result.artifact_path is None and "could not link" in str(result.error_msg)


def test_an_early_exit_module_is_one_library_for_the_board(cross_compiler, tmp_path):
    target = targets.arm(mcpu="cortex-a72", cc=cross_compiler)
    path = tmp_path / "model.so"
    target.reach.export(compiled(resnet(1), target, tmp_path), path)
    assert elf_header(path.read_bytes()) == (LIBRARY, AARCH64)
    with pytest.raises(ArtifactError, match="not a library that can be loaded here"):
        load(path)
