"""`ksm-hw profile --operator`: the innermost loops of an operator, its schedule and cost, by whichever of its names."""

import dataclasses
import json
from pathlib import Path

import pytest
from damage import unsealed
from typer.testing import CliRunner

from ksm_hw.artifact.manifest import read_manifest
from ksm_hw.cli import app
from ksm_hw.errors import UserError
from ksm_hw.report.innermost_loops import innermost_loops
from ksm_hw.report.operator_code import OperatorCode, operator_code
from ksm_hw.report.operator_names import operator_name
from ksm_hw.toolchains.disassembly import Instruction

CONVOLUTION = "fused_conv2d_add_relu"
NAME = "conv2d 3×3 s2 + add + relu"  # The only one of the network.


# Loops.


def code(*lines: str) -> list[Instruction]:
    """Instructions at the addresses 0, 1, …; a number behind a mnemonic is where it branches to."""
    return [
        Instruction(address, mnemonic, target, int(target) if target else None)
        for address, (mnemonic, _, target) in enumerate(line.partition(" ") for line in lines)
    ]


def spans(*lines: str) -> list[tuple[int, int]]:
    return [(loop.instructions[0].address, loop.instructions[-1].address) for loop in innermost_loops(code(*lines))]


def test_a_loop_is_what_a_branch_leads_back_over() -> None:
    assert spans("mov", "add", "b.ne 1", "ret") == [(1, 2)]
    assert spans("mov", "b.ne 1", "ret") == [(1, 1)]
    assert spans("b.eq 2", "add", "ret") == []  # A branch ahead.
    assert spans("mov", "b.ne 17", "ret") == []  # Out of the function.


def test_loops_that_hold_others_are_left_out() -> None:
    assert spans("mov", "mov", "add", "b.ne 2", "add", "b.ne 4", "b.ne 1", "b.ne 0") == [(2, 3), (4, 5)]
    assert spans("mov", "add", "b.ne 1", "mov", "add", "b.ne 3") == [(1, 2), (3, 5)]


def test_loops_with_most_multiply_adds_come_first() -> None:
    lines = ("mov", "b.ne 0", "fmla", "b.ne 2", "fmla", "vfmadd231ps", "b.ne 4", "fmul", "vmulps", "b.ne 7")
    assert spans(*lines) == [(4, 6), (2, 3), (0, 1), (7, 9)]
    assert [loop.multiply_adds for loop in innermost_loops(code(*lines))] == [2, 1, 0, 0]


# Operators.


@pytest.mark.parametrize(
    ("fixture", "products", "schedule"),
    [
        ("artifact", ("vfmadd", "fmla"), "Convolution: Tiling(pixels="),
        ("arm64_artifact", ("fmla",), "FewChannels: RowTile(pixels="),
    ],
    ids=["here", "arm64"],
)
def test_the_hottest_loop_of_a_convolution_multiplies_and_adds(
    fixture: str, products: tuple[str, ...], schedule: str, request: pytest.FixtureRequest
) -> None:
    artifact: Path = request.getfixturevalue(fixture)
    found = operator_code(artifact, CONVOLUTION)
    assert found.symbol == CONVOLUTION and found.name == NAME
    assert found.entry is not None and found.entry.schedule.startswith(schedule)
    assert found.instructions is not None and found.instructions > len(found.loops[0].instructions)
    hottest = [instruction.mnemonic for instruction in found.loops[0].instructions]
    count = sum(mnemonic.startswith(products) for mnemonic in hottest)
    assert count == found.loops[0].multiply_adds >= 8
    # The tile is kept in registers: nothing is written back in the loop.
    assert not any(mnemonic.startswith(("st", "vmovups")) for mnemonic in hottest[-2:])


def test_every_operator_of_the_manifest_has_machine_code_and_a_schedule(arm64_artifact: Path) -> None:
    for symbol, entry in read_manifest(arm64_artifact).operators.items():
        assert entry.schedule, symbol
        found = operator_code(arm64_artifact, symbol)
        assert found.instructions and found.entry == entry


def test_names_of_a_profile_name_operators_too(artifact: Path) -> None:
    assert operator_code(artifact, NAME) == operator_code(artifact, CONVOLUTION)


def test_what_no_inference_calls_has_machine_code_alone(artifact: Path) -> None:
    found = operator_code(artifact, "rewrite_weight")
    assert found.entry is None and found.instructions


def test_an_unknown_operator_s_near_ones_are_named(artifact: Path) -> None:
    with pytest.raises(UserError, match=r"No operator named 'fused_conv2d_add_rel'\. Near it: fused_conv2d_add_relu"):
        operator_code(artifact, "fused_conv2d_add_rel")
    with pytest.raises(UserError, match=r"No operator named 'depthwise'\. Near it: conv2d 3×3 .*depthwise"):
        operator_code(artifact, "depthwise")
    with pytest.raises(UserError, match=r"No operator named 'attention'\. `ksm-hw profile` lists"):
        operator_code(artifact, "attention")


def test_a_name_of_several_operators_asks_for_a_symbol(artifact: Path) -> None:
    names = {symbol: operator_name(symbol, entry.shapes) for symbol, entry in read_manifest(artifact).operators.items()}
    several = [symbol for symbol, name in names.items() if name == "conv2d 1×1 + add + relu"]
    assert len(several) > 1
    with pytest.raises(UserError, match="Several operators are called") as error:
        operator_code(artifact, "conv2d 1×1 + add + relu")
    assert all(symbol in str(error.value) for symbol in several)


def test_a_gpu_s_kernels_are_not_shown(copied_artifact: Path) -> None:
    path = copied_artifact / "manifest.json"
    content = unsealed(path.read_text())
    gpu = {"kind": "cuda", "arch": "sm_80", "host": content["tvm_target"]}
    path.write_text(json.dumps(content | {"device": "cuda", "tvm_target": gpu}))
    found = operator_code(copied_artifact, CONVOLUTION)
    assert found.instructions is None and found.loops == () and found.entry is not None
    assert "not shown" in shown(copied_artifact, CONVOLUTION)


def test_relay_s_operators_are_not_told_apart(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = dataclasses.replace(read_manifest(artifact), ir="relay")
    monkeypatch.setattr("ksm_hw.report.operator_code.read_manifest", lambda folder: manifest)
    with pytest.raises(UserError, match="through Relay"):
        operator_code(artifact, CONVOLUTION)


# The command.


def shown(artifact: Path, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["profile", str(artifact), "--operator", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_it_prints_cost_schedule_and_loops(arm64_artifact: Path) -> None:
    found = operator_code(arm64_artifact, CONVOLUTION)
    assert found.entry is not None and len(found.loops) > 1
    output = shown(arm64_artifact, CONVOLUTION, "--loops", "1")
    assert output.startswith(f"{CONVOLUTION}: {NAME}\n")
    assert f"schedule: {found.entry.schedule}\n" in output
    assert f"{found.entry.flops / 1e6:.2f} MFLOP, {found.entry.bytes / 1e6:.2f} MB" in output
    assert f"aarch64, {found.instructions} instructions, {len(found.loops)} innermost loops" in output
    assert f"loop 1 of {len(found.loops)}: " in output and "loop 2 of" not in output
    assert [line.split()[1] for line in output.split("multiply-adds\n")[1].splitlines()] == [
        instruction.mnemonic for instruction in found.loops[0].instructions
    ]


def test_json_has_every_loop(arm64_artifact: Path) -> None:
    found: OperatorCode = operator_code(arm64_artifact, CONVOLUTION)
    content = json.loads(shown(arm64_artifact, NAME, "--loops", "1", "--json"))
    assert content["symbol"] == CONVOLUTION and content["name"] == NAME and content["architecture"] == "aarch64"
    assert content["schedule"].startswith("FewChannels: RowTile(")
    assert content["shapes"][-1] == [1, 16, 16, 24]
    assert [loop["multiply_adds"] for loop in content["loops"]] == [loop.multiply_adds for loop in found.loops]
    assert content["loops"][0]["instructions"][0] == str(found.loops[0].instructions[0])


def test_a_board_is_not_asked_for_code(artifact: Path) -> None:
    result = CliRunner().invoke(app, ["profile", str(artifact), "--operator", "mean", "--host", "127.0.0.1:1"])
    assert isinstance(result.exception, UserError) and "no board is asked" in str(result.exception)
