"""What this machine's CPU can do at most: multiply-adds a second, and bytes of main memory a second.

Both are measured by small kernels that TVM compiles for the CPU, so that they are limits that a compiled network could
reach. The answer is kept in the user's cache folder, for each CPU model, number of threads and version of TVM, unless
the machine was busy.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksm_hw.errors import UserError
from ksm_hw.files.locks import locked
from ksm_hw.files.written import written_file
from ksm_hw.runtime.machine import this_machine
from ksm_hw.user_folders import cache_folder

_log = logging.getLogger(__name__)

# Independent sums: enough to fill the pipelines of every core that we know (4 to 5 cycles, 2 multiply-adds in each),
# and with two operands few enough for the 16 registers of AVX.
_SUMS = 12
_TURNS = 1 << 19  # Multiply-adds of each sum in a call: about a millisecond.
# The best of these many calls counts; short ones find a moment in which nothing else runs even on a busy machine.
_CALLS = 200
_LARGE_CALLS = 20  # Of those that go through main memory, which take longer.
_QUIET = 0.5  # Processes that want a core, for each core; what is measured on a busier machine is not kept.
_LEAST_ARRAY = 64 << 20  # Bytes, where the caches are small or the system does not tell their size.
_TIMES_CACHE = 4  # An array by the last cache; the rule of STREAM (cs.virginia.edu/stream).


@dataclass(frozen=True)
class MachinePeak:
    """What a machine's CPU can do at most.

    Attributes:
        cpu: its model; `threads` how many were used, by TVM `tvm_version`.
        flops_per_second: float32 operations; a multiply-add is two.
        bytes_per_second: of main memory, read and written together, in a triad a = b + s·c.
    """

    cpu: str
    threads: int
    tvm_version: str
    flops_per_second: float
    bytes_per_second: float

    def shortest_seconds(self, flops: int, count: int) -> float:
        """The least time in which so many operations on so many bytes of main memory can be done (the roofline)."""
        return max(flops / self.flops_per_second, count / self.bytes_per_second)

    def bound(self, flops: int, count: int) -> str:
        """Which of the two limits that is: `compute` or `memory`."""
        return "compute" if flops / self.flops_per_second >= count / self.bytes_per_second else "memory"


def machine_peak(threads: int, again: bool = False) -> MachinePeak:
    """The peak of this machine, measured at the first call on it while it is quiet.

    Args:
        threads: to use.
        again: measure, even if it is known.
    """
    import tvm

    cpu = this_machine().cpu
    name = hashlib.sha256(f"{cpu}/{threads}/{tvm.__version__}".encode()).hexdigest()[:16]
    path = cache_folder("machine-peak") / f"{name}.json"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(UserError):  # Without a home that can be written it is measured each time.
            # Two that measure at once would each find half of the machine.
            stack.enter_context(locked(path.with_suffix(".lock")))
        known = None if again else _read(path)
        if known is not None and (known.cpu, known.threads, known.tvm_version) == (cpu, threads, tvm.__version__):
            _log.info("the peak of %s with %d threads was measured before: %s", cpu, threads, path)
            return known
        return _measured_peak(threads, path)


def _measured_peak(threads: int, path: Path) -> MachinePeak:
    """Measures the peak, and keeps it if the machine is quiet."""
    import tvm

    machine = this_machine()
    peak = MachinePeak(machine.cpu, threads, tvm.__version__, measure_flops(threads), measure_bandwidth(threads))
    if machine.load > _QUIET * machine.cores:
        _log.info("the peak is not kept: at a load of %.1f the machine is not quiet", machine.load)
        return peak
    with contextlib.suppress(UserError):
        _write(path, peak)
    return peak


def _read(path: Path) -> MachinePeak | None:
    try:
        return MachinePeak(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, peak: MachinePeak) -> None:
    with written_file(path) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(peak), indent=2) + "\n")


def measure_flops(threads: int) -> float:
    """The most float32 operations a second that the CPU's vector units do: sum = sum · factor + term in registers."""
    import numpy as np
    import tvm
    from tvm.target import Target

    from ksm_hw.toolchains.targets import load_target
    from tvm_passes.relax.schedules.cpu.vector_unit import vector_unit

    lanes = vector_unit(Target(dict(load_target("host").tvm))).lanes("float32")
    # These have the limit 1 / (1 - 0.5), so that no value becomes too large or too small for the normal numbers.
    factor, term = np.full(lanes, 0.5, np.float32), np.ones(lanes, np.float32)
    sums = tvm.runtime.empty((threads, _SUMS, lanes), "float32")
    seconds = _best_seconds(_multiply_add_kernel(threads, lanes), threads, [factor, term, sums], _CALLS)
    if not np.allclose(sums.numpy(), 2.0):
        raise AssertionError("the kernel that measures multiply-adds computes something else")
    return 2.0 * threads * _SUMS * lanes * _TURNS / seconds


def measure_bandwidth(threads: int) -> float:
    """The most bytes a second that main memory gives and takes, in arrays that no cache holds."""
    import numpy as np
    import tvm

    count = _array_bytes() // 4 // (threads * 64) * (threads * 64)
    # Written once, for memory that never was is one page of zeros, which stays in the cache.
    arrays = [tvm.runtime.tensor(np.ones(count, np.float32)) for _ in range(3)]
    return 3 * 4 * count / _best_seconds(_triad_kernel(threads, count), threads, arrays, _LARGE_CALLS)


def _array_bytes() -> int:
    import psutil

    wanted = max(_LEAST_ARRAY, _TIMES_CACHE * _last_cache_bytes())
    return int(min(wanted, psutil.virtual_memory().available // 8))


def _last_cache_bytes() -> int:
    """Bytes of the largest cache of this machine's first core; 0 where the system does not tell."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            sizes.append(int(path.read_text().strip().removesuffix("K")) * 1024)
    return max(sizes)


def _best_seconds(source: str, threads: int, arguments: list[Any], calls: int) -> float:
    """The shortest of several calls of a kernel, compiled for this machine."""
    import tvm
    from tvm.script import from_source
    from tvm.target import Target

    from ksm_hw.runtime.threads import use_threads
    from ksm_hw.toolchains.targets import load_target

    use_threads(threads)
    module = tvm.IRModule({"main": from_source(source)})
    library = tvm.compile(module, target=Target(dict(load_target("host").tvm)))
    evaluator = library.mod.time_evaluator("main", tvm.cpu(), number=1, repeat=calls)
    tensors = [tvm.runtime.tensor(each) if not isinstance(each, tvm.runtime.Tensor) else each for each in arguments]
    return float(min(evaluator(*tensors).results))


def _multiply_add_kernel(threads: int, lanes: int) -> str:
    """TVMScript: each thread holds sums in registers and adds to them in turn; no sum waits for another."""
    return f"""
# from tvm.script import tirx as T
@T.prim_func(s_tir=True)
def main(
    factor: T.Buffer(({lanes},), "float32"),
    term: T.Buffer(({lanes},), "float32"),
    result: T.Buffer(({threads}, {_SUMS}, {lanes}), "float32"),
):
    T.func_attr({{"global_symbol": "main", "tirx.noalias": True}})
    for task in T.parallel({threads}):
        with T.sblock("task"):
            thread = T.axis.spatial({threads}, task)
            sums = T.sblock_alloc_buffer(({_SUMS}, {lanes}), "float32", scope="local")
            for number in T.unroll({_SUMS}):
                for lane in T.vectorized({lanes}):
                    sums[number, lane] = factor[lane] + T.cast(number, "float32")
            for turn in range({_TURNS}):
                for number in T.unroll({_SUMS}):
                    for lane in T.vectorized({lanes}):
                        sums[number, lane] = sums[number, lane] * factor[lane] + term[lane]
            for number in T.unroll({_SUMS}):
                for lane in T.vectorized({lanes}):
                    result[thread, number, lane] = sums[number, lane]
"""


def _triad_kernel(threads: int, count: int) -> str:
    """TVMScript: result = first + 0.5 · second, each thread its part."""
    return f"""
# from tvm.script import tirx as T
@T.prim_func(s_tir=True)
def main(
    first: T.Buffer(({count},), "float32"),
    second: T.Buffer(({count},), "float32"),
    result: T.Buffer(({count},), "float32"),
):
    T.func_attr({{"global_symbol": "main", "tirx.noalias": True}})
    for part in T.parallel({threads}):
        for chunk in range({count // threads // 64}):
            for lane in T.vectorized(64):
                with T.sblock("triad"):
                    place = T.axis.spatial({count}, part * {count // threads} + chunk * 64 + lane)
                    result[place] = first[place] + T.float32(0.5) * second[place]
"""
