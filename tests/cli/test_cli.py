"""The command line: it answers at once, its help has examples, its JSON parses, and `run` needs no torch."""

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_tasks import tiny_pack
from typer.testing import CliRunner

from ksm_hw import __version__
from ksm_hw.cli import app
from ksm_hw.cli.app import print_json
from ksm_hw.learning.datasets import dataset_names
from ksm_hw.masks.bundle import Bundle, add_task, load_bundle, save_bundle
from ksm_hw.masks.safetensors_file import read_arrays
from ksm_hw.masks.task_pack import bytes_at_rest
from ksm_hw.resources import shipped_bundle
from ksm_hw.state_dicts import packaged_tensors

COMMANDS = [
    *(
        "train",
        "compare",
        "sweep",
        "import",
        "export",
        "inspect",
        "calibrate",
        "compile",
        "tune",
        "run",
        "verify",
        "report",
        "profile",
        "tasks",
        "datasets",
        "doctor",
    ),
    *("targets", "targets show", "board tracker", "board serve", "board list", "opencl build"),
    *("relay install", "relay remove"),
]
INSTALLED = str(Path(sys.executable).parent / "ksm-hw")


def ksm_hw(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the installed command, as a user does."""
    return subprocess.run([INSTALLED, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=300)


def modules_after(code: str, *arguments: str) -> set[str]:
    """Names of the modules that a fresh process has after running some code."""
    script = f"import sys\n{code}\nprint('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_loads_only_what_prints_it() -> None:
    """So it takes a quarter of a second; NumPy, TVM and torch, which the commands need, would take seconds."""
    help_printed = """
from ksm_hw.cli import main
sys.argv = ['ksm-hw', '--help']
try:
    main()
except SystemExit:
    pass
"""
    loaded = modules_after(help_printed) - modules_after("pass")
    packages = {module.partition(".")[0] for module in loaded} - set(sys.stdlib_module_names)
    own = {"ksm_hw", "typer", "annotated_doc", "shellingham", "rich", "markdown_it", "mdurl", "pygments"}
    assert packages <= own | {"attr", "attrs"}  # Rich imports those where they are installed, as Ray has it.
    # Every one is opened, read and run: 329 with Python 3.11.
    assert 100 < len(loaded) < 400


def test_help_names_every_command() -> None:
    output = CliRunner().invoke(app, ["--help"]).stdout
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert names | {group.name for group in app.registered_groups} == {command.split()[0] for command in COMMANDS}
    assert all(re.search(rf"\b{command.split()[0]}\b", output) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example_that_parses(command: str) -> None:
    output = CliRunner().invoke(app, [*command.split(), "--help"], terminal_width=200).stdout
    examples = re.findall(rf"\$ ksm-hw {command}(.*)", output)
    assert examples, f"`ksm-hw {command} --help` has no example"
    options = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", output))
    for example in examples:
        assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", example)) <= options


@pytest.mark.parametrize("option", ["--version"])
def test_version(option: str) -> None:
    assert CliRunner().invoke(app, [option]).stdout == f"ksm-hw {__version__}\n"


def test_no_arguments_print_the_help() -> None:
    assert "Usage" in ksm_hw().stdout + ksm_hw().stderr


def test_the_command_line_itself_imports_nothing_heavy() -> None:
    loaded = modules_after("import ksm_hw.cli")
    assert "typer" in loaded
    assert not {"torch", "torchvision", "tvm", "numpy", "PIL", "matplotlib"} & loaded


def test_running_an_artifact_needs_no_torch(artifact: Path, photographs: Path) -> None:
    """A board that only runs artifacts has neither torch nor needs the compiler's half of ksm-hw."""
    code = (
        # TVM's own bindings import torch where it is installed: here it is not.
        "sys.modules.update(torch=None, torchvision=None)\n"
        "from pathlib import Path\n"
        "from ksm_hw.boards.open_session import open_session\n"
        "from ksm_hw.runtime.classify import classify\n"
        "with open_session(Path(sys.argv[1])) as session:\n"
        "    assert len(next(classify(session, [Path(sys.argv[2])], 'kernel-task')).classes) == 5"
    )
    loaded = modules_after(code, str(artifact), str(photographs / "cat.png"))
    assert "tvm" in loaded and "ksm_hw.runtime.session" in loaded
    assert not {"torch.nn", "ksm_hw.models.backbones", "ksm_hw.compiler", "ksm_hw.learning", "tvm_passes"} & loaded
    assert not {"ksm_hw.boards.board", "ksm_hw.runtime.opencl", "ksm_hw.runtime.cuda"} & loaded


def test_run_prints_the_five_most_probable_classes(artifact: Path, photographs: Path, bundle: Bundle) -> None:
    result = ksm_hw("run", artifact, photographs / "cat.png", photographs / "coffee.png", "--task", "other-task")
    assert result.returncode == 0 and result.stderr == ""
    tables = result.stdout.split("(other-task)")[1:]
    assert len(tables) == 2
    for name in ("cat.png", "coffee.png"):
        assert f"{photographs / name} (other-task)\n" in result.stdout, "a path is not broken over lines"
    for table in tables:
        rows = re.findall(r"(class \d)\s*│\s*([\d.]+)%", table)
        assert sorted(name for name, _ in rows) == sorted(bundle.packs["other-task"].classes)
        probabilities = [float(probability) for _, probability in rows]
        assert probabilities == sorted(probabilities, reverse=True) and abs(sum(probabilities) - 100) < 0.5


def test_run_as_json(artifact: Path, photographs: Path, bundle: Bundle) -> None:
    command = ["run", artifact, photographs / "cat.png", "--task", "element-task", "--top", 3, "--json"]
    document = json.loads(ksm_hw(*command).stdout)
    assert document.keys() == {"images", "failures"} and document["failures"] == []
    (image,) = document["images"]
    assert image["image"].endswith("cat.png") and image["task"] == "element-task"
    assert len(image["classes"]) == 3
    names, probabilities = zip(*image["classes"], strict=True)
    assert set(names) <= set(bundle.packs["element-task"].classes)
    assert 1 >= probabilities[0] >= probabilities[1] >= probabilities[2] > 0


def run_in_process(*arguments: object) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_verify_in_both_forms(artifact: Path) -> None:
    content = json.loads(run_in_process("verify", artifact, "--json"))
    assert content["passed"] is True and content["tolerance"] == 1e-4
    assert [row["task"] for row in content["results"]] == ["element-task", "kernel-task", "other-task"]
    assert all(row["passed"] and row["artifact"] == str(artifact) for row in content["results"])
    assert "passed" in run_in_process("verify", artifact, "--task", "kernel-task")
    # No compiled model is equal to the last bit.
    result = CliRunner().invoke(app, ["verify", str(artifact), "--tolerance", "1e-12"])
    assert result.exit_code == 1 and "FAILED" in result.stdout


def test_json_has_numbers_that_json_knows_alone(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"errors": [math.nan, 0.5], "ranges": {"largest": (math.inf, -math.inf)}})
    content = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert content == {"errors": [None, 0.5], "ranges": {"largest": [None, None]}}


def test_tasks_in_both_forms(bundle_folder: Path, artifact: Path, bundle: Bundle) -> None:
    # An artifact is a bundle as well.
    for folder in (bundle_folder, artifact):
        content = json.loads(run_in_process("tasks", "--bundle", folder, "--json"))
        assert content["backbone_sha256"] == bundle.backbone_sha256
        assert [row["task"] for row in content["tasks"]] == list(bundle.packs)
        stored = read_arrays(folder / "tasks" / "element-task.safetensors")[0]
        assert content["tasks"][0]["bytes"] == sum(array.nbytes for array in stored.values())
    assert all(task in run_in_process("tasks", "--bundle", bundle_folder) for task in bundle.packs)


def test_targets_in_both_forms() -> None:
    targets = json.loads(run_in_process("targets", "--json"))["targets"]
    (host,) = (target for target in targets if target["name"] == "host")
    assert host["device"] == "cpu" and host["tvm"]["kind"] == "llvm"
    assert "host" in run_in_process("targets")


def test_datasets_in_both_forms() -> None:
    entries = json.loads(run_in_process("datasets", "--json"))["datasets"]
    assert [entry["name"] for entry in entries] == dataset_names()
    output = run_in_process("datasets")
    for entry in entries:
        assert entry["name"] in output and (entry["installed"] or entry["install_command"] in output)


@pytest.mark.parametrize("as_json", [False, True])
def test_train_then_compile(tmp_path: Path, photographs: Path, as_json: bool) -> None:
    """A user's own photographs, learned for one epoch; compiling is tried once, for it takes most of the time.

    The bundle has a task of that name, which a user shall not lose without a word.
    """
    backbone = json.loads((shipped_bundle() / "bundle.json").read_text())
    older = dataclasses.replace(
        tiny_pack("photographs", accuracy=0.125),
        **{name: backbone[name] for name in ("backbone", "backbone_sha256")},
    )
    add_task(tmp_path / "bundle", older, packaged_tensors(older.backbone) or {})
    for split in ("train", "test"):
        for photograph in photographs.iterdir():
            (tmp_path / "data" / split / photograph.stem).mkdir(parents=True)
            (tmp_path / "data" / split / photograph.stem / "a.png").write_bytes(photograph.read_bytes())
    json_option = ["--json"] if as_json else []
    output = run_in_process(
        "train", "--task", "photographs", "--data", tmp_path / "data", "--bundle", tmp_path / "bundle",
        "--image-size", 32, "--epochs", 1, "--batch-size", 2, "--scale-bits", 8, *json_option,
    )  # fmt: skip
    pack = load_bundle(tmp_path / "bundle").packs["photographs"]
    assert pack.classes == ("astronaut", "cat", "coffee")
    if as_json:
        content = json.loads(output)
        assert content["pack_bytes"] == bytes_at_rest(pack) and 0 <= content["accuracy"] <= 1
        assert content["replaced_accuracy"] == 0.125
        return
    assert "Task 'photographs' is in" in output and "Soft values in 8 bits" in output
    assert "It replaces one of accuracy 12.5%" in output
    # What it says to do next works.
    (command,) = re.findall(r"Compile it: ksm-hw (compile [^$]*)", output.replace("\n", " "))
    artifact = tmp_path / "artifact"
    content = json.loads(run_in_process(*command.split(), "-o", artifact, "--json"))
    (written,) = content["artifacts"]
    files = [path for path in artifact.rglob("*") if path.is_file()]
    assert written == {"path": str(artifact), "bytes": sum(path.stat().st_size for path in files)}
    assert json.loads(run_in_process("verify", artifact, "--json"))["passed"]


@pytest.mark.parametrize(("target", "options"), [("host", ""), ("rpi5", " --tracker HOST:PORT --key rpi5")])
def test_compile_says_how_the_artifact_is_verified(
    target: str, options: str, bundle_folder: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for a board cannot be verified on this machine alone."""
    monkeypatch.setattr("ksm_hw.compiler.compile.compile_bundle", lambda *_, **_options: [artifact])
    output = run_in_process(
        "compile", "--bundle", bundle_folder, "--target", target, "--task", "all", "-o", tmp_path / "artifact"
    )
    assert output.endswith(f"Check it: ksm-hw verify {artifact}{options}\n")


@pytest.mark.parametrize("kept", [True, False])
def test_an_artifact_without_sample_images(
    kept: bool, bundle_folder: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Bundle] = []

    def compile_bundle(bundle: Bundle, *_arguments: object, **_options: object) -> list[Path]:
        compiled.append(bundle)
        return [artifact]

    monkeypatch.setattr("ksm_hw.compiler.compile.compile_bundle", compile_bundle)
    option = "--samples" if kept else "--no-samples"
    output = run_in_process(
        "compile", "--bundle", bundle_folder, "--target", "host", "--task", "all", option, "-o", tmp_path / "artifact"
    )
    save_bundle(compiled[0], tmp_path / "bundle")
    assert (tmp_path / "bundle" / "samples").exists() == kept
    # Without them, verify asks for images of one's own.
    assert ("--images FOLDER" in " ".join(output.split())) != kept


def test_ctrl_c_in_a_compile_leaves_nothing(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ksm_hw.compiler.relax.plan_memory", interrupted)
    command = ["compile", "--bundle", str(bundle_folder), "--target", "host", "--task", "kernel-task"]
    result = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "artifact")])
    assert (result.exit_code, result.stdout) == (130, "")
    assert "Stopped. What was not finished is not written." in result.stderr
    assert not (tmp_path / "artifact").exists()
