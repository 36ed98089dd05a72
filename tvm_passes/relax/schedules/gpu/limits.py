"""What a schedule must know of a GPU: how large a block may be, and how much work hides its latencies."""

from dataclasses import dataclass

from tvm.target import Target

from tvm_passes.relax.schedules.base.precision import value_bytes


@dataclass(frozen=True)
class GpuLimits:
    """The limits of a GPU, and the sizes that suit it."""

    threads: int
    """The most threads (work-items) that a block (work-group) may have."""
    shared_bytes: int
    """The most shared memory (local memory) that a block may have."""
    warp: int
    """Threads that run in step; those that lie side by side should read side by side."""
    block: int
    """Threads that a block has where nothing else decides."""
    result_bytes: int
    """Bytes of results that a thread can hold in registers beside its inputs."""
    busy: int
    """Threads from which on more of them make nothing faster."""
    staged: bool
    """Whether shared memory is faster than the cache, so that what threads share is worth a copy to it."""

    def accumulators(self, dtype: str) -> int:
        """Results of a type that a thread can hold in registers beside its inputs."""
        return self.result_bytes // value_bytes(dtype)


def vector_values(dtype: str) -> int:
    """Values of a type in the widest load or store of a thread: OpenCL's float4, CUDA's float4.

    Raises:
        ValueError: as `value_bytes`.
    """
    return 16 // value_bytes(dtype)


def gpu_limits(target: Target) -> GpuLimits:
    """The limits of an opencl or cuda target, read from its attributes.

    A thread of a Mali has 64 registers (Arm Mali GPU OpenCL Developer Guide, "Register usage"), one of an NVIDIA GPU up
    to 255 (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"). `block` and `busy` are
    estimates, by which what is not staged (`staged_tiles.py`) chooses.
    """
    threads = int(target.attrs["max_threads_per_block"])
    shared = int(target.attrs["max_shared_memory_per_block"])
    warp = int(target.attrs["thread_warp_size"])
    if "mali" in target.keys:
        return GpuLimits(threads, shared, warp, block=min(threads, 64), result_bytes=128, busy=2048, staged=False)
    return GpuLimits(threads, shared, warp, block=min(threads, 128), result_bytes=256, busy=32768, staged=True)
