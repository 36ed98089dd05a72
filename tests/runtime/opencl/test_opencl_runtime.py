"""The OpenCL runtime on pocl, a device on the CPU: memory, kernels, errors, cached programs, times, threads."""

import ctypes
import json
import os
import shutil
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from ksm_hw.cli import main
from ksm_hw.errors import UserError
from ksm_hw.runtime.opencl import build
from ksm_hw.runtime.opencl.build import build_opencl_runtime
from ksm_hw.toolchains.linker import link_shared_library, linker_command

TARGET = tvm.target.Target({"kind": "opencl", "max_threads_per_block": 256, "host": {"kind": "llvm"}})


@pytest.fixture(scope="module")
def device(opencl: None) -> tvm.runtime.Device:
    return tvm.opencl(0)


def library_of(function: tvm.tirx.PrimFunc, folder: Path) -> tvm.runtime.Module:
    """The function compiled for OpenCL, written to a library and loaded back, as an artifact's is."""
    path = folder / "kernel.so"
    executable = tvm.compile(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), target=TARGET)
    command = linker_command(os.uname().machine)
    executable.export_library(
        str(path), fcompile=lambda output, objects, **_: link_shared_library(command, output, objects)
    )
    return tvm.runtime.load_module(str(path))


@T.prim_func
def scaled(
    source: T.Buffer((64,), "float32"), target: T.Buffer((64,), "float32"), factor: T.float32, shift: T.int32
) -> None:
    for block in T.thread_binding(4, thread="blockIdx.x"):
        for thread in T.thread_binding(16, thread="threadIdx.x"):
            index = T.meta_var(block * 16 + thread)
            target[index] = source[index] * factor + T.Cast("float32", shift)


def test_a_kernel_with_scalar_arguments(device: tvm.runtime.Device, tmp_path: Path) -> None:
    source = np.arange(64, dtype=np.float32)
    result = tvm.runtime.empty((64,), "float32", device)
    library_of(scaled, tmp_path)["main"](tvm.runtime.tensor(source, device), result, 0.5, -3)
    np.testing.assert_array_equal(result.numpy(), source * np.float32(0.5) - 3)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "uint32", "float32", "float64"])
def test_every_width_of_scalars(dtype: str, device: tvm.runtime.Device, tmp_path: Path) -> None:
    scalar = getattr(T, dtype)

    @T.prim_func
    def filled(target: T.Buffer((8,), dtype), value: scalar) -> None:
        for thread in T.thread_binding(8, thread="threadIdx.x"):
            target[thread] = value

    value = -100 if dtype.startswith(("int", "float")) else 200
    result = tvm.runtime.empty((8,), dtype, device)
    library_of(filled, tmp_path)["main"](result, value)
    np.testing.assert_array_equal(result.numpy(), np.full(8, value, dtype))


def test_copies_between_host_and_device_and_inside(device: tvm.runtime.Device) -> None:
    array = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    first = tvm.runtime.tensor(array, device)
    second = tvm.runtime.empty(array.shape, array.dtype, device)
    first.copyto(second)
    np.testing.assert_array_equal(second.numpy(), array)
    assert tvm.runtime.empty((0, 3), "float32", device).numpy().shape == (0, 3)


def test_what_the_device_says_of_itself(device: tvm.runtime.Device) -> None:
    assert device.exist and device.device_name and "OpenCL" in device.compute_version
    assert device.max_threads_per_block >= 256 and device.max_shared_memory_per_block > 0
    assert device.multi_processor_count >= 1 and device.total_global_memory > 1 << 20


def test_views_are_copied_at_their_offsets(device: tvm.runtime.Device) -> None:
    array = np.arange(32, dtype=np.float32)
    whole, other = tvm.runtime.tensor(array, device), tvm.runtime.tensor(array, device)
    view = whole._create_view((8,), "float32", relative_byte_offset=16)
    np.testing.assert_array_equal(view.numpy(), array[4:12])
    view.copyfrom(-array[:8])
    array[4:12] = -array[:8]
    np.testing.assert_array_equal(whole.numpy(), array)
    view.copyto(other._create_view((8,), "float32", relative_byte_offset=64))
    np.testing.assert_array_equal(other.numpy()[16:24], array[4:12])


def test_a_device_that_is_not_there(device: tvm.runtime.Device) -> None:
    missing = tvm.get_global_func("ksm_hw.opencl.device_count")()
    assert not tvm.opencl(missing).exist
    with pytest.raises(RuntimeError, match=f"There is no OpenCL device {missing}: {missing} found"):
        tvm.runtime.empty((4,), "float32", tvm.opencl(missing))


def test_out_of_memory_says_how_much_was_asked_for(device: tvm.runtime.Device) -> None:
    with pytest.raises(Exception, match=r"Out of memory on .*: a buffer of 4398046511104 bytes"):
        tvm.runtime.empty((1 << 40,), "float32", device)


def test_a_kernel_that_does_not_compile_shows_the_log(device: tvm.runtime.Device, tmp_path: Path) -> None:
    @T.prim_func
    def broken(target: T.Buffer((8,), "float32")) -> None:
        for thread in T.thread_binding(8, thread="threadIdx.x"):
            target[thread] = T.call_extern("float32", "no_such_function_of_opencl", thread)

    with pytest.raises(RuntimeError) as raised:
        library_of(broken, tmp_path)["main"](tvm.runtime.empty((8,), "float32", device))
    message = str(raised.value)
    assert "the kernels do not compile for" in message and "no_such_function_of_opencl" in message


def test_a_work_group_that_is_too_large(device: tvm.runtime.Device, tmp_path: Path) -> None:
    threads = 2 * device.max_threads_per_block

    @T.prim_func
    def large(target: T.Buffer((threads,), "float32")) -> None:
        for thread in T.thread_binding(threads, thread="threadIdx.x"):
            target[thread] = T.float32(1)

    with pytest.raises(RuntimeError, match=rf"work groups of {threads}, and .* in groups of at most"):
        library_of(large, tmp_path)["main"](tvm.runtime.empty((threads,), "float32", device))


def test_launches_of_many_threads_do_not_mix_their_arguments(device: tvm.runtime.Device, tmp_path: Path) -> None:
    function = library_of(scaled, tmp_path)["main"]
    wrong: list[int] = []

    def work(number: int) -> None:
        source = tvm.runtime.tensor(np.full(64, number, np.float32), device)
        result = tvm.runtime.empty((64,), "float32", device)
        for shift in range(50):
            function(source, result, float(number), shift)
            if not np.array_equal(result.numpy(), np.full(64, number * number + shift, np.float32)):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@T.prim_func
def long_sum(target: T.Buffer((16,), "float32"), steps: T.int32) -> None:
    for thread in T.thread_binding(16, thread="threadIdx.x"):
        target[thread] = T.float32(0)
        for step in T.serial(steps):
            target[thread] = target[thread] + T.sin(T.Cast("float32", step))


def test_times_are_the_device_s_and_grow_with_the_work(device: tvm.runtime.Device, tmp_path: Path) -> None:
    assert tvm.get_global_func("runtime.timer.opencl", allow_missing=True) is not None
    library = library_of(long_sum, tmp_path)
    result = tvm.runtime.empty((16,), "float32", device)
    evaluator = library.time_evaluator("main", device, number=1, repeat=3)
    short, long = (min(evaluator(result, steps).results) for steps in (1_000, 1_000_000))
    assert 0 < 50 * short < long
    # After measuring, kernels go their ordinary way again, in order.
    library["main"](result, 1)
    np.testing.assert_array_equal(result.numpy(), np.zeros(16, np.float32))


# Modules by hand: what TVM's generator or pocl does not let through.

HANDLE, FLOAT32, FLOAT16, BFLOAT16, FLOAT32X4 = (3, 64, 1), (2, 32, 1), (2, 16, 1), (4, 16, 1), (2, 32, 4)


def bytes_of(source: str, *types: tuple[int, int, int]) -> bytes:
    """The bytes of a module with one kernel `f`, launched over blockIdx.x."""

    def text(content: str) -> bytes:
        return struct.pack("<Q", len(content)) + content.encode()

    arguments = struct.pack("<Q", len(types)) + b"".join(struct.pack("<BBH", *type_) for type_ in types)
    launch = struct.pack("<Q", 1) + text("blockIdx.x") + struct.pack("<Q", 0)
    return text("cl") + struct.pack("<Q", 1) + text("f") + text("f") + arguments + launch + text(source)


def module_of(source: str, *types: tuple[int, int, int]) -> Callable[..., None]:
    """The kernel `f`; its first argument is a tensor, its last the number of groups."""
    kernel = tvm.get_global_func("ffi.Module.load_from_bytes.opencl")(bytes_of(source, *types))["f"]
    return lambda tensor, *rest: kernel(ctypes.c_void_p(tensor.data_ptr()), *rest)


def test_half_scalars_are_rounded_as_numpy_rounds(device: tvm.runtime.Device) -> None:
    # pocl 3.1 has no half: the kernel looks at its bits.
    bits = tvm.runtime.empty((1,), "uint16", device)
    kernel = module_of("__kernel void f(__global ushort* out, ushort value) { *out = value; }", HANDLE, FLOAT16)
    halves = np.arange(0, 1 << 16, 97, dtype=np.uint16).view(np.float16).astype(np.float32)
    limits = [65504, 65519.996, 65520, 1e6, 2**-24, 2**-25, 3 * 2**-25, 6.1e-5, 1 + 2**-11, 1 + 3 * 2**-11, -0.0, 0.1]
    values = np.concatenate([halves, np.array(limits, np.float32), -np.array(limits, np.float32)])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    found = np.empty_like(expected)
    for index, value in enumerate(values):
        kernel(bits, float(value), 1)
        found[index] = bits.numpy().view(np.float16)[0]
    number = ~np.isnan(expected)
    assert np.isnan(found[~number]).all()
    np.testing.assert_array_equal(found[number].view(np.uint16), expected[number].view(np.uint16))


def test_a_half_kernel_runs_or_shows_the_driver_s_log(device: tvm.runtime.Device, tmp_path: Path) -> None:
    @T.prim_func
    def filled(target: T.Buffer((8,), "float16"), value: T.float16) -> None:
        for thread in T.thread_binding(8, thread="threadIdx.x"):
            target[thread] = value

    result = tvm.runtime.empty((8,), "float16", device)
    function = library_of(filled, tmp_path)["main"]
    try:
        function(result, 0.1)
    except RuntimeError as error:
        assert "the kernels do not compile for" in str(error) and "half precision" in str(error).lower()
        pytest.skip("the OpenCL driver has no half")
    np.testing.assert_array_equal(result.numpy(), np.full(8, 0.1, np.float16))


@pytest.mark.parametrize("type_", [BFLOAT16, FLOAT32X4])
def test_a_scalar_that_kernels_do_not_take(type_: tuple[int, int, int], device: tvm.runtime.Device) -> None:
    result = tvm.runtime.empty((1,), "float32", device)
    kernel = module_of("__kernel void f(__global float* out, float value) {}", HANDLE, type_)
    with pytest.raises(RuntimeError, match=rf"Argument 1 .* code {type_[0]}, {type_[1]} bits, {type_[2]} lanes"):
        kernel(result, 1.0, 1)


def test_an_argument_that_does_not_fit_names_the_kernel(device: tvm.runtime.Device) -> None:
    result = tvm.runtime.empty((1,), "float32", device)
    kernel = module_of("__kernel void f(__global float* out, double value) {}", HANDLE, FLOAT32)
    with pytest.raises(RuntimeError, match="CL_INVALID_ARG_SIZE from argument 1 of kernel f"):
        kernel(result, 1.0, 1)


def test_truncated_kernels_are_an_error_at_every_length(device: tvm.runtime.Device) -> None:
    load_from_bytes = tvm.get_global_func("ffi.Module.load_from_bytes.opencl")
    content = bytes_of("__kernel void f(__global float* out) {}", HANDLE)
    load_from_bytes(content)
    for length in range(len(content)):
        with pytest.raises(RuntimeError, match="truncated"):
            load_from_bytes(content[:length])


# Several devices, and a board.


def run_python(code: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)


TWO_DEVICES = """
    import numpy as np, tvm
    from ksm_hw.runtime.opencl.load import load_opencl_runtime
    load_opencl_runtime()
    print(tvm.get_global_func("ksm_hw.opencl.device_count")(), end="")
    if tvm.opencl(1).exist:
        first = tvm.runtime.tensor(np.arange(10, dtype=np.float32), tvm.opencl(0))
        second = tvm.runtime.empty((10,), "float32", tvm.opencl(1))
        first.copyto(second)
        part = first._create_view((4,), "float32", relative_byte_offset=24)
        part.copyto(second._create_view((4,), "float32", relative_byte_offset=8))
        print(*second.numpy().astype(int))
"""


def test_two_devices_copy_to_each_other(device: tvm.runtime.Device) -> None:
    if "pthread" not in device.device_name:
        pytest.skip("the first OpenCL device is not pocl's")
    done = run_python(TWO_DEVICES, POCL_DEVICES="pthread basic")
    assert done.stdout == "20 1 6 7 8 9 6 7 8 9\n", done.stderr


# Takes the place of the loader's function in a process, as a driver would that finds its GPU busy.
BUSY_DRIVER = """
    #define _GNU_SOURCE
    #define CL_TARGET_OPENCL_VERSION 120
    #include <CL/cl.h>
    #include <dlfcn.h>
    #include <string.h>
    cl_context clCreateContext(const cl_context_properties* properties, cl_uint count, const cl_device_id* devices,
                               void (*notify)(const char*, const void*, size_t, void*), void* data, cl_int* code) {
      char name[256];
      clGetDeviceInfo(devices[0], CL_DEVICE_NAME, sizeof(name), name, 0);
      *code = CL_DEVICE_NOT_AVAILABLE;
      if (strncmp(name, "basic", 5) == 0) return 0;
      __typeof__(clCreateContext)* real = dlsym(RTLD_NEXT, "clCreateContext");
      return real(properties, count, devices, notify, data, code);
    }
"""


def test_a_device_that_fails_does_not_hide_the_others(device: tvm.runtime.Device, tmp_path: Path) -> None:
    if "pthread" not in device.device_name:
        pytest.skip("the first OpenCL device is not pocl's")
    (tmp_path / "busy.c").write_text(BUSY_DRIVER)
    busy = str(tmp_path / "busy.so")
    subprocess.run([*linker_command(os.uname().machine), "-shared", "-fPIC", tmp_path / "busy.c", "-o", busy, "-ldl"])
    done = run_python(TWO_DEVICES, POCL_DEVICES="pthread basic", LD_PRELOAD=busy)
    assert done.stdout == "1", done.stderr
    assert "basic" in done.stderr and "is left out. OpenCL: CL_DEVICE_NOT_AVAILABLE" in done.stderr


def test_a_board_with_the_runtime_alone_uses_a_library_that_was_built_elsewhere(
    device: tvm.runtime.Device, tmp_path: Path
) -> None:
    library_of(scaled, tmp_path)
    built = build_opencl_runtime(output=tmp_path / "built.so")
    nothing = tmp_path / "nothing"
    board = {"TVM_USE_RUNTIME_LIB": "1", "KSM_HW_OPENCL_RUNTIME": str(built), "XDG_CACHE_HOME": str(nothing)}
    assert programs(tmp_path / "kernel.so", tmp_path / "cache", **board) == "1 0"
    assert not (nothing / "ksm-hw").exists()


# The cache of programs.

COUNTED = """
import sys, tvm
from ksm_hw.runtime.opencl.load import load_opencl_runtime
load_opencl_runtime()
import numpy as np
device = tvm.opencl(0)
source, result = tvm.runtime.tensor(np.ones(64, np.float32), device), tvm.runtime.empty((64,), "float32", device)
tvm.runtime.load_module(sys.argv[1])["main"](source, result, 2.0, 1)
assert (result.numpy() == 3).all()
print(*(tvm.get_global_func("ksm_hw.opencl.programs_" + name)() for name in ("compiled", "found")))
"""


def programs(library: Path, cache: Path, **variables: str) -> str:
    """How many programs a fresh process compiled, and how many it found in the cache."""
    environment = {**os.environ, "KSM_HW_OPENCL_CACHE": str(cache), **variables}
    command = [sys.executable, "-c", COUNTED, str(library)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_second_process_finds_the_program_on_disk(device: tvm.runtime.Device, tmp_path: Path) -> None:
    library_of(scaled, tmp_path)
    library, cache = tmp_path / "kernel.so", tmp_path / "cache"
    assert programs(library, cache) == "1 0"
    assert programs(library, cache) == "0 1"


def test_a_damaged_program_on_disk_is_compiled_anew(
    device: tvm.runtime.Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSM_HW_OPENCL_CACHE", str(tmp_path))
    result = tvm.runtime.empty((1,), "float32", device)

    def compiled_and_found() -> tuple[int, int]:
        """Of a module that is loaded once more: programs compiled, and programs found on disk."""
        counts = [tvm.get_global_func(f"ksm_hw.opencl.programs_{name}") for name in ("compiled", "found")]
        before = [count() for count in counts]
        module_of("__kernel void f(__global float* out, float v) { *out = 3 * v; }", HANDLE, FLOAT32)(result, 2.0, 1)
        assert result.numpy() == 6
        compiled, found = (count() - number for count, number in zip(counts, before, strict=True))
        return compiled, found

    assert compiled_and_found() == (1, 0) and compiled_and_found() == (0, 1)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    half = len(content) // 2
    flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    # A power cut leaves files cut off or full of zeros. pocl itself dies of `content[:half]`.
    for damaged in (b"", content[:30], content[:half], content[:-1], content[:half] + bytes(half), flipped):
        file.write_bytes(damaged)
        assert compiled_and_found() == (1, 0)
        assert compiled_and_found() == (0, 1)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_cache_that_cannot_be_written_is_no_error(device: tvm.runtime.Device, tmp_path: Path) -> None:
    library_of(scaled, tmp_path)
    (tmp_path / "file").write_text("")
    assert programs(tmp_path / "kernel.so", tmp_path / "file" / "folder") == "1 0"


# Building.


def test_it_is_built_for_a_board(tmp_path: Path) -> None:
    try:
        library = build_opencl_runtime("aarch64", tmp_path / "board.so")
    except UserError as error:
        pytest.skip(str(error))
    content = library.read_bytes()
    assert content[:4] == b"\x7fELF" and struct.unpack_from("<H", content, 18) == (183,)
    assert all(name in content for name in (b"libOpenCL.so.1", b"libtvm_runtime.so", b"libtvm_ffi.so"))


def test_an_empty_cache_variable_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert build._cached_path("x86_64", build.runtime_sources()).is_absolute()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with monkeypatch.context() as without_headers:
        without_headers.setattr(build, "_HEADERS", tmp_path / "nothing")
        with pytest.raises(UserError, match="apt-get install opencl-headers"):
            build_opencl_runtime()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"No C\+\+ compiler for aarch64 .*g\+\+-aarch64-linux-gnu"):
        build_opencl_runtime("aarch64")
    assert not any(tmp_path.rglob("*.so"))
    monkeypatch.setenv("KSM_HW_OPENCL_RUNTIME", str(tmp_path / "gone.so"))
    with pytest.raises(UserError, match=r"KSM_HW_OPENCL_RUNTIME names .*gone.so, which is no file"):
        build.find_opencl_runtime()


def test_a_compiler_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sources = shutil.copytree(build._SOURCES, tmp_path / "sources")
    (sources / "timer.cc").write_text("#error this is wrong\n")
    monkeypatch.setattr(build, "_SOURCES", sources)
    with pytest.raises(UserError, match=r"cannot build the OpenCL runtime: .*this is wrong"):
        build_opencl_runtime()
    assert not any((tmp_path / "cache").rglob("*.so"))


def test_without_a_device_it_says_what_to_install() -> None:
    command = [sys.executable, "-c", "from ksm_hw.runtime.opencl.load import load_opencl_runtime as l; l()"]
    environment = {**os.environ, "KSM_HW_OPENCL_PLATFORM": "no such platform"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "UserError: No OpenCL device found" in done.stderr and "pocl-opencl-icd" in done.stderr


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["ksm-hw", "opencl", "build", "-o", str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    assert json.loads(capsys.readouterr().out)["library"] == str(tmp_path / build.LIBRARY)
