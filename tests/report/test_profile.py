"""`ksm-hw profile`: what operators cost, what the machine can do, and that the profile adds up."""

import dataclasses
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tvm
from tvm import relax
from typer.testing import CliRunner

from ksm_hw.artifact.manifest import read_manifest
from ksm_hw.cli import app
from ksm_hw.cli.console import PlainConsole
from ksm_hw.errors import UserError
from ksm_hw.measuring import session as measuring
from ksm_hw.report import machine_peak as peaks
from ksm_hw.report.machine_peak import MachinePeak, machine_peak, measure_bandwidth, measure_flops
from ksm_hw.report.operator_names import operator_name
from ksm_hw.report.profile import ArtifactProfile, profile_artifact, profile_as_json
from ksm_hw.report.profile_terminal import print_profile
from ksm_hw.toolchains.targets import load_target
from tvm_passes.relax.attach_operator_costs import operator_cost, operator_costs
from tvm_passes.relax.pipeline import schedule_kernels
from tvm_passes.relax.schedules.cpu.vector_unit import vector_unit

RUNS = 5
FAST = MachinePeak("a CPU", 1, "0", flops_per_second=1e11, bytes_per_second=1e10)


# What operators cost.


def module_of(operator: Any, shapes: list[tuple[int, ...]], **options: Any) -> tvm.IRModule:
    """A module whose `main` is one relax operator, followed by a ReLU."""
    builder = relax.BlockBuilder()
    arguments = [relax.Var(f"x{number}", relax.TensorType(shape, "float32")) for number, shape in enumerate(shapes)]
    with builder.function("main", arguments):
        with builder.dataflow():
            found = builder.emit(relax.op.nn.relu(builder.emit(operator(*arguments, **options))))
            result = builder.emit_output(found)
        builder.emit_func_output(result)
    return builder.get()


@pytest.mark.parametrize(
    ("channels", "outputs", "groups", "kernel", "stride"),
    [(16, 32, 1, 3, 1), (16, 32, 1, 1, 2), (16, 32, 4, 3, 1), (32, 32, 32, 3, 2), (3, 16, 1, 7, 2)],
    ids=["3×3", "1×1 s2", "groups", "depthwise", "7×7 s2"],
)
def test_a_convolution_s_operations_are_counted(
    channels: int, outputs: int, groups: int, kernel: int, stride: int
) -> None:
    """Before scheduling and after it, whose tiles reach over the border: 13 divides by no number of lanes."""
    data, weight = (1, 13, 13, channels), (kernel, kernel, channels // groups, outputs)
    module = module_of(
        relax.op.nn.conv2d,
        [data, weight],
        strides=stride,
        padding=kernel // 2,
        groups=groups,
        data_layout="NHWC",
        kernel_layout="HWIO",
    )
    side = (13 - 1) // stride + 1
    results = side * side * outputs
    target = tvm.target.Target(dict(load_target("host").tvm))
    (cost,) = operator_costs(schedule_kernels(module, target)).values()
    assert cost.flops == 2 * results * math.prod(weight[:3]) + results  # One maximum for each result's ReLU.
    assert cost.bytes == 4 * (math.prod(data) + math.prod(weight) + results)


def test_a_dense_layer_s_operations_are_counted() -> None:
    module = relax.transform.LegalizeOps()(module_of(relax.op.matmul, [(2, 50), (50, 30)]))
    assert operator_cost(module["matmul"]).flops == 2 * 2 * 50 * 30
    assert operator_cost(module["matmul"]).bytes == 4 * (2 * 50 + 50 * 30 + 2 * 30)


def test_the_manifest_knows_the_operators_of_an_inference_alone(artifact: Path) -> None:
    operators = read_manifest(artifact).operators
    assert any("conv2d" in symbol for symbol in operators) and any("matmul" in symbol for symbol in operators)
    # Switches take square roots, of variances; inferences of this network take none.
    assert not any("sqrt" in symbol for symbol in operators)
    assert all(cost.bytes > 0 for cost in operators.values())


@pytest.mark.parametrize(
    ("symbol", "shapes", "name"),
    [
        ("fused_conv2d3_add1_relu", ((1, 8, 8, 16), (3, 3, 16, 8), (1, 1, 1, 8), (1, 4, 4, 8)),
         "conv2d 3×3 s2 + add + relu"),
        ("fused_conv2d11_add9_tir_clip5", ((1, 8, 8, 16), (3, 3, 1, 16), (1, 1, 1, 16), (1, 8, 8, 16)),
         "conv2d 3×3 depthwise + add + clip"),
        ("fused_conv2d3_add_tir_clip_conv2d4_add1_relu", ((1, 8, 8, 4), (1, 1, 1, 4, 16), (1, 1, 1, 16), (3, 3, 1, 16),
         (1, 1, 1, 16), (1, 4, 4, 16)), "conv2d 1×1 + add + clip + conv2d 3×3 s2 depthwise + add + relu"),
        ("fused_conv2d13_add", ((1, 8, 8, 16), (3, 3, 4, 16), (1, 1, 1, 16), (1, 8, 8, 16)),
         "conv2d 3×3 4 groups + add"),
        ("fused_conv2d13_add", ((1, 8, 8, 16), (2, 3, 3, 16, 8), (1, 1, 1, 16), (1, 8, 8, 16)), "conv2d 3×3 + add"),
        ("fused_winograd_conv2d2_add_relu", ((1, 8, 8, 16), (6, 6, 1, 16, 16), (1, 8, 8, 16)),
         "winograd conv2d + add + relu"),
        ("fused_concatenate1_reshape2_transpose2_reshape3_split1", ((1, 4), (1, 4)),
         "concatenate + reshape + transpose + reshape + split"),
        ("fused_conv2d11_add9_tir_sigmoid1_multiply1", ((1, 1), (1, 1)), "conv2d + add + sigmoid + multiply"),
        ("adaptive_avg_pool2d2", ((1, 7, 7, 8), (1, 1, 1, 8)), "adaptive avg pool2d"),
        ("mean", ((1, 7, 7, 8), (1, 1, 1, 8)), "mean"),
        ("look_up3", ((1, 7, 7, 8), (256,), (1, 7, 7, 8)), "look up"),
        ("fused_matmul_add24", ((1, 8), (8, 4), (4,), (1, 4)), "matmul + add"),
        ("unpack_mask_kernel_1024x192", ((1024,), (1024, 192)), "unpack mask"),
        ("k3x3_s2_depthwise_conv2d2", ((1, 8, 8, 16), (1, 1, 3, 64), (1, 4, 4, 16)), "conv2d 3×3 s2 depthwise"),
        ("k3x3_g4_conv2d", (), "conv2d 3×3 4 groups"),
        ("k1x1_conv2d13", (), "conv2d 1×1"),
        ("__", (), "__"),
        ("conv2d13", (), "conv2d"),
        ("fused_conv2d9_add5_relu_kernel_1_of_2", ((1, 9, 7, 32), (3, 3, 32, 16), (2, 64, 16)),
         "conv2d + add + relu (kernel 1 of 2)"),
    ],
)  # fmt: skip
def test_operators_have_readable_names(symbol: str, shapes: tuple[tuple[int, ...], ...], name: str) -> None:
    assert operator_name(symbol, shapes) == name


# What the machine can do.


def test_multiply_adds_and_memory_are_measured() -> None:
    """The kernels do what they should (they check themselves) and are not left out: then the rate would be absurd."""
    lanes = vector_unit(tvm.target.Target(dict(load_target("host").tvm))).lanes("float32")
    pipelines, hertz = 4, 7e9  # More than any core has.
    assert 1e8 < measure_flops(1) < 2 * lanes * pipelines * hertz
    assert 1e8 < measure_bandwidth(1) < 2e12


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A user's cache of our own, and a quiet machine; how many threads each measurement had."""
    threads: list[int] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(peaks, "measure_flops", lambda count: threads.append(count) or 1e11 * len(threads))
    monkeypatch.setattr(peaks, "measure_bandwidth", lambda count: 1e10)
    quiet = dataclasses.replace(peaks.this_machine(), load=0.0)
    monkeypatch.setattr(peaks, "this_machine", lambda: quiet)
    return threads


def test_the_peak_is_measured_once(measured: list[int], tmp_path: Path) -> None:
    first = machine_peak(2)
    assert machine_peak(2) == first and measured == [2]
    machine_peak(1)
    assert measured == [2, 1]
    again = machine_peak(2, again=True)
    assert measured == [2, 1, 2] and again.flops_per_second != first.flops_per_second
    assert machine_peak(2) == again
    for path in tmp_path.rglob("*.json"):
        path.write_text("{}")
    machine_peak(2)
    assert measured == [2, 1, 2, 2]


def test_the_peak_of_a_busy_machine_is_not_kept(measured: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    busy = dataclasses.replace(peaks.this_machine(), load=100.0)
    monkeypatch.setattr(peaks, "this_machine", lambda: busy)
    machine_peak(2)
    machine_peak(2)
    assert measured == [2, 2]


def test_a_peak_that_cannot_be_kept_is_measured_again(measured: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "cache_folder", lambda name: Path("/dev/null") / name)
    machine_peak(1)
    machine_peak(1)
    assert measured == [1, 1]


def test_the_roofline_has_two_sides() -> None:
    assert (FAST.shortest_seconds(10**11, 1), FAST.bound(10**11, 1)) == (1.0, "compute")
    assert (FAST.shortest_seconds(1, 10**10), FAST.bound(1, 10**10)) == (1.0, "memory")


# The profile.


@pytest.fixture(scope="module")
def profile(artifact: Path) -> ArtifactProfile:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ksm_hw.report.profile.machine_peak", lambda threads, again: FAST)
        return profile_artifact(artifact, "kernel-task", RUNS, threads=1)


def test_every_call_of_an_inference_is_there(profile: ArtifactProfile, artifact: Path) -> None:
    manifest = read_manifest(artifact)
    assert {symbol for operator in profile.operators for symbol in operator.symbols} == set(manifest.operators)
    assert profile.threads == 1 and profile.task == "kernel-task" and profile.inference.count == RUNS
    # ShuffleNetV2 x0.5: 56 convolutions, of which 3 + 16 are depthwise.
    convolutions = [operator for operator in profile.operators if operator.name.startswith("conv2d")]
    assert sum(operator.calls for operator in convolutions) == 56
    assert sum(operator.calls for operator in convolutions if "depthwise" in operator.name) == 19


def test_the_profile_adds_up(profile: ArtifactProfile) -> None:
    operators = profile.operators
    assert list(operators) == sorted(operators, key=lambda operator: -operator.seconds)
    assert profile.operator_seconds == pytest.approx(sum(operator.seconds for operator in operators))
    assert profile.between_seconds == profile.inference.median_seconds - profile.operator_seconds
    assert profile.flops == sum(operator.flops or 0 for operator in operators)
    assert profile.machine_seconds >= 0
    for operator in operators:
        assert operator.flops is not None and operator.bytes is not None and operator.peak_share is not None
        assert operator.bytes == operator.calls * 4 * sum(map(math.prod, operator.shapes))
        assert operator.share == operator.seconds / profile.inference.median_seconds
        assert operator.peak_share == FAST.shortest_seconds(operator.flops, operator.bytes) / operator.seconds
        if operator.name.startswith("conv2d"):
            _, weight, *_, result = operator.shapes
            multiply_adds = math.prod(result) * math.prod(weight[-4:-1])
            elementwise = math.prod(result) * (operator.name.count(" + "))
            assert operator.flops == operator.calls * (2 * multiply_adds + elementwise)


def test_the_json_is_complete(profile: ArtifactProfile) -> None:
    content = profile_as_json(profile)
    assert json.loads(json.dumps(content)) == content
    assert len(content["operators"]) == len(profile.operators)
    first = content["operators"][0]
    assert first["flops_per_second"] == first["flops"] / first["seconds"]
    assert content["peak"]["flops_per_second"] == FAST.flops_per_second


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_shows_the_slowest(profile: ArtifactProfile, width: int) -> None:
    console = PlainConsole(width=width, file=io.StringIO())
    print_profile(console, dataclasses.replace(profile, artifact="[bold]mine"), top=3)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    others = sum(operator.calls for operator in profile.operators[3:])
    assert "[bold]mine" in printed and f"{others} × others" in printed
    assert "between operators" in printed and "100 GFLOP/s" in printed and "…" not in printed
    unknown = dataclasses.replace(profile.operators[0], flops=None, bytes=None, peak_share=None, bound=None)
    print_profile(console, dataclasses.replace(profile, operators=(unknown,), peak=None))
    assert "–" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_command(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ksm_hw.report.profile.machine_peak", lambda threads, again: FAST)
    options = ["profile", str(artifact), "--runs", str(RUNS), "--threads", "1"]
    shown = CliRunner().invoke(app, [*options, "--top", "2"])
    assert shown.exit_code == 0 and "between operators" in shown.stdout
    content = json.loads(CliRunner().invoke(app, [*options, "--json"]).stdout)
    assert content["threads"] == 1 and content["task"] == "element-task"


def test_bad_input_is_told(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No artifact"):
        profile_artifact(tmp_path)
    with pytest.raises(UserError, match="2 runs are too few"):
        profile_artifact(artifact, runs=2)
    with pytest.raises(UserError, match="Did you mean 'kernel-task'"):
        profile_artifact(artifact, "kernl-task")


def test_what_watching_costs_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of our own: telling of a call takes 2 before it and 2 after it, and the inner call 5 of the outer's."""
    clock = iter([10.0, 10.0, 12.0, 12.0, 19.0, 19.0, 30.0, 30.0])
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(clock))
    watch = measuring._Watch("cpu")
    for symbol, before in (("outer", True), ("inner", True), ("inner", False), ("outer", False)):
        watch(None, symbol, before, None)
    assert {call["symbol"]: call["seconds"] for call in watch.calls} == {"inner": [5.0], "outer": [20.0]}


def test_int8_has_no_share_of_what_float32_could_do(int8_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ksm_hw.report.profile.machine_peak", lambda *_, **__: pytest.fail("float32's was measured"))
    profile = profile_artifact(int8_artifact, "kernel-task", RUNS, threads=1)
    assert profile.peak is None and {operator.peak_share for operator in profile.operators} == {None}
    names = [operator.name for operator in profile.operators]
    assert any(name.startswith("conv2d 3×3 s2 depthwise") for name in names), names
    assert any(name.startswith("conv2d 1×1") for name in names), names
    console = PlainConsole(file=io.StringIO(), width=100)
    print_profile(console, profile)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "GOP/s" in printed and "not measured for int8" in printed
