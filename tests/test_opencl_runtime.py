"""The OpenCL runtime on pocl, a device on the CPU: memory, kernels, errors, cached programs, times, threads."""

import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from ksm_hw.cli import main
from ksm_hw.compiler.linker import link_shared_library, linker_command
from ksm_hw.errors import UserError
from ksm_hw.runtime.opencl import build
from ksm_hw.runtime.opencl.build import build_opencl_runtime

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


def programs(library: Path, cache: Path) -> str:
    """How many programs a fresh process compiled, and how many it found in the cache."""
    environment = {**os.environ, "KSM_HW_OPENCL_CACHE": str(cache)}
    command = [sys.executable, "-c", COUNTED, str(library)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_second_process_finds_the_program_on_disk(device: tvm.runtime.Device, tmp_path: Path) -> None:
    library_of(scaled, tmp_path)
    library, cache = tmp_path / "kernel.so", tmp_path / "cache"
    assert programs(library, cache) == "1 0"
    assert programs(library, cache) == "0 1"
    (file,) = cache.iterdir()
    content = file.read_bytes()
    # Truncated inside the key, damaged inside it, damaged behind it.
    for damaged in (content[:30], b"x" + content[1:], content[:-200] + bytes(200)):
        file.write_bytes(damaged)
        assert programs(library, cache) in ("1 0", "0 1")
    file.write_bytes(content[:30])
    assert programs(library, cache) == "1 0" and file.read_bytes()[:30] == content[:30]


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
