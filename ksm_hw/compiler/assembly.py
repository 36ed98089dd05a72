"""The assembler of each kernel of an executable, or of a GPU's kernels their source."""

import re
from collections.abc import Iterator

import tvm
from tvm import relax

from ksm_hw.toolchains.disassembly import CHECKS, loops_function

# The suffixes of files of what the compilers of GPUs are given, by the kind of the module.
_SOURCES = {"opencl": ".cl", "cuda": ".cu"}
# A function's text ends so, in files for ELF.
_FUNCTION_END = re.compile(r"(?<=\.cfi_endproc\n)")
_FUNCTION_NAME = re.compile(r"^\s*\.type\s+(\S+),[@%]function$", re.MULTILINE)
# Notes for debuggers and for unwinding the stack: every second line.
_NOTE = re.compile(r"^\s*(?:\.loc\s|\.cfi_|\.Ltmp\d+:|[#/]+DEBUG_VALUE).*\n", re.MULTILINE)
_GPU_KERNEL = re.compile(
    r"^[^\n]*__(?:kernel|global__) void [^\n]*?(\w+_kernel\w*)\([^\n]*\{\n.*?^\}\n", re.MULTILINE | re.DOTALL
)


def kernel_texts(executable: relax.VMExecutable) -> dict[str, str]:
    """The text of each kernel, by the name of a file for it; for a GPU without what the host does to start them."""
    modules = list(_modules(executable.mod))
    sources = [module for module in modules if module.kind in _SOURCES]
    if sources:
        return {
            f"{kernel[1]}{_SOURCES[module.kind]}": kernel[0]
            for module in sources
            for kernel in _GPU_KERNEL.finditer(module.inspect_source())
        }
    return {
        f"{kernel}.s": text
        for module in modules
        if module.kind == "llvm"
        for kernel, text in cut_assembly(module.inspect_source("asm")).items()
    }


def cut_assembly(text: str) -> dict[str, str]:
    """The functions of each kernel in an assembler's text: what computes it, and the parts of it that run in threads.

    A kernel that LLVM made one function with the check of its arguments is that function.
    """
    functions = {}
    for function in _FUNCTION_END.split(text):
        if (name := _FUNCTION_NAME.search(function)) is not None:
            functions[name[1]] = _NOTE.sub("", function)
    kernels = [name.removeprefix(CHECKS) for name in functions if name.startswith(CHECKS)]
    return {kernel: "".join(_reached(loops_function(kernel, functions), functions)) for kernel in kernels}


def _reached(name: str, functions: dict[str, str]) -> list[str]:
    """A function and the private ones that it names, of which some run in threads, and those that these name."""
    reached = {name: functions[name]}
    waiting = [name]
    while waiting:
        for other in re.findall(r"\.L__tvm\w*(?:\.\d+)?", functions[waiting.pop()]):
            if other in functions and other not in reached:
                reached[other] = functions[other]
                waiting.append(other)
    return list(reached.values())


def _modules(module: tvm.runtime.Module) -> Iterator[tvm.runtime.Module]:
    yield module
    for imported in module.imports:
        yield from _modules(imported)
