"""`ksm-hw compile --runner`: the C++ program that runs an artifact where there is no Python, built and put into it.

    runner/ksm-runner                               the program; its source is ksm_hw/runner/program
    runner/libtvm_runtime.so, runner/libtvm_ffi.so  TVM's runtime for the target's architecture
    runner/libtvm_runtime_opencl.so                 with OpenCL: ours (ksm_hw/runtime/opencl)
    runner/runner.json                              the tasks, and where each of their parameters lies
    runner/parameters.bin                           the parameters that no other file of the artifact holds ready

So nothing is there twice: the backbone and most of a task are read from the artifact's safetensors files.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tvm_ffi.libinfo

from ksm_hw.artifact import manifest as artifact
from ksm_hw.artifact.parameter_file import ParameterFile, held_arrays, write_parameter_file
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle
from ksm_hw.runtime.machine import available_cores
from ksm_hw.runtime.opencl.build import LIBRARY as OPENCL_LIBRARY
from ksm_hw.runtime.opencl.build import build_opencl_runtime
from ksm_hw.toolchains.linker import architecture_of
from ksm_hw.toolchains.tvm_libraries import runtime_libraries

FOLDER = "runner"
PROGRAM = "ksm-runner"
_DESCRIPTION = "runner.json"
_SOURCES = Path(__file__).parent / "program"
_DEVICES = ("cpu", "opencl")
_NATIVE = ("c++", "g++", "clang++")
# No contraction to fused multiply-adds: images are to be scaled to the same bytes on every CPU.
_FLAGS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-ffp-contract=off")
# TVM's runtime registers its functions as it is loaded; nothing of it is called by name, so linkers would leave it out.
_LINK_FLAGS = ("-s", "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN", "-ldl")


def check_runner(device: str, architecture: str) -> None:
    """Finds what is missing to build the runner, before anything is compiled.

    Raises:
        UserError: the device is not one that the runner knows, or a compiler, the image decoder or TVM's runtime for
            the architecture is missing; the message says how to install it.
    """
    if device not in _DEVICES:
        raise UserError(f"--runner is for targets that run on {' or '.join(_DEVICES)}; this one runs on {device}.")
    compiler_command(architecture)
    _image_decoder()
    runtime_libraries(architecture)
    if device == "opencl":
        build_opencl_runtime(architecture)


def add_runner(folder: Path, manifest: artifact.Manifest, bundle: Bundle) -> None:
    """Puts the runner into the folder of an artifact that has the library and the bundle.

    Raises:
        UserError: as `check_runner`, or the compiler fails.
    """
    architecture = architecture_of(manifest.cpu)
    runner = folder / FOLDER
    runner.mkdir()
    for library in runtime_libraries(architecture):
        shutil.copyfile(library, runner / library.name)
    if manifest.device == "opencl":
        build_opencl_runtime(architecture, runner / OPENCL_LIBRARY)
    (runner / PROGRAM).write_bytes(_built_program(architecture))
    (runner / PROGRAM).chmod(0o755)
    held = held_arrays(folder, ["backbone.safetensors", *(f"tasks/{task}.safetensors" for task in manifest.tasks)])
    parameters = write_parameter_file(folder, f"{FOLDER}/parameters.bin", manifest, bundle, held)
    description = {
        **_description(manifest, bundle, parameters),
        "library_bytes": (folder / artifact.LIBRARY).stat().st_size,
    }
    (runner / _DESCRIPTION).write_text(json.dumps(description) + "\n")


def _description(manifest: artifact.Manifest, bundle: Bundle, parameters: ParameterFile) -> dict[str, Any]:
    """What the runner reads: ksm_hw/runner/program/artifact.h."""
    return {
        "device": manifest.device,
        "cpu": manifest.cpu.get("mcpu", manifest.target),
        "cores": manifest.cpu.get("num-cores", 1),
        "pinned_cores": manifest.cores,
        "input_shape": manifest.input_shape,
        "output_shape": manifest.output_shape,
        "tasks": [
            {
                **dataclasses.asdict(bundle.packs[task].description),
                "main": entry.main,
                "rewrite": entry.rewrite,
                "parameters": [dataclasses.asdict(array) for array in parameters.tasks[task]],
            }
            for task, entry in manifest.tasks.items()
        ],
    }


def deployed_files(folder: Path) -> list[Path]:
    """The files of an artifact that a board without Python needs: the library, the runner, and what that reads."""
    description = json.loads((folder / FOLDER / _DESCRIPTION).read_text())
    read = {folder / array["file"] for task in description["tasks"] for array in task["parameters"]}
    return sorted({folder / artifact.LIBRARY, *(folder / FOLDER).iterdir(), *read})


def deployed_bytes(folder: Path) -> int:
    """What those files take together."""
    return sum(path.stat().st_size for path in deployed_files(folder))


def compiler_command(architecture: str) -> list[str]:
    """The command of a C++ compiler for an architecture under Linux: GCC or Clang, or `zig c++` of the package ziglang.

    Raises:
        UserError: none is there; the message says how to install one.
    """
    native = architecture == platform.machine()
    programs = _NATIVE if native else (f"{architecture}-linux-gnu-g++",)
    if found := next(filter(None, map(shutil.which, programs)), None):
        return [found]
    if importlib.util.find_spec("ziglang") is not None:
        # The oldest C library that TVM's own wheels run with.
        return [sys.executable, "-m", "ziglang", "c++", "-target", f"{architecture}-linux-gnu.2.28"]
    package = "g++" if native else f"g++-{architecture.replace('_', '-')}-linux-gnu"
    raise UserError(
        f"No C++ compiler for {architecture} found (looked for {', '.join(programs)}, and zig). Install one: "
        f"sudo apt-get install {package}, or: pip install ziglang"
    )


def _image_decoder() -> Path:
    """The folder of stb_image.h, the image decoder that becomes part of the runner."""
    named = filter(None, os.environ.get("CPLUS_INCLUDE_PATH", "").split(os.pathsep))
    for folder in map(Path, [*named, "/usr/include/stb", "/usr/local/include/stb"]):
        if (folder / "stb_image.h").is_file():
            return folder
    raise UserError(
        "stb_image.h, with which the runner reads images, is missing. Install it: sudo apt-get install libstb-dev, "
        "or name its folder in CPLUS_INCLUDE_PATH."
    )


@functools.cache
def _built_program(architecture: str) -> bytes:
    """The program. Kept, because `--fold bake` puts it into many artifacts."""
    command = compiler_command(architecture)
    include = [f"-I{_image_decoder()}", *(f"-isystem{path}" for path in tvm_ffi.libinfo.include_paths())]
    with tempfile.TemporaryDirectory() as temporary:
        objects = {source: f"{temporary}/{source.stem}.o" for source in sorted(_SOURCES.glob("*.cc"))}
        with ThreadPoolExecutor(available_cores()) as pool:
            commands = [[*command, *_FLAGS, *include, "-c", str(source), "-o", to] for source, to in objects.items()]
            list(pool.map(_run, commands))
        program = Path(temporary) / PROGRAM
        libraries = map(str, runtime_libraries(architecture))
        _run([*command, "-o", str(program), *objects.values(), *_LINK_FLAGS, *libraries])
        return program.read_bytes()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        said = next((line for line in done.stderr.splitlines() if "error" in line), "it said nothing of an error")
        raise UserError(f"{command[0]} cannot build the runner: {said}. Nothing was left behind.")
