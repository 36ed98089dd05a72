"""Bad input through the command line: exit code 2, one message that helps, no traceback, nothing half-written."""

import dataclasses
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from damage import unsealed
from PIL import Image

from ksm_hw.cli import main
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle, load_bundle, save_bundle
from ksm_hw.masks.soft_mask import pack_mask
from ksm_hw.masks.task_pack import save_task_pack
from ksm_hw.models.backbones import build_backbone

Fails = Callable[..., str]


def contents(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def fails(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fails:
    """Runs `ksm-hw` with arguments that are bad, checks how it fails, and returns its one message."""

    def run(*arguments: object) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["ksm-hw", *map(str, arguments)])
        before = contents(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        output = capsys.readouterr()
        assert exit_.value.code == 2
        assert output.out == ""
        *progress, last = output.err.strip().splitlines()
        assert last.startswith("error: ") and not any("error" in line for line in progress), output.err
        assert "Traceback" not in output.err
        assert contents(tmp_path) == before, "something was written"
        return last

    return run


# The artifact, its images and its tasks.


def test_missing_artifact(fails: Fails, photographs: Path) -> None:
    assert "No artifact at nowhere" in fails("run", "nowhere", photographs / "cat.png")
    assert "No artifact at nowhere" in fails("verify", "nowhere")
    assert "No artifact at nowhere" in fails("report", "nowhere")


def test_a_folder_of_artifacts(fails: Fails, copied_artifact: Path) -> None:
    """`--fold bake` writes one for each task."""
    message = fails("verify", copied_artifact.parent)
    assert "No artifact at" in message and f"Give one that is inside: {copied_artifact}." in message


def test_missing_image(fails: Fails, artifact: Path) -> None:
    assert "No image at dog.png" in fails("run", artifact, "dog.png", "--task", "kernel-task")


@pytest.mark.parametrize("damage", ["text", "truncated", "empty"])
def test_image_that_does_not_decode(
    fails: Fails, artifact: Path, photographs: Path, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "photo.png"
    whole = (photographs / "cat.png").read_bytes()
    path.write_bytes({"text": b"no image", "truncated": whole[: len(whole) // 2], "empty": b""}[damage])
    message = fails("run", artifact, path, "--task", "kernel-task")
    assert f"Cannot decode {path}" in message and ".jpg" in message


def test_folder_without_images(fails: Fails, artifact: Path, photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.png").mkdir()
    message = fails("run", artifact, photographs / "cat.png", "photo.png", "--task", "kernel-task")
    assert "No images in photo.png" in message and ".jpg" in message


def test_unknown_task_of_an_artifact(fails: Fails, artifact: Path, photographs: Path) -> None:
    for arguments in (
        ["run", artifact, photographs / "cat.png", "--task", "kernel-tsak"],
        ["verify", artifact, "--task", "kernel-tsak"],
    ):
        assert "No task named 'kernel-tsak'. Did you mean 'kernel-task'?" in fails(*arguments)


def test_no_task_where_there_are_several(fails: Fails, artifact: Path, photographs: Path) -> None:
    message = fails("run", artifact, photographs / "cat.png")
    assert "--task: element-task, kernel-task, other-task" in message
    assert "No task named ''." in fails("run", artifact, photographs / "cat.png", "--task", ""), "an empty variable"


def test_records_for_an_artifact_that_has_none(fails: Fails, artifact: Path) -> None:
    """They would be passed over, and a wrong path with them."""
    assert "this was compiled with none. Leave it out." in fails("report", artifact, "--tuned", "nowhere")
    assert "which --no-unmasked leaves out" in fails("report", artifact, "--no-unmasked", "--tuned", "nowhere")


def test_no_images_to_verify_with(fails: Fails, artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "No images" in fails("verify", artifact, "--images", "empty")


def test_unknown_operator(fails: Fails, artifact: Path) -> None:
    message = fails("profile", artifact, "--operator", "fused_conv2d_ad_relu")
    assert "No operator named 'fused_conv2d_ad_relu'. Near it: fused_conv2d_add_relu" in message


@pytest.mark.parametrize("name", ["model.so", "backbone.safetensors", "tasks/other-task.safetensors", "bundle.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
def test_artifact_copied_incompletely(
    fails: Fails, copied_artifact: Path, photographs: Path, name: str, damage: str
) -> None:
    path = copied_artifact / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    message = fails("run", copied_artifact, photographs / "cat.png", "--task", "kernel-task")
    assert str(path) in message and "opy" in message


@pytest.mark.parametrize(
    "damage",
    [
        "missing",
        "empty",
        "truncated",
        "list",
        "version",
        "no files",
        "files a list",
        "file without a hash",
        "no tasks",
        "precision",
    ],
)
def test_damaged_manifest(fails: Fails, copied_artifact: Path, photographs: Path, damage: str) -> None:
    path = copied_artifact / "manifest.json"
    text = path.read_text()
    content = json.loads(text)
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_text("")
        case "truncated":
            path.write_text(text[: len(text) // 2])
        case "list":
            path.write_text("[]")
        case "version":
            path.write_text(json.dumps(content | {"format_version": 99}))
        case "no files":
            path.write_text(json.dumps(content | {"files": {}}))
            (copied_artifact / "model.so").unlink()
        case "files a list":
            path.write_text(json.dumps(content | {"files": ["model.so"]}))
        case "file without a hash":
            path.write_text(json.dumps(content | {"files": {"model.so": {}}}))
        case "no tasks":
            path.write_text(json.dumps(content | {"tasks": {}}))
        case "precision":
            path.write_text(json.dumps(content | {"precision": "int4"}))
    message = fails("run", copied_artifact, photographs / "cat.png", "--task", "kernel-task")
    assert str(copied_artifact) in message


def test_artifact_for_another_cpu(fails: Fails, copied_artifact: Path, photographs: Path) -> None:
    path = copied_artifact / "manifest.json"
    content = unsealed(path.read_text())
    path.write_text(json.dumps(content | {"cpu_features": [*content["cpu_features"], "avx9000"]}))
    message = fails("run", copied_artifact, photographs / "cat.png", "--task", "kernel-task")
    assert "uses avx9000, which this CPU" in message


# The bundle and its packs.


def test_missing_bundle(fails: Fails) -> None:
    message = fails("compile", "--target", "host", "--task", "all", "--bundle", "nowhere", "-o", "artifact")
    assert "No bundle at nowhere" in message
    assert "No bundle at nowhere" in fails("tasks", "--bundle", "nowhere")


@pytest.mark.parametrize(
    "content", ["", '{"format_version": 1', "[]", '{"format_version": 9}', '{"format_version": 1}']
)
def test_damaged_bundle_description(fails: Fails, copied_bundle: Path, content: str) -> None:
    (copied_bundle / "bundle.json").write_text(content)
    assert "bundle.json" in compile_fails(fails, copied_bundle)


@pytest.mark.parametrize("tasks", [3, ["gone"], ["../../etc/passwd"]])
def test_bundle_whose_tasks_are_not_there(fails: Fails, copied_bundle: Path, tasks: object) -> None:
    content = json.loads((copied_bundle / "bundle.json").read_text())
    (copied_bundle / "bundle.json").write_text(json.dumps(content | {"tasks": tasks}))
    compile_fails(fails, copied_bundle)


def test_assembler_without_a_folder_for_it(fails: Fails, bundle_folder: Path) -> None:
    message = fails("compile", "--target", "host", "--task", "all", "--bundle", bundle_folder, "--dump-assembly")
    assert "--dump FOLDER" in message


def test_dump_into_a_folder_of_something_else(fails: Fails, bundle_folder: Path) -> None:
    options = ["--target", "host", "--task", "all", "-o", "artifact", "--dump", bundle_folder]
    assert "holds no older dump" in fails("compile", *options, "--bundle", bundle_folder)


def test_dump_into_the_artifact(fails: Fails, bundle_folder: Path) -> None:
    options = ["--target", "host", "--task", "all", "-o", "artifact", "--bundle", bundle_folder]
    for folder in ("artifact", "artifact/dump"):
        assert "Dump into another folder" in fails("compile", *options, "--dump", folder)


def test_dump_of_relay(fails: Fails, bundle_folder: Path) -> None:
    options = ["--target", "host", "--task", "all", "--ir", "relay", "--dump", "dump", "-o", "artifact"]
    assert "--dump shows the phases of --ir relax" in fails("compile", *options, "--bundle", bundle_folder)


def compile_fails(fails: Fails, bundle: Path, task: str = "kernel-task") -> str:
    return fails("compile", "--target", "host", "--task", task, "--bundle", bundle, "-o", "artifact")


def pickled(path: Path, protocol_only: bool) -> None:
    if protocol_only:
        path.write_bytes(pickle.dumps({"head/weight": [1.0]}))
    else:
        torch.save({"head/weight": torch.zeros(2, 2)}, path)


DAMAGED_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: path.unlink(), "Cannot read"),
    "empty": (lambda path: path.write_bytes(b""), "truncated or is no safetensors"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "truncated or is no safetensors"),
    "header cut": (lambda path: path.write_bytes(path.read_bytes()[:50]), "truncated or is no safetensors"),
    "text": (lambda path: path.write_text("hello"), "truncated or is no safetensors"),
    "torch.save": (lambda path: pickled(path, False), "is a pickle"),
    "pickle": (lambda path: pickled(path, True), "is a pickle"),
}


@pytest.mark.parametrize("damage", DAMAGED_FILES)
def test_damaged_task_pack(fails: Fails, copied_bundle: Path, damage: str) -> None:
    path = copied_bundle / "tasks" / "kernel-task.safetensors"
    change, message = DAMAGED_FILES[damage]
    change(path)
    found = compile_fails(fails, copied_bundle)
    assert message in found and str(path) in found


@pytest.mark.parametrize("damage", [name for name in DAMAGED_FILES if name != "missing"])
def test_damaged_backbone(fails: Fails, copied_bundle: Path, damage: str) -> None:
    path = copied_bundle / "backbone.safetensors"
    change, message = DAMAGED_FILES[damage]
    change(path)
    found = compile_fails(fails, copied_bundle)
    assert message in found and str(path) in found


def test_missing_backbone(fails: Fails, copied_bundle: Path) -> None:
    (copied_bundle / "backbone.safetensors").unlink()
    assert "backbone.safetensors is missing" in compile_fails(fails, copied_bundle)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["backbone.safetensors", "tasks/kernel-task.safetensors"])
def test_tensors_of_another_type(fails: Fails, copied_bundle: Path, name: str, dtype: torch.dtype) -> None:
    """Bfloat16 is none of NumPy's types, float16 is one, and neither is silently taken for float32."""
    path = copied_bundle / name
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    changed = next(name for name, tensor in tensors.items() if tensor.dtype == torch.float32)
    tensors[changed] = tensors[changed].to(dtype)
    safetensors.torch.save_file(tensors, path, metadata)
    message = compile_fails(fails, copied_bundle)
    named = f"'{changed.removeprefix('batch_norm/')}' as float16" if dtype == torch.float16 else "dtype BF16"
    assert str(path) in message and named in message and "float32" in message


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"ksm-hw": "{"}, {"ksm-hw": "[]"}, {"ksm-hw": "{}"}])
def test_foreign_safetensors(fails: Fails, copied_bundle: Path, metadata: dict[str, str] | None) -> None:
    path = copied_bundle / "tasks" / "kernel-task.safetensors"
    path.write_bytes(safetensors.numpy.save({"weight": np.zeros((3, 3), np.float32)}, metadata))
    assert str(path) in compile_fails(fails, copied_bundle)


def test_unknown_task_of_a_bundle(fails: Fails, bundle_folder: Path) -> None:
    assert "Did you mean 'other-task'?" in compile_fails(fails, bundle_folder, "othertask")


def test_unknown_target(fails: Fails, bundle_folder: Path) -> None:
    message = fails("compile", "--target", "hots", "--task", "all", "--bundle", bundle_folder, "-o", "artifact")
    assert "No target named 'hots'. Did you mean 'host'?" in message and "There are: " in message


def changed_bundle(bundle: Bundle, folder: Path, **changes: object) -> Path:
    pack = dataclasses.replace(bundle.packs["kernel-task"], **changes)  # type: ignore[arg-type]
    folder.mkdir()
    save_bundle(dataclasses.replace(bundle, packs={"kernel-task": pack}, samples=None), folder)
    return folder


def test_mask_of_another_shape(fails: Fails, bundle: Bundle, tmp_path: Path) -> None:
    masks = {**bundle.packs["kernel-task"].masks, "conv1.0": pack_mask(np.ones((24, 9, 1, 1), np.float32))}
    message = compile_fails(fails, changed_bundle(bundle, tmp_path / "bundle", masks=masks))
    assert "mask of shape [24, 9, 1, 1] for layer 'conv1.0'; expected [24, 3, 1, 1]" in message


def test_backbone_hash_that_does_not_match(fails: Fails, bundle: Bundle, tmp_path: Path) -> None:
    message = compile_fails(fails, changed_bundle(bundle, tmp_path / "bundle", backbone_sha256="f" * 64))
    assert "f" * 64 in message and bundle.backbone_sha256 in message


def test_head_of_another_network(fails: Fails, bundle: Bundle, tmp_path: Path) -> None:
    head = np.zeros((5, 7), np.float32)
    message = compile_fails(fails, changed_bundle(bundle, tmp_path / "bundle", head_weight=head))
    assert "7" in message and "1024" in message


def test_output_that_is_somebody_s_folder_is_not_replaced(fails: Fails, bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "thesis.txt").write_text("years of work")
    assert "is not replaced" in compile_fails(fails, bundle_folder)
    assert (tmp_path / "artifact" / "thesis.txt").read_text() == "years of work"


# Training.


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    folder = tmp_path / "pets"
    for number, name in enumerate(("train/cat", "train/dog", "test/cat", "test/dog")):
        (folder / name).mkdir(parents=True)
        for shade in (0, 100):
            Image.new("RGB", (40, 40), (number * 60, shade, 0)).save(folder / name / f"{shade}.png")
    return folder


def train_fails(fails: Fails, *arguments: object) -> str:
    return fails("train", "--task", "pets", "--image-size", 32, "--epochs", 1, "--bundle", "bundle", *arguments)


def test_data_that_is_not_there(fails: Fails) -> None:
    assert "Did you mean 'fashion-mnist'?" in train_fails(fails, "--data", "fashionmnist")


def test_name_that_no_task_can_have(fails: Fails, pets: Path) -> None:
    message = fails("train", "--task", "../evil", "--data", pets, "--bundle", "bundle")
    assert "'../evil' cannot name a task" in message


def test_unknown_backbone(fails: Fails, pets: Path) -> None:
    message = train_fails(fails, "--data", pets, "--backbone", "resnet81")
    assert "No backbone named 'resnet81'. Did you mean resnet18" in message


def test_missing_weights(fails: Fails, pets: Path) -> None:
    assert "No weights at nowhere.pt" in train_fails(fails, "--data", pets, "--weights", "nowhere.pt")


def test_a_folder_for_weights(fails: Fails, pets: Path) -> None:
    assert f"{pets} is a folder" in train_fails(fails, "--data", pets, "--weights", pets)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_truncated_weights(fails: Fails, pets: Path, tmp_path: Path, name: str) -> None:
    network = build_backbone("shufflenet_v2_x0_5")
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save(network.state_dict(), path)
    else:
        state = {key: tensor.numpy() for key, tensor in network.state_dict().items()}
        path.write_bytes(safetensors.numpy.save(state))
    path.write_bytes(path.read_bytes()[:-1000])
    message = train_fails(fails, "--data", pets, "--backbone", "shufflenet_v2_x0_5", "--weights", path)
    assert f"Cannot read {path} as a state dict" in message


def test_weights_of_another_network(fails: Fails, pets: Path, tmp_path: Path) -> None:
    torch.save(build_backbone("mobilenet_v3_small").state_dict(), tmp_path / "weights.pt")
    message = train_fails(fails, "--data", pets, "--backbone", "shufflenet_v2_x0_5", "--weights", "weights.pt")
    assert "lack 'conv1.0.weight' [24, 3, 3, 3]" in message and "another architecture" in message


def test_weights_that_are_no_state_dict(fails: Fails, pets: Path, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": [torch.zeros(1)]}, tmp_path / "weights.pt")
    assert "holds no state dict" in train_fails(fails, "--data", pets, "--weights", "weights.pt")


class _Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_code_in_a_pickle_is_not_run(fails: Fails, pets: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"conv1.weight": _Malicious()}))
    assert f"Cannot read {path}" in train_fails(fails, "--data", pets, "--weights", path)
    assert not (tmp_path / "executed").exists()
    torch.save({"conv1.weight": _Malicious()}, path)
    assert f"Cannot read {path}" in train_fails(fails, "--data", pets, "--weights", path)
    assert not (tmp_path / "executed").exists()


def test_training_image_that_does_not_decode(fails: Fails, pets: Path) -> None:
    (pets / "train" / "dog" / "0.png").write_bytes(b"no image")
    message = train_fails(fails, "--data", pets, "--method", "head")
    assert "1 of 8 images cannot be read" in message and "dog/0.png" in message and "--skip-bad" in message


def test_bundle_over_another_backbone_is_refused_before_learning(fails: Fails, pets: Path, copied_bundle: Path) -> None:
    message = train_fails(fails, "--data", pets, "--method", "head")
    assert load_bundle(copied_bundle).backbone_sha256 in message and "efficientnet-lite0" in message
    assert not (copied_bundle / ".learning").exists()


def test_option_that_does_not_exist(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ksm-hw", "run", "--taks", "cars"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2 and "Traceback" not in capsys.readouterr().err


# A full disk.


@pytest.fixture
def small_disk(tmp_path: Path, bundle_folder: Path) -> Iterator[Path]:
    """A disk with room for the bundle, but not for a library beside it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = sum(contents(bundle_folder).values()) // 1024 + 100
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_full_disk_while_compiling(fails: Fails, small_disk: Path, bundle_folder: Path) -> None:
    command = ["compile", "--target", "host", "--task", "all", "--bundle", bundle_folder, "-o", small_disk / "artifact"]
    assert "No space left on device" in fails(*command)
    assert list(small_disk.iterdir()) == []


def test_full_disk_while_learning(fails: Fails, small_disk: Path, pets: Path) -> None:
    message = fails(
        "train", "--task", "pets", "--image-size", 32, "--epochs", 1, "--data", pets, "--method", "head",
        "--bundle", small_disk / "bundle",
    )  # fmt: skip
    assert "No space left on device" in message and "Cannot write" in message


def test_full_disk_leaves_the_older_pack(bundle: Bundle, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk, where nobody may mount one."""
    path = tmp_path / "pack.safetensors"
    save_task_pack(bundle.packs["kernel-task"], path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match=r"Cannot write .*Nothing was left behind"):
            save_task_pack(bundle.packs["element-task"], path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_installed_command_fails_alike(tmp_path: Path) -> None:
    """In a process of its own, as a user runs it."""
    command = shutil.which("ksm-hw", path=str(Path(sys.executable).parent))
    assert command is not None
    result = subprocess.run([command, "tasks", "--bundle", "nowhere"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "error: No bundle at nowhere: bundle.json is missing. Make one with `ksm-hw train`.\n"
