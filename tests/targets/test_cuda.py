"""CUDA as a target where no GPU is needed: what it is called, what it refuses, and what it makes of kernels."""

from __future__ import annotations

import ctypes
import logging
import pathlib
import platform
import shutil
import struct
import subprocess

import numpy as np
import pytest
import tvm
from tvm import te, topi
from tvm.s_tir import meta_schedule as ms
from tvm.script import tirx as T

from hapi_tvm import targets
from hapi_tvm.errors import BuildError, MissingCompiler, TargetError
from hapi_tvm.kernels import workload
from hapi_tvm.targets import nvcc as nvcc_module
from hapi_tvm.targets.cuda_arch import ARCHITECTURES, LIMITS
from hapi_tvm.targets.cuda_compiler import compile_cuda_library, cuda_compiler
from hapi_tvm.targets.cuda_runtime import DRIVER_FUNCTIONS, _runtime
from hapi_tvm.targets.forkserver_builder import remove_library
from hapi_tvm.targets.nvcc import architectures_of, find_nvcc
from hapi_tvm.targets.rules.gpu import HOST_FUNCTION, is_bound, schedule_unbound
from hapi_tvm.tvm_compat import import_tensor_intrin
from tests.without_gpu import one_thread

NVCC = find_nvcc()
SOURCE = targets.cuda("sm_90", compiler="source")
# NVIDIA's compiler is no part of what this project installs; with source as the compiler all is tried without it.
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc")
# Of Debian's gcc-aarch64-linux-gnu, which only who compiles for Arm needs.
needs_arm_linker = pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-gcc"), reason="needs aarch64-linux-gnu-gcc")
AARCH64 = 183  # of <elf.h>
FATBIN = struct.pack("<I", 0xBA55ED50)
# What a machine says that has no GPU; one that has a GPU cannot say it.
needs_no_gpu = pytest.mark.skipif(tvm.cuda(0).exist, reason="needs a machine without a GPU")


def convolution() -> tvm.tirx.PrimFunc:
    """A 3x3 convolution with padding, a bias and ReLU, in NCHW."""
    data, weight = te.placeholder((1, 8, 9, 9), name="data"), te.placeholder((12, 8, 3, 3), name="weight")
    bias = te.placeholder((1, 12, 1, 1), name="bias")
    summed = topi.nn.conv2d(data, weight, strides=1, padding=1, dilation=1, data_layout="NCHW")
    return te.create_prim_func([data, weight, bias, topi.nn.relu(topi.add(summed, bias))])


def dense() -> tvm.tirx.PrimFunc:
    data, weight = te.placeholder((1, 96), name="data"), te.placeholder((96, 10), name="weight")
    return te.create_prim_func([data, weight, topi.nn.matmul(data, weight)])


def mean() -> tvm.tirx.PrimFunc:
    data = te.placeholder((1, 24, 7, 7), name="data")
    return te.create_prim_func([data, topi.divide(topi.sum(data, axis=[2, 3]), 49.0)])


def softmax() -> tvm.tirx.PrimFunc:
    data = te.placeholder((1, 10), name="data")
    return te.create_prim_func([data, topi.nn.softmax(data)])


KERNELS = {"convolution": convolution, "dense": dense, "mean": mean, "softmax": softmax}


@pytest.fixture(params=KERNELS)
def kernel(request) -> tvm.tirx.PrimFunc:
    return KERNELS[request.param]()


def test_describes_the_device():
    assert isinstance(SOURCE, targets.Target)
    assert (SOURCE.name, SOURCE.arch, SOURCE.threads, SOURCE.vector_width) == ("cuda sm_90", "sm_90", 1, 1)
    assert SOURCE.tvm_target.kind.name == "cuda" and SOURCE.tvm_target.host.kind.name == "llvm"
    assert str(SOURCE.tvm_target.attrs["arch"]) == "sm_90"
    assert SOURCE == targets.cuda("sm_90", compiler="source")


def test_limits_are_the_least_of_all_tags_of_such_gpus():
    tags = [tag for tag in tvm.target.list_tags().values() if tag.kind.name == "cuda"]
    ours = [tag for tag in tags if str(tag.attrs["arch"]).rstrip("af") in ARCHITECTURES]
    for name, limit in LIMITS.items():
        assert min(int(tag.attrs[name]) for tag in ours) == limit


@pytest.mark.parametrize("arch", ["sm_91", "sm_9", "90", "", "compute_90", "sm_90x", "SM_90"])
@pytest.mark.parametrize("compiler", ["source", None])
def test_an_unknown_architecture_names_the_known(arch, compiler):
    with pytest.raises(TargetError) as error:
        targets.cuda(arch, compiler=compiler)
    for part in (f"arch={arch!r}", "sm_90", "nvidia-smi"):
        assert part in str(error.value)


def test_a_near_miss_is_told():
    with pytest.raises(TargetError, match="did you mean sm_8"):
        targets.cuda("sm_8", compiler="source")


def test_a_device_names_its_architecture_and_its_host():
    target = targets.cuda(device="nvidia/geforce-rtx-3090", compiler="source")
    assert (target.arch, target.host) == ("sm_86", platform.machine())


@needs_arm_linker
def test_a_device_of_another_host_is_compiled_for_and_nothing_more():
    target = targets.cuda(device="nvidia/jetson-agx-orin-32gb", compiler="source")
    assert target.name == "cuda sm_87 host=aarch64" and not target.has_device
    with pytest.raises(TargetError, match="cuda sm_87 host=aarch64 has no board.*hapi_tvm.port"):
        target.reach.check()


@needs_nvcc
@needs_arm_linker
def test_candidates_for_another_host_are_its_libraries():
    target = targets.cuda(device="nvidia/jetson-agx-orin-32gb")
    scheduled = target.default_schedule(workload(dense())["main"]).mod
    (built,) = target.builder().build([ms.builder.BuilderInput(scheduled, target.tvm_target)])
    assert built.error_msg is None
    library = pathlib.Path(str(built.artifact_path)).read_bytes()
    assert int.from_bytes(library[18:20], "little") == AARCH64 and FATBIN in library
    remove_library(str(built.artifact_path))


@pytest.mark.parametrize(
    "given, said",
    [
        ({"device": "nvidia/jetson-orin"}, "did you mean nvidia/jetson"),
        ({"device": "raspberry-pi/4b-aarch64"}, "is none of the .* GPUs"),
        ({"device": "nvidia/jetson-nano", "arch": "sm_53"}, "give one of them"),
        ({"arch": "sm_90", "cc": "gcc"}, "cc='gcc' links for another host"),
        ({"arch": "sm_90", "tracker": "127.0.0.1:9190"}, "belong together"),
        ({"arch": "sm_90", "tracker": "127.0.0.1:9190", "key": "gpu"}, "boards measure machine code"),
    ],
)
def test_what_contradicts_itself_is_refused(given, said):
    with pytest.raises(TargetError, match=said):
        targets.cuda(**given, compiler="source")


def test_a_host_that_nothing_here_links_for_is_its_own_error():
    with pytest.raises(MissingCompiler, match="riscv64-linux-gnu-gcc"):
        targets.cuda("sm_90", host="riscv64", compiler="source")


def test_code_for_one_chip_alone_is_taken():
    assert targets.cuda("sm_90a", compiler="source").arch == "sm_90a"


@needs_no_gpu
def test_without_a_gpu_the_architecture_must_be_given():
    with pytest.raises(TargetError, match="give one of .*sm_90"):
        targets.cuda()


@needs_no_gpu
def test_without_a_gpu_it_says_that_nothing_can_run():
    assert not SOURCE.has_device
    module = workload(dense())
    arguments = ms.arg_info.ArgInfo.from_entry_func(module, remove_preproc=True)
    candidate = ms.runner.RunnerInput("kernel.so", "cuda", arguments)
    reach = SOURCE.reach
    for ask in (reach.check, lambda: reach.run(print, timeout_s=1), lambda: SOURCE.runner().run([candidate])):
        with pytest.raises(TargetError, match="cuda sm_90 has no device here.*nvidia-smi"):
            ask()


def test_a_compiler_that_is_not_there_is_its_own_error():
    with pytest.raises(MissingCompiler, match="compiler='/opt/no/nvcc' is no program.*compiler='source'"):
        targets.cuda("sm_90", compiler="/opt/no/nvcc")


def test_a_program_of_another_name_is_refused():
    with pytest.raises(MissingCompiler, match="must be called nvcc"):
        targets.cuda("sm_90", compiler=shutil.which("true"))


def program(folder: pathlib.Path, script: str) -> str:
    path = folder / "nvcc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_program_that_is_no_nvcc_is_told(tmp_path):
    with pytest.raises(MissingCompiler, match="is no nvcc that works .*nothing of the kind"):
        targets.cuda("sm_90", compiler=program(tmp_path, "echo nothing of the kind"))


@needs_nvcc
def test_the_nvcc_asked_for_compiles_without_fast_math(tmp_path):
    """One that writes down how it is called."""
    arguments = tmp_path / "arguments"
    asked = program(tmp_path, f'echo "$@" >> {arguments}\nexec "{NVCC}" "$@"')
    target = targets.cuda("sm_90", compiler=asked)
    scheduled = target.default_schedule(workload(softmax())["main"]).mod
    with target.compiling():
        compiled = tvm.tirx.build(scheduled, target=target.tvm_target)
    (call,) = [line for line in arguments.read_text().splitlines() if "--list" not in line]
    assert "code=sm_90" in call and "fast_math" not in call
    assert [module.kind for module in compiled.imports] == ["cuda"]


def test_without_nvcc_the_source_is_embedded_and_the_log_says_so(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(nvcc_module, "WHEELS", "no_such_package")
    with caplog.at_level(logging.INFO, logger="hapi_tvm"):
        assert targets.cuda("sm_90").nvcc is None
    assert "holds CUDA source (no nvcc on this machine)" in caplog.text


@needs_nvcc
def test_nvcc_is_found_and_the_log_names_it(caplog):
    with caplog.at_level(logging.INFO, logger="hapi_tvm"):
        assert targets.cuda("sm_90").nvcc == NVCC
    assert f"{NVCC} compiles the kernels" in caplog.text


@needs_nvcc
def test_nvcc_is_found_under_cuda_home(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    at_home = program(tmp_path / "bin", f'exec "{NVCC}" "$@"')
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if shutil.which("nvcc"):
        pytest.skip("needs a machine without nvcc in /usr/bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert find_nvcc() == at_home
    assert "sm_90" in architectures_of(at_home)


@needs_nvcc
def test_an_architecture_that_this_nvcc_dropped_is_refused():
    dropped = sorted(set(ARCHITECTURES) - set(architectures_of(NVCC)))
    if not dropped:
        pytest.skip("this nvcc compiles for all")
    targets.cuda(dropped[0], compiler="source")
    with pytest.raises(TargetError, match="architectures of .*nvcc"):
        targets.cuda(dropped[0], compiler=NVCC)


def test_every_kernel_gets_threads_without_trials(kernel):
    schedule = SOURCE.default_schedule(workload(kernel)["main"])
    assert not is_bound(kernel) and is_bound(schedule.mod["main"])


def test_a_default_schedule_computes_what_the_kernel_does(kernel):
    """With its threads run one after the other, on the CPU."""
    scheduled = SOURCE.default_schedule(workload(kernel)["main"]).mod["main"]
    shapes = [[int(extent) for extent in param.ty.shape] for param in kernel.params]
    random = np.random.default_rng(0)
    inputs = [random.standard_normal(shape).astype(np.float32) for shape in shapes]
    results = []
    for func in (workload(kernel)["main"], one_thread(scheduled)):
        arguments = [tvm.runtime.tensor(array) for array in inputs]
        tvm.tirx.build(tvm.IRModule({"main": func}), target="llvm")["main"](*arguments)
        results.append(arguments[-1].numpy())
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_finishing_schedules_what_has_no_threads_and_spares_the_host():
    given = dense()
    bound = SOURCE.default_schedule(workload(convolution())["main"]).mod["main"]
    host = mean().with_attr(HOST_FUNCTION, True)
    module = tvm.IRModule({"given": given, "bound": bound, "host": host})
    finished = schedule_unbound(module, SOURCE.tvm_target)
    assert is_bound(finished["given"])
    assert str(finished["given"].attrs["global_symbol"]) == str(given.attrs["global_symbol"])
    tvm.ir.assert_structural_equal(finished["bound"], bound)
    tvm.ir.assert_structural_equal(finished["host"], host)
    tvm.ir.assert_structural_equal(module["given"], given)


@needs_nvcc
def test_a_kernel_that_nvcc_refuses_is_an_error_with_its_words():
    @T.prim_func(s_tir=True)
    def unknown(a: T.Buffer((32,), "float32"), b: T.Buffer((32,), "float32")):
        for i in T.thread_binding(32, thread="threadIdx.x"):
            with T.sblock("call"):
                v = T.axis.spatial(32, i)
                b[v] = T.call_extern("float32", "hapi_no_such_function", a[v])

    target = targets.cuda("sm_90").tvm_target
    with pytest.raises(BuildError, match="hapi_no_such_function"):
        with target, cuda_compiler(NVCC):
            tvm.tirx.build(workload(unknown), target=target)


@needs_nvcc
@needs_no_gpu
def test_the_stub_of_the_driver_makes_no_device_appear():
    with SOURCE.tvm_target, cuda_compiler(NVCC):
        assert tvm.get_global_func("ffi.Module.create.cuda", allow_missing=True) is not None
    assert not tvm.cuda(0).exist


def test_the_stub_has_all_that_the_runtime_takes_from_the_driver():
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    listed = subprocess.run(["nm", "-D", "--undefined-only", str(_runtime())], capture_output=True, text=True)
    wanted = {line.split()[-1] for line in listed.stdout.splitlines()}
    assert {name for name in wanted if name.startswith("cu") and "@" not in name} == set(DRIVER_FUNCTIONS)


def test_the_environment_is_as_before(monkeypatch):
    monkeypatch.setenv("TVM_CUDA_COMPILE_MODE", "nvrtc")
    monkeypatch.delenv("TVM_COMPILE_FORCE_FALLBACK", raising=False)
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    with cuda_compiler(None):
        assert libc.getenv(b"TVM_COMPILE_FORCE_FALLBACK") == b"1"  # what TVM reads
    assert libc.getenv(b"TVM_COMPILE_FORCE_FALLBACK") is None
    assert libc.getenv(b"TVM_CUDA_COMPILE_MODE") == b"nvrtc"


def test_candidates_of_the_space_are_compiled_in_forks():
    """MetaSchedule's, for the convolution: sampled, passed by its checks of a GPU's limits, compiled."""
    import_tensor_intrin()
    target = targets.cuda("sm_90")
    module = workload(convolution())
    context = ms.TuneContext(
        module,
        target=target.tvm_target,
        space_generator=target.space(module["main"]),
        search_strategy=ms.search_strategy.EvolutionarySearch(
            population_size=16, init_min_unmeasured=4, genetic_num_iters=1
        ),
        rand_state=1,
        num_threads=1,
    )
    spaces = context.generate_design_space()
    context.pre_tuning(64, 4, spaces, ms.database.MemoryDatabase(), ms.cost_model.RandomModel())
    candidates = list(context.generate_measure_candidates())[:2]
    context.post_tuning()
    assert candidates and all(is_bound(candidate.sch.mod["main"]) for candidate in candidates)
    inputs = [ms.builder.BuilderInput(candidate.sch.mod, target.tvm_target) for candidate in candidates]
    for result in target.builder().build(inputs):
        assert result.error_msg is None
        path = pathlib.Path(str(result.artifact_path))
        assert path.read_bytes().startswith(b"\x7fELF")
        remove_library(str(path))


@T.prim_func(s_tir=True)
def refused(a: T.Buffer((32,), "float32"), b: T.Buffer((32,), "float32")):
    """An intrinsic with too few arguments."""
    for i in T.thread_binding(32, thread="threadIdx.x"):
        with T.sblock("call"):
            v = T.axis.spatial(32, i)
            b[v] = T.call_intrin("float32", "tirx.tvm_load_matrix_sync", a[v])


def test_a_candidate_that_does_not_compile_is_one_failed_result():
    (result,) = SOURCE.builder().build([ms.builder.BuilderInput(workload(refused), SOURCE.tvm_target)])
    assert result.artifact_path is None and "Check failed" in str(result.error_msg)


def test_a_kernel_that_no_rule_fits_is_an_error():
    """TVM would compile it without a word, for the host."""

    @T.prim_func(s_tir=True)
    def opaque(a: T.Buffer((4,), "float32")):
        T.evaluate(T.call_extern("int32", "hapi_no_such_function", a.data))

    with pytest.raises(BuildError, match="no rule binds kernel opaque"):
        schedule_unbound(tvm.IRModule({"opaque": opaque}), SOURCE.tvm_target)


def test_a_kernels_library_holds_its_source(tmp_path):
    scheduled = SOURCE.default_schedule(workload(dense())["main"]).mod
    path = compile_cuda_library(scheduled, SOURCE.tvm_target, str(tmp_path / "kernel.so"), None)
    assert b"__global__ void" in pathlib.Path(path).read_bytes()
