"""Twenty tasks of a network in one int8 artifact with an int8 backbone, beside one int8 model of ONNX Runtime.

Both are made here: the artifact with random tasks that differ in masks and heads, the model from one of them, its masks
multiplied in, quantised per channel (QDQ). Prints bytes of files, and memory of a process with everything loaded and
each task run once, beyond what it held with its runtime imported. Bytes do not depend on what is learned; masks are
kernel-wise, with 8-bit soft values (`--scaled 0`: binary ones).
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from peers.networks import make_bundle

from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.exporting.export import export_task
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.soft_mask import pack_mask, unpack_mask
from ksm_hw.quantising.calibrate import calibrate
from ksm_hw.toolchains.targets import load_target

_MEMORY = """
import sys, json, numpy as np
def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
image = np.zeros((1, 3, 224, 224), np.float32)
if sys.argv[1] == "onnx":
    import onnxruntime
    before = resident()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
    session.run(None, {session.get_inputs()[0].name: image})
else:
    from ksm_hw.runtime.session import Session
    before = resident()
    session = Session.load(sys.argv[2], threads=1)
    for task in session.tasks:
        session.run(image, task)
print(json.dumps(resident() - before))
"""


def calibrated(bundle: Bundle, images: npt.NDArray[np.float32]) -> Bundle:
    """The tasks with the ranges of the first, which are as many bytes as their own, and without corrected biases."""
    first = next(iter(bundle.packs.values()))
    found = calibrate(bundle, first, [images], "minmax")
    packs = {task: dataclasses.replace(pack, calibration=found) for task, pack in bundle.packs.items()}
    return dataclasses.replace(bundle, packs=packs)


def write_onnx(bundle: Bundle, folder: Path, images: npt.NDArray[np.float32]) -> Path:
    """One task's network in int8, as ONNX Runtime recommends it for x86-64: QDQ, per channel, S8S8."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[npt.NDArray[np.float32]] = iter(images)

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            image = next(self.batches, None)
            return None if image is None else {"images": image[None]}

    plain, prepared, quantised = (folder / name for name in ("plain.onnx", "prepared.onnx", "int8.onnx"))
    export_task(bundle, next(iter(bundle.packs.values())), "onnx", plain)
    quant_pre_process(plain, prepared)
    quantize_static(
        prepared, quantised, Reader(), QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return quantised


def memory(kind: str, path: Path) -> int:
    """Bytes that a process takes for what is loaded and run once."""
    done = subprocess.run([sys.executable, "-c", _MEMORY, kind, str(path)], capture_output=True, text=True, check=True)
    found: int = json.loads(done.stdout.splitlines()[-1])
    return found


def parts(artifact: Path) -> dict[str, int]:
    """Bytes of an artifact's parts."""
    sizes = {str(path.relative_to(artifact)): path.stat().st_size for path in artifact.rglob("*") if path.is_file()}
    packs = {name: size for name, size in sizes.items() if name.startswith("tasks/")}
    rest = {name: size for name, size in sizes.items() if name not in packs}
    return {**rest, f"{len(packs)} packs": sum(packs.values())}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--scaled", type=float, default=0.2, help="share of kernels with soft values; 0: binary masks")
    arguments = parser.parse_args()
    images = np.random.default_rng(0).standard_normal((8, 3, 224, 224), np.float32)
    bundle = calibrated(make_bundle(arguments.model, arguments.tasks, arguments.classes, arguments.scaled), images)
    if arguments.scaled == 0:
        binary = {
            task: dataclasses.replace(
                pack, masks={layer: pack_mask(unpack_mask(mask), 0) for layer, mask in pack.masks.items()}
            )
            for task, pack in bundle.packs.items()
        }
        bundle = dataclasses.replace(bundle, packs=binary)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (artifact,) = compile_bundle(
            bundle, load_target("host"), folder / "artifact", precision="int8", backbone_precision="int8"
        )
        model = write_onnx(bundle, folder, images)
        ours, theirs = parts(artifact), model.stat().st_size
        print(f"| {arguments.tasks} tasks of {arguments.model} | MB |\n| --- | --- |")
        for name, size in [*ours.items(), ("together", sum(ours.values())), ("one int8 model, ONNX Runtime", theirs)]:
            print(f"| {name} | {size / 1e6:.2f} |")
        print(f"\nFiles: {sum(ours.values()) / theirs:.2f} times one model's.")
        taken = memory("artifact", artifact), memory("onnx", model)
        print(f"Memory: {taken[0] / 1e6:.1f} MB and {taken[1] / 1e6:.1f} MB: {taken[0] / taken[1]:.2f} times.")


if __name__ == "__main__":
    main()
