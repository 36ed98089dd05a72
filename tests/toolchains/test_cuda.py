"""CUDA up to the launch of a kernel, on machines without a GPU: compilers, device code, and what is said when not."""

import ctypes.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import tvm
import tvm_ffi
from random_tasks import random_bundle
from tvm.script import tirx as T

from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.compiler.device_code import DeviceCode, read_device_code
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle, load_bundle
from ksm_hw.resources import shipped_bundle
from ksm_hw.runtime.cuda import toolkit_file
from ksm_hw.runtime.session import Session
from ksm_hw.toolchains import cuda
from ksm_hw.toolchains.cuda import CudaCompiler, cuda_compiler, find_cuda_compiler
from ksm_hw.toolchains.linker import linker_command
from ksm_hw.toolchains.targets import load_target

REPOSITORY = Path(__file__).resolve().parents[2]
# Asked before a test loads the stand-in for it, which has the same name.
HAS_DRIVER = ctypes.util.find_library("cuda") is not None

# Two kernels: one of divisions and square roots, and one that needs shared memory and memory beside the registers.
SOURCE = """
extern "C" __global__ void divide(float* a, const float* b) { a[threadIdx.x] = sqrtf(b[threadIdx.x]) / a[threadIdx.x]; }
extern "C" __global__ void lookup(float* a, const int* index) {
  __shared__ float shared[64];
  float own[100];
  for (int i = 0; i < 100; ++i) own[index[i]] = a[i];
  shared[threadIdx.x] = own[index[threadIdx.x]];
  __syncthreads();
  a[threadIdx.x] = shared[63 - threadIdx.x];
}
"""


def without_nvcc(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Leaves the linker on the path but no g++, without which nvcc cannot be used."""
    folder.mkdir()
    for program in ("cc", "ld", "as"):
        if found := shutil.which(program):
            (folder / program).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))


@pytest.fixture(params=["nvrtc", "nvcc"])
def compiler(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CudaCompiler:
    if request.param == "nvrtc":
        without_nvcc(monkeypatch, tmp_path / "bin")
    elif shutil.which("g++") is None or toolkit_file("bin/nvcc") is None:
        pytest.skip("nvcc is not on this machine; NVRTC compiles")
    return find_cuda_compiler()


def compiled(compiler: CudaCompiler, path: Path, *architectures: str) -> DeviceCode:
    path.write_bytes(b"not device code" + compiler.compile(SOURCE, architectures) + b"nor this")
    return read_device_code(path)


def test_a_fat_binary_has_each_architecture_and_ptx_of_the_lowest(compiler: CudaCompiler, tmp_path: Path) -> None:
    code = compiled(compiler, tmp_path / "kernels", "sm_90", "sm_80")
    assert set(code.kernels) == {"sm_80", "sm_90"}
    assert code.ptx == ("sm_80",)
    for kernels in code.kernels.values():
        divide, lookup = sorted(kernels, key=lambda kernel: kernel.name)
        assert (divide.name, lookup.name) == ("divide", "lookup")
        assert (divide.shared_bytes, divide.local_bytes) == (0, 0)
        assert lookup.local_bytes >= 100 * 4
        # From compute capability 9.0 on, CUDA keeps 1 KB of each block's shared memory for itself.
        assert lookup.shared_bytes in (64 * 4, 1024 + 64 * 4)
        assert all(0 < kernel.registers <= 255 for kernel in kernels)


def test_arithmetic_is_ieee(compiler: CudaCompiler, tmp_path: Path) -> None:
    """Fast mathematics would flush to zero and divide by an approximation; the results would fail verification."""
    path = tmp_path / "kernels.fatbin"
    path.write_bytes(compiler.compile(SOURCE, ["sm_80"]))
    ptx = subprocess.run([str(toolkit_file("bin/cuobjdump")), "-ptx", path], capture_output=True, text=True).stdout
    assert "div.rn.f32" in ptx
    assert "sqrt.rn.f32" in ptx
    assert ".ftz" not in ptx


def test_wrong_source_is_an_error_with_the_compilers_message(compiler: CudaCompiler) -> None:
    with pytest.raises(RuntimeError, match="nonsense"):
        compiler.compile("nonsense;", ["sm_80"])


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle(shipped_bundle())


@pytest.fixture(scope="module")
def small() -> Bundle:
    return random_bundle("resnet18", image_size=32, granularities=("kernel",))


def launched_kernels(library: Path) -> set[str]:
    """The kernels that the CPU's code of a library asks for, by their names."""
    content = library.read_bytes()
    found = re.findall(rb"(?<=\x00)[A-Za-z_]\w*_kernel(?:_\d+)?(?=\x00)", content)
    # What runs tasks with kernel-wise masks is a function of the virtual machine, and has such a name too.
    return {name.decode() for name in found} - {"main_kernel"}


def check_device_code(artifact: Path, architecture: str) -> None:
    library = artifact / "model.so"
    code = read_device_code(library)
    assert set(code.kernels) == {architecture}
    assert code.ptx == (architecture,)
    kernels = code.kernels[architecture]
    launched = launched_kernels(library)
    assert len(launched) >= 15
    assert launched == {kernel.name for kernel in kernels}
    spilled = {kernel.name: kernel.local_bytes for kernel in kernels if kernel.local_bytes}
    assert not spilled, f"bytes of each thread outside its registers: {spilled}"
    assert b"__global__" not in library.read_bytes()  # No source is left for a compiler on the device.


@pytest.mark.parametrize("architecture", ["sm_80", pytest.param("sm_90", marks=pytest.mark.slow)])
def test_every_shipped_task_compiles_to_device_code(shipped: Bundle, tmp_path: Path, architecture: str) -> None:
    (artifact,) = compile_bundle(shipped, load_target(f"cuda-{architecture}"), tmp_path / "artifact")
    check_device_code(artifact, architecture)


def test_fused_masks_compile_to_device_code(small: Bundle, tmp_path: Path) -> None:
    (artifact,) = compile_bundle(small, load_target("cuda-sm_86"), tmp_path / "artifact", fold="fused")
    check_device_code(artifact, "sm_86")


def test_a_jetsons_library_is_for_its_cpu_and_its_gpu(small: Bundle, tmp_path: Path) -> None:
    try:
        linker_command("aarch64")
    except UserError as error:
        pytest.skip(str(error))
    (artifact,) = compile_bundle(small, load_target("jetson-orin-cuda"), tmp_path / "artifact", fold="bake")
    check_device_code(artifact, "sm_87")
    machine = (artifact / "model.so").read_bytes()[18:20]
    assert machine == (183).to_bytes(2, "little")  # EM_AARCH64 of elf.h.


@pytest.fixture(scope="module")
def baked(small: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = load_target("cuda-sm_80", arch="sm_90,sm_80")
    assert target.tvm["arch"] == "sm_90"
    return compile_bundle(small, target, tmp_path_factory.mktemp("baked") / "artifact", fold="bake")[0]


def test_several_architectures_go_into_one_artifact(baked: Path) -> None:
    code = read_device_code(baked / "model.so")
    assert code.ptx == ("sm_80",)
    launched = launched_kernels(baked / "model.so")
    assert {name: {kernel.name for kernel in kernels} for name, kernels in code.kernels.items()} == {
        "sm_80": launched,
        "sm_90": launched,
    }


@pytest.mark.parametrize("architectures", ["sm_12", "sm_80,sm_12"])
def test_an_unknown_architecture_is_found_before_the_build(small: Bundle, tmp_path: Path, architectures: str) -> None:
    steps: list[str] = []
    target = load_target("cuda-sm_80", arch=architectures)
    with pytest.raises(UserError, match=r"'sm_12'\. It knows: .*sm_80, .*sm_90"):
        compile_bundle(small, target, tmp_path / "artifact", on_step=steps.append)
    assert not steps
    assert not list(tmp_path.iterdir())


def test_a_target_file_for_cuda_needs_an_architecture(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('description = ""\ndevice = "cuda"\n[tvm]\nkind = "cuda"\n[tvm.host]\nkind = "llvm"\n')
    with pytest.raises(UserError, match="needs an arch"):
        load_target("mine", file=path)


@pytest.fixture
def callback() -> Iterator[tvm_ffi.Function]:
    """TVM's callback that compiles CUDA source."""
    yield tvm_ffi.get_global_func("tvm_callback_cuda_compile")


@T.prim_func
def increment(a: T.Buffer((32,), "float32")) -> None:
    for thread in T.thread_binding(32, thread="threadIdx.x"):
        a[thread] = a[thread] + T.float32(1)


def test_what_the_user_can_mend_comes_through_tvm_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, architectures: Sequence[str]) -> bytes:
        assert "__global__" in source
        raise UserError(f"no room for code of {', '.join(architectures)}")

    monkeypatch.setattr(cuda, "find_cuda_compiler", lambda: CudaCompiler("refusing", ("sm_80",), refuse))
    module = tvm.IRModule({"main": increment.with_attr("global_symbol", "main")})
    with cuda_compiler(["sm_80"]), pytest.raises(UserError, match=r"^no room for code of sm_80$"):
        tvm.compile(module, target=tvm.target.Target(dict(load_target("cuda-sm_80").tvm)))


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_process_changes(callback: tvm_ffi.Function, fails: bool) -> None:
    environment = dict(os.environ)
    try:
        with cuda_compiler(["sm_80"]):
            inside = tvm_ffi.get_global_func("tvm_callback_cuda_compile")
            assert not inside.same_as(callback)
            if fails:
                raise InterruptedError
    except InterruptedError:
        assert fails
    assert tvm_ffi.get_global_func("tvm_callback_cuda_compile").same_as(callback)
    assert dict(os.environ) == environment


FIND = "from ksm_hw.toolchains.cuda import cuda_compiler\nwith cuda_compiler(['sm_80']) as found: print(found)"


def message_of(command: list[str], **environment: str) -> str:
    """The last line that a process writes which runs `FIND`; it finds no program on its path."""
    environment = {"PATH": "/nothing", **environment}
    return subprocess.run([*command, "-c", FIND], env=environment, capture_output=True, text=True).stderr.splitlines()[
        -1
    ]


def test_missing_packages_are_named_with_the_command_that_installs_them(tmp_path: Path) -> None:
    for folder in (Path(entry) for entry in sys.path if entry.endswith("site-packages")):
        for package in folder.iterdir():
            if not package.name.startswith(("cuda_bindings", "nvidia_cuda_nvrtc")):
                (tmp_path / package.name).symlink_to(package)
    # Without -S Python adds the environment's own folder of packages.
    message = message_of([sys.executable, "-S"], PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    assert message.startswith("ksm_hw.errors.UserError: No compiler for CUDA")
    assert "NVRTC cuda-bindings, nvidia-cuda-nvrtc are missing" in message
    assert "pip install 'ksm-hw[cuda]'" in message


def test_a_library_without_device_code_is_an_error() -> None:
    library = Path(tvm.__file__).parent / "lib" / "libtvm_runtime.so"
    with pytest.raises(UserError, match="carries no device code"):
        read_device_code(library)


@pytest.mark.skipif(HAS_DRIVER, reason="this machine has a driver")
def test_a_session_without_a_gpu_says_so(baked: Path) -> None:
    with pytest.raises(UserError, match="NVIDIA GPU"):
        Session.load(baked)
