"""Everything that needs a GPU, in one call on a machine that has an NVIDIA GPU.

    python benchmarks/cuda_machine.py

compiles the shipped tasks for the GPU that it finds, compares them with PyTorch, measures and profiles them, tunes
them, and does the same with what was tuned. Then it measures five networks, at two batches, by ksm-hw, PyTorch, eager
and compiled, and ONNX Runtime, in processes of their own that take turns. Each step writes a log, and all of them
summary.json and page.md, in --output (without it in $OUT, or in artifacts/cuda-machine/results). The exit code is 1
when a step failed; the others run all the same.

A machine that is lent for minutes, and on which nothing can be installed, runs what was compiled here. Here, and with
`--state before` in an older checkout as well, to measure both in one run:

    python benchmarks/cuda_machine.py --pack artifacts/cuda-machine --python 3.12 --arch sm_90

and there, with that folder beside the checkout (about 50 MB; TVM's compiler stays behind, so it does not tune):

    python3 benchmarks/cuda_machine.py --packed artifacts/cuda-machine
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

TRIALS = 64
NETWORKS = ("resnet50", "mobilenet_v2", "efficientnet-lite0", "resnet18", "vgg16_bn")
BATCHES = (1, 32)
# What a machine with PyTorch and torchvision still lacks. Python's version decides which wheel.
PACKAGES = (
    "apache-tvm==0.27.0.post1",
    "apache-tvm-ffi==0.1.14.post1",
    "cloudpickle",
    "efficientnet-lite-pytorch==0.1.0",
    "ml-dtypes",
    "msgspec",
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
# Of the other machine's CPU nothing is known but that it has AVX2.
OTHER_HOST = {"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 4}

Step = tuple[str, list[str]]


def whole_steps(output: Path) -> list[Step]:
    """Name and arguments of ksm-hw for a machine on which it is installed."""
    plain, tuned, records = (str(output / name) for name in ("artifact", "tuned-artifact", "tuned"))
    compile_all = ["compile", "--target", "cuda", "--task", "all"]
    return [
        ("compile", [*compile_all, "-o", plain]),
        ("verify", ["verify", plain, "--json"]),
        ("report", ["report", plain, "--json", "--html", str(output / "report.html")]),
        ("profile", ["profile", plain, "--json"]),
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
        ("profile", ["profile", str(artifact), "--json"]),
    ]


def run_step(step: Step, output: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Runs ksm-hw, prints how that went, and returns it."""
    name, arguments = step
    start = time.monotonic()
    command = [sys.executable, "-m", "ksm_hw.cli", *arguments]
    log = output / f"{name.replace(' ', '-')}.log"
    with log.open("w") as stream:
        code = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=stream, stderr=stream).returncode
    result = {"step": name, "exit code": code, "seconds": round(time.monotonic() - start, 1)}
    print(f"{name:15} exit code {code}, {result['seconds']} s", flush=True)
    if code != 0:
        print("".join(f"    {line}\n" for line in log.read_text().splitlines()[-10:]), end="", flush=True)
    return result


def gpu() -> str:
    """What nvidia-smi says of the GPU and its driver."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return "none: there is no nvidia-smi"


def pack(options: argparse.Namespace) -> None:
    """Compiles shipped tasks and networks, and downloads packages, for a machine on which nothing can be installed."""
    from cuda_peers.networks import compile_network

    from ksm_hw.compiler.compile import compile_bundle
    from ksm_hw.masks.bundle import load_bundle
    from ksm_hw.resources import shipped_bundle
    from ksm_hw.toolchains.targets import load_target

    target = load_target("cuda", arch=options.arch)
    target = dataclasses.replace(target, tvm={**target.tvm, "host": OTHER_HOST})
    folder = options.pack.resolve()
    compile_bundle(load_bundle(shipped_bundle()), target, folder / "artifact")
    for network in options.networks:
        compile_network(network, options.batches, target, folder / "compiled" / options.state)
    if not (folder / "wheels").exists():
        download_packages(folder / "wheels", options.python)


def download_packages(wheels: Path, python: str) -> None:
    """Downloads the packages, TVM's without its compiler."""
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


def measure_networks(options: argparse.Namespace, compiled: Path, environment: Mapping[str, str]) -> list[Any]:
    """Completes the networks and measures them; summaries of each engine on each network."""
    from cuda_peers.turns import PEERS, measure

    path = f"{environment.get('PYTHONPATH', REPOSITORY)}:{REPOSITORY / 'benchmarks'}"
    environment = {**environment, "PYTHONPATH": path}
    states = {f"ksm-hw, {state.name}": f"ksm-hw {state.name}" for state in sorted(compiled.iterdir())}
    peers = {title: name for title, name in PEERS.items() if options.engines is None or name in options.engines}
    names = [f"{network}-{batch}" for batch in options.batches for network in options.networks]
    with tempfile.TemporaryDirectory() as folder:

        def complete(name: str) -> None:
            network, _, batch = name.rpartition("-")
            command = [sys.executable, "-m", "cuda_peers.networks", compiled, Path(folder, name), network, batch]
            subprocess.run(list(map(str, command)), env=environment, check=True)

        with ThreadPoolExecutor() as pool:
            list(pool.map(complete, names))
        print("networks are complete", flush=True)
        measured = []
        for batch in options.batches:
            of_batch = [name for name in names if name.endswith(f"-{batch}")]
            measured += measure(
                Path(folder), of_batch, states | peers, options.rounds, options.load_seconds, environment
            )
            print(f"batch {batch} is measured", flush=True)
    return [engine.summary() for engine in measured]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("OUT", REPOSITORY / "artifacts" / "cuda-machine" / "results"))
    parser.add_argument("--output", type=Path, default=default)
    parser.add_argument("--pack", type=Path, metavar="FOLDER")
    parser.add_argument("--packed", type=Path, metavar="FOLDER")
    parser.add_argument("--python", default="3.12", help="with --pack: Python's version on the machine")
    parser.add_argument("--arch", default="sm_90", help="with --pack: the machine's compute capability")
    parser.add_argument("--state", default="now", help="what the networks of this checkout are called in the tables")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), metavar="NAME", help="of torchvision")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), metavar="IMAGES")
    parser.add_argument("--engines", nargs="*", metavar="NAME", help="of cuda_peers/turns.py; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each engine")
    parser.add_argument("--load-seconds", type=float, default=300, help="that engines have to load in")
    parser.add_argument("--no-steps", action="store_true", help="measure the networks alone")
    return parser.parse_args()


def run(options: argparse.Namespace, folder: str) -> bool:
    """Does all of it, and returns whether all went well."""
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    environment: Mapping[str, str] = os.environ
    steps, compiled = whole_steps(output), Path(folder, "compiled")
    if options.packed is not None:
        packed = options.packed.resolve()
        environment = unpacked(packed / "wheels", str(Path(folder, "site")))
        sys.path.insert(0, str(Path(folder, "site")))
        steps, compiled = packed_steps(packed / "artifact", output), packed / "compiled"
    results = [run_step(step, output, environment) for step in ([] if options.no_steps else steps)]
    if options.packed is None and options.networks:
        from cuda_peers.networks import compile_network

        from ksm_hw.toolchains.targets import load_target

        for network in options.networks:
            compile_network(network, options.batches, load_target("cuda"), compiled / options.state)
    measured = measure_networks(options, compiled, environment) if options.networks else []
    from cuda_peers.page import page

    summary = {"gpu": gpu(), "command": sys.argv[1:], "steps": results, "networks": measured}
    (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (output / "page.md").write_text(page(summary))
    print(page(summary))
    return all(result["exit code"] == 0 for result in results)


def main() -> int:
    """Packs, or runs."""
    options = parse_arguments()
    if options.pack:
        pack(options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return 0 if run(options, folder) else 1


if __name__ == "__main__":
    sys.exit(main())
