"""`compile --dump`: the module behind each phase, and each kernel's assembler, in a folder that is nobody else's."""

import ast
import dataclasses
from pathlib import Path

import pytest
import tvm

from ksm_hw.artifact.modes import FoldMode
from ksm_hw.compiler import relax
from ksm_hw.compiler.assembly import cut_assembly
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.compiler.dump import LIST
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle, select_tasks
from ksm_hw.toolchains.targets import load_target
from tvm_passes.relax.pipeline import PHASES

PER_LAYOUT = ("folded", "layouts", "lifted")


def numbered(phase: str, *parts: str) -> str:
    return "-".join([f"{PHASES.index(phase) + 1:02}", phase, *parts]) + ".py"


def dumped(bundle: Bundle, target: str, folder: Path, fold: FoldMode = "switch") -> set[str]:
    """What is in `folder/dump` behind a compile, checked to be Python."""
    compile_bundle(bundle, load_target(target), folder / "artifact", fold=fold, dump=folder / "dump", assembly=True)
    for file in (folder / "dump").glob("*.py"):
        ast.parse(file.read_text())
    return names_in(folder / "dump")


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} - {LIST}


def test_each_phase_and_each_kernel_s_assembler_are_written(bundle: Bundle, tmp_path: Path) -> None:
    """Of tasks with masks of two layouts."""
    bundle = dataclasses.replace(bundle, packs={task: bundle.packs[task] for task in ("kernel-task", "element-task")})
    per_layout = {numbered(phase, layout) for phase in PER_LAYOUT for layout in ("kernel", "element")}
    others = {numbered(phase) for phase in PHASES if phase not in PER_LAYOUT}
    assert dumped(bundle, "rpi4", tmp_path) == {*per_layout, *others, "assembly"}
    scheduled = (tmp_path / "dump" / numbered("scheduled")).read_text()
    texts = {file.stem: file.read_text() for file in (tmp_path / "dump" / "assembly").iterdir()}
    assert all(f"def {kernel}(" in scheduled for kernel in texts)
    convolution = next(text for kernel, text in texts.items() if kernel.startswith("fused_conv2d"))
    assert "fmla\tv" in convolution, "multiply-adds of vectors, by NEON"
    assert any(kernel.startswith("rewrite_weight") for kernel in texts)


@pytest.mark.slow
def test_baked_tasks_have_phases_of_their_own(bundle: Bundle, tmp_path: Path) -> None:
    found = dumped(select_tasks(bundle, "kernel-task"), "host", tmp_path, "bake")
    assert {numbered(phase, "kernel-task") for phase in ("kernels", "scheduled", "planned", "loops")} <= found
    assert list((tmp_path / "dump" / "assembly" / "kernel-task").glob("fused_conv2d*.s"))
    assert numbered("scheduled") in found, "what rewrites weights was scheduled to be run here"


def test_a_fused_task_of_one_layout(bundle: Bundle, tmp_path: Path) -> None:
    found = dumped(select_tasks(bundle, "kernel-task"), "mali", tmp_path, "fused")
    assert found == {*(numbered(phase) for phase in PHASES), "assembly"}
    kernels = {file.name: file.read_text() for file in (tmp_path / "dump" / "assembly").iterdir()}
    assert kernels and all(f"void {name.removesuffix('.cl')}(" in text for name, text in kernels.items())


def test_a_compile_that_fails_leaves_the_phases_before(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> tvm.IRModule:
        raise RuntimeError("no memory")

    monkeypatch.setattr(relax, "plan_memory", fail)
    one = select_tasks(bundle, "kernel-task")
    with pytest.raises(RuntimeError, match="no memory"):
        compile_bundle(one, load_target("host"), tmp_path / "artifact", dump=tmp_path / "dump")
    assert names_in(tmp_path / "dump") == {numbered(phase) for phase in PHASES[:7]}


def test_an_older_dump_is_replaced_and_nothing_else(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relax, "lower_backbone", lambda *_: pytest.fail("the folder is looked at first"))
    folder = tmp_path / "dump"
    (folder / "assembly").mkdir(parents=True)
    older = [folder / numbered("lowered"), folder / numbered("folded", "kernel"), folder / "assembly" / "mean.s"]
    others = [folder / "notes.txt", folder / "assembly" / "start.s", tmp_path / "outside.py"]
    for file in (*older, *others):
        file.write_text("older")
    with pytest.raises(UserError, match="holds no older dump"):
        compile_bundle(bundle, load_target("host"), tmp_path / "artifact", dump=folder)
    assert all(file.exists() for file in older)
    (folder / LIST).write_text("\n".join([*(str(file.relative_to(folder)) for file in older), "../outside.py"]))
    with pytest.raises(pytest.fail.Exception, match="looked at first"):
        compile_bundle(bundle, load_target("host"), tmp_path / "artifact", dump=folder)
    assert not any(file.exists() for file in older) and all(file.read_text() == "older" for file in others)
    with pytest.raises(UserError, match="holds no older dump"):
        compile_bundle(bundle, load_target("host"), tmp_path / "artifact", dump=folder / "notes.txt")


def test_a_dump_that_cannot_be_written_is_bad_input(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="Cannot write"):
        compile_bundle(bundle, load_target("host"), tmp_path / "artifact", dump=tmp_path / "file" / "dump")


@pytest.mark.parametrize(("output", "dump"), [("a", "a"), ("a", "a/dump"), ("a/artifact", "a")])
def test_a_dump_and_an_artifact_do_not_lie_in_each_other(
    bundle: Bundle, tmp_path: Path, output: str, dump: str
) -> None:
    with pytest.raises(UserError, match="lie in each other"):
        compile_bundle(bundle, load_target("host"), tmp_path / output, dump=tmp_path / dump)
    assert not any(tmp_path.iterdir())


def test_a_kernel_s_assembler_is_what_computes_it_and_what_it_starts_in_threads() -> None:
    def function(name: str, *lines: str) -> str:
        return f"\t.type\t{name},@function\n{name}:\n\t.cfi_startproc\n" + "\n".join(lines) + "\n\t.cfi_endproc\n"

    text = (
        function("__tvm_ffi_mean", "\tcall\tmean_compute_")
        + function("mean_compute_", "\tlea\t.L__tvm_parallel_lambda.3(%rip), %rdi")
        + function(".L__tvm_parallel_lambda", "\tret")
        + function(".L__tvm_parallel_lambda.3", "\t.loc\t1 0 0", "\tvaddps\t%ymm0")
        + function("__tvm_ffi_reshape", "\tmovups\t%xmm0")
    )
    found = cut_assembly(text)
    assert found.keys() == {"mean", "reshape"}
    assert "vaddps" in found["mean"] and ".loc" not in found["mean"] and found["mean"].count("cfi") == 0
    assert "\tret" not in found["mean"] and "__tvm_ffi" not in found["mean"]
    assert "movups" in found["reshape"]
