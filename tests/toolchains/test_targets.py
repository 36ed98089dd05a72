"""Targets: what ships, a user's own file, and what is found wrong before anything is built. Linkers; `doctor`."""

import json
import platform
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ksm_hw.cli import app
from ksm_hw.errors import UserError
from ksm_hw.resources import targets_folder
from ksm_hw.toolchains import linker, targets
from ksm_hw.toolchains.doctor import examine
from ksm_hw.toolchains.linker import link_shared_library, linker_command
from ksm_hw.toolchains.targets import (
    describe_targets,
    load_target,
    on_fast_cores,
    required_cpu_features,
    target_names,
)
from tvm_passes.relax.kernels import integer_vectors

OWN = """
description = "mine"
device = "cpu"
[tvm]
kind = "llvm"
mtriple = "aarch64-linux-gnu"
"""


def own_target(folder: Path, more: str) -> Path:
    file = folder / "mine.toml"
    file.write_text(OWN + more)
    return file


@pytest.mark.parametrize("name", target_names())
def test_tvm_takes_every_target_that_ships(name: str) -> None:
    from tvm.target import Target

    target = load_target(name, arch="sm_80" if name == "cuda" else None)
    made = Target(dict(target.tvm))
    assert "detect" not in str(target.tvm) and made.kind.name == target.tvm["kind"]
    assert target.cpu["kind"] == "llvm" and target.cpu["num-cores"] >= 1
    if target.device != "cpu":
        assert made.host is not None and made.attrs["max_threads_per_block"] >= 256
        assert made.attrs["max_shared_memory_per_block"] > 0 and made.attrs["thread_warp_size"] >= 4


def test_the_issue_s_targets_are_there() -> None:
    wanted = "host arm64 rpi4 rpi5 jetson-orin mali-g52 mali-g610 mali cuda cuda-sm_80 cuda-sm_86 cuda-sm_89 cuda-sm_90"
    assert set(wanted.split()) <= set(target_names())


def test_boards_get_the_instructions_that_they_have() -> None:
    assert required_cpu_features(load_target("arm64")) == required_cpu_features(load_target("rpi4")) == []
    assert required_cpu_features(load_target("rpi5")) == ["asimddp", "asimdhp"]
    assert required_cpu_features(load_target("mali-g610")) == ["asimddp", "asimdhp"]


def test_an_artifact_tells_of_every_instruction_that_integers_are_computed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its code would run on a CPU that lacks one."""
    from tvm.target import Target

    asked: set[str] = set()

    def has(feature: str, _target: Target) -> bool:
        asked.add(feature)
        return feature in ("avx512vnni", "dotprod")  # Behind each the one that is asked for beside it.

    monkeypatch.setattr(integer_vectors, "target_has_features", has)
    for triple in ("x86_64-linux-gnu", "aarch64-linux-gnu"):
        integer_vectors.integer_vectors(Target({"kind": "llvm", "mtriple": triple}))
    assert asked == {"avx512vnni", "avx512bw", "avxvnni", "avx2", "dotprod", "i8mm"}
    assert asked <= targets.VECTOR_FEATURES.keys()


def test_architecture_and_host_can_be_chosen() -> None:
    assert load_target("cuda", arch="sm_90").tvm["arch"] == "sm_90"
    assert load_target("mali").cpu["mtriple"] == "aarch64-linux-gnu"
    assert "mtriple" not in load_target("mali", host="host").cpu
    with pytest.raises(UserError, match="--arch is for CUDA"):
        load_target("rpi4", arch="sm_80")
    with pytest.raises(UserError, match="'rpi4' is a CPU itself"):
        load_target("rpi4", host="host")
    with pytest.raises(UserError, match="'mali' is for opencl"):
        load_target("cuda-sm_80", host="mali")


def test_a_target_of_ones_own(tmp_path: Path) -> None:
    target = load_target("mine", file=own_target(tmp_path, 'mcpu = "cortex-a55"\nnum-cores = 2\n'))
    assert (target.name, target.device, target.tvm["mcpu"]) == ("mine", "cpu", "cortex-a55")


def test_a_target_names_the_cores_to_pin_to(tmp_path: Path) -> None:
    assert load_target("mali-g610").cores == (4, 5, 6, 7)
    assert load_target("host").cores == load_target("rk3588").cores == ()
    # The cores are those of the CPU, and go with it.
    assert load_target("mali-g610", host="rpi5").cores == ()
    (tmp_path / "mine.toml").write_text(OWN.replace("[tvm]", "cores = [2, 3]\n[tvm]"))
    assert load_target("mine", file=tmp_path / "mine.toml").cores == (2, 3)


def test_the_cores_of_a_host_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(targets_folder() / "mali.toml", tmp_path)
    (tmp_path / "mine.toml").write_text(OWN.replace("[tvm]", "cores = [2, 3]\n[tvm]"))
    monkeypatch.setattr(targets, "targets_folder", lambda: tmp_path)
    assert load_target("mali", host="mine").cores == (2, 3)


def test_what_waits_for_its_slowest_thread_is_on_fast_cores() -> None:
    whole = load_target("rk3588")
    fast = on_fast_cores(whole)
    assert whole.cores == () and whole.tvm["num-cores"] == 8
    assert fast.cores == (4, 5, 6, 7) and fast.tvm == {**whole.tvm, "num-cores": 4}
    beside = load_target("mali", host="rk3588")
    assert beside.cores == fast.cores and beside.cpu["num-cores"] == 4
    assert on_fast_cores(load_target("rpi5")) == load_target("rpi5")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('mcpu = "cortex-a77x"', r"no mcpu 'cortex-a77x'. Near it: .*cortex-a77"),
        ('mcpu = "generic"\nmattr = ["+dotprodd"]', r"no mattr 'dotprodd'. Near it: dotprod"),
        ("cores = 4", "Unknown config option 'cores'"),
        ("num-cores = ", r"describes no target .*needs description, device and \[tvm\]"),
    ],
)
def test_a_wrong_target_is_found_before_the_build(more: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_target("mine", file=own_target(tmp_path, more))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('device = "cpu"', "description"),
        (
            'description = "x"\ndevice = "npu"\n[tvm]\nkind = "llvm"',
            "device is 'npu'; expected one of cpu, opencl, cuda",
        ),
        ('description = "x"\ndevice = "cpu"\n[tvm]\nkind = "cuda"', 'needs kind = "llvm"'),
        ('description = "x"\ndevice = "cuda"\n[tvm]\nkind = "cuda"', "host"),
        (OWN.replace("aarch64", "aarch46"), "no architecture 'aarch46'. Near it: aarch64"),
        (OWN.replace("[tvm]", "cores = 4\n[tvm]"), r"got `int` - at `\$.cores`.* cores, .*such as \[4, 5"),
        (OWN.replace("[tvm]", 'cores = ["a76"]\n[tvm]'), r"got `str` - at `\$.cores\[0\]`"),
        (OWN.replace("[tvm]", "cores = [-1]\n[tvm]"), r">= 0 - at `\$.cores\[0\]`"),
        (
            OWN.replace("[tvm]", "fast-cores = 4\n[tvm]"),
            r"got `int` - at `\$.fast-cores`.* fast-cores and cores, .*such as \[4, 5",
        ),
        (
            OWN.replace("cpu", "opencl").replace("[tvm]", "fast-cores = [4]\n[tvm.host]").replace("aarch64", "x")
            + '[tvm]\nkind = "opencl"',
            "fast-cores is for CPUs",
        ),
    ],
)
def test_a_file_that_describes_no_target(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(content)
    with pytest.raises(UserError, match=message):
        load_target("mine", file=tmp_path / "mine.toml")


def test_a_missing_target_file_stops_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read .*nothing.toml"):
        load_target("mine", file=tmp_path / "nothing.toml")


def test_near_names() -> None:
    with pytest.raises(UserError, match=r"No target named 'rpi6'. Did you mean 'rpi"):
        load_target("rpi6")


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"No NVIDIA GPU was found here .* --arch sm_80"):
        load_target("cuda")


def test_show_prints_what_the_compiler_takes() -> None:
    result = CliRunner().invoke(app, ["targets", "show", "rpi5", "--json"])
    shown = json.loads(result.stdout)
    assert shown["tvm"]["mcpu"] == "cortex-a76" and shown["cpu_features"] == ["asimddp", "asimdhp"]
    assert "cortex-a76" in CliRunner().invoke(app, ["targets", "show", "rpi5"]).stdout


def test_the_list_needs_no_gpu() -> None:
    listed = json.loads(CliRunner().invoke(app, ["targets", "--json"]).stdout)["targets"]
    assert [target["name"] for target in listed] == target_names() == [target.name for target in describe_targets()]


# Linkers.


def linked_library(command: list[str], folder: Path) -> bytes:
    """A library that a linker made of code with notes for debuggers."""
    source = (
        "__attribute__((noinline)) static int inner(int x) { return x + 1; }\nint one(int x) { return inner(x); }\n"
    )
    (folder / "one.c").write_text(source)
    subprocess.run([*command, "-g", "-fPIC", "-c", "one.c", "-o", "one.o"], cwd=folder, check=True)
    assert b".debug_info" in (folder / "one.o").read_bytes()
    link_shared_library(command, str(folder / "one.so"), [str(folder / "one.o")])
    return (folder / "one.so").read_bytes()


def assert_linked(library: bytes, architecture: str) -> None:
    """It is for the architecture, and has the names of functions that it exports not."""
    (machine,) = struct.unpack_from("<H", library, 18)
    assert machine == {"x86_64": 62, "aarch64": 183}[architecture]
    assert b"\0inner\0" in library


ARCHITECTURES = ("x86_64", "aarch64")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_linker_makes_libraries_for_the_architecture(architecture: str, tmp_path: Path) -> None:
    try:
        command = linker_command(architecture)
    except UserError as error:
        pytest.skip(str(error))
    library = linked_library(command, tmp_path)
    assert_linked(library, architecture)
    assert b".debug_info" not in library


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_zig_links_where_no_compiler_is(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    command = linker_command(architecture)
    assert command[1:3] == ["-m", "ziglang"]
    assert_linked(linked_library(command, tmp_path), architecture)


def test_without_any_linker_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(linker.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"No linker for aarch64 .*apt-get install gcc-aarch64.*pip install ziglang"):
        linker_command("aarch64")
    with pytest.raises(UserError, match=f"No linker for {platform.machine()} "):
        linker_command(platform.machine())


def test_a_linker_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot link .*nothing.o"):
        link_shared_library(linker_command(platform.machine()), str(tmp_path / "x.so"), [str(tmp_path / "nothing.o")])


def test_doctor_tells_of_each_target(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = {finding.target: finding for finding in examine()}
    assert list(findings) == target_names()
    assert findings["host"].ready and "runs here" in findings["host"].text
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(linker.importlib.util, "find_spec", lambda name: None)
    (finding,) = examine(["rpi4"])
    assert not finding.ready and "sudo apt-get install gcc-aarch64-linux-gnu" in finding.text
    result = CliRunner().invoke(app, ["doctor", "rpi4"])
    assert result.exit_code == 1 and "missing" in result.stdout
    assert json.loads(CliRunner().invoke(app, ["doctor", "rpi4", "--json"]).stdout)["targets"][0]["ready"] is False
