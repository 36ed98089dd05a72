"""The C++ runner: built for this machine and for arm64 (under qemu), in every fold mode, against the Python session."""

import dataclasses
import json
import os
import platform
import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import tvm
from damage import damaged_bytes
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from random_tasks import with_scale_bits
from rounded_artifacts import rounded_artifact
from tvm import relax
from typer.testing import CliRunner

from ksm_hw.artifact.manifest import read_manifest
from ksm_hw.artifact.modes import FoldMode
from ksm_hw.artifact.parameter_file import ALIGNMENT, StoredArray, held_arrays, write_parameter_file
from ksm_hw.artifact.parameters import task_parameters
from ksm_hw.cli import app
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.errors import UserError
from ksm_hw.images.decoding import read_image
from ksm_hw.masks.backbone_precision import BackbonePrecision
from ksm_hw.masks.bundle import Bundle, load_bundle, sample_images, select_tasks
from ksm_hw.masks.preprocessing import preprocess_batch
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.task_module import task_module
from ksm_hw.report.verify import TOLERANCE
from ksm_hw.resources import shipped_bundle
from ksm_hw.runner import build as runner
from ksm_hw.runtime.classify import classify
from ksm_hw.runtime.session import Session
from ksm_hw.toolchains.targets import load_target
from ksm_hw.toolchains.tvm_libraries import libraries_folder, runtime_libraries

BATCH = 2
CROSS_FOLDER = Path("/usr/aarch64-linux-gnu")  # The C and C++ libraries of Debian's cross compiler.

pytestmark = pytest.mark.skipif(
    shutil.which("c++") is None or not Path("/usr/include/stb/stb_image.h").exists(),
    reason="the Debian packages g++ and libstb-dev are missing",
)
needs_emulator = pytest.mark.skipif(
    shutil.which("qemu-aarch64") is None or shutil.which("aarch64-linux-gnu-g++") is None,
    reason="the Debian packages qemu-user and g++-aarch64-linux-gnu are missing",
)


def run(artifact: Path, *arguments: object, cpu: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs an artifact's runner; with `cpu` in the emulator, as that CPU."""
    emulator = ["qemu-aarch64", "-cpu", cpu, "-L", str(CROSS_FOLDER)] if cpu else []
    command = [*emulator, str(artifact / "runner" / "ksm-runner"), str(artifact), *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LD_", "TVM_"))}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def runner_logits(artifact: Path, task: str, inputs: list[Path], folder: Path, cpu: str | None = None) -> np.ndarray:
    done = run(artifact, "--task", task, *inputs, "--logits", folder / "logits.npy", cpu=cpu)
    assert (done.returncode, done.stderr) == (0, "")
    logits = np.load(folder / "logits.npy")
    assert logits.dtype == np.float32
    return logits


def random_images(session: Session, folder: Path, count: int = 3) -> tuple[np.ndarray, Path]:
    """Images that do not fill the last batch, and their file."""
    images = np.random.default_rng(0).standard_normal((count, *session.manifest.input_shape[1:])).astype(np.float32)
    np.save(folder / "images.npy", images)
    return images, folder / "images.npy"


def session_logits(session: Session, task: str, images: np.ndarray) -> np.ndarray:
    session.switch(task)
    return session.run_all(images)


@pytest.fixture(scope="module")
def varied(bundle: Bundle) -> Bundle:
    """Tasks with soft values of 32, 8 and 4 bits, one of which scales images the other way."""
    packs = dict(bundle.packs)
    packs["element-task"] = with_scale_bits(packs["element-task"], 8)
    other = with_scale_bits(packs["other-task"], 4)
    bicubic = dataclasses.replace(other.preprocessing, interpolation="bicubic", resize_to=37)
    packs["other-task"] = dataclasses.replace(other, preprocessing=bicubic)
    return dataclasses.replace(bundle, packs=packs)


@pytest.fixture(scope="module")
def deployable(varied: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runner") / "artifact"
    return compile_bundle(varied, load_target("host"), folder, batch=BATCH, runner=True)[0]


@pytest.fixture(scope="module")
def session(deployable: Path) -> Session:
    return Session.load(deployable)


@pytest.fixture
def damaged(deployable: Path, tmp_path: Path) -> Path:
    """A copy of the artifact that a test may damage."""
    return shutil.copytree(deployable, tmp_path / "artifact")


def assert_logits_of_the_session(artifact: Path, session: Session, folder: Path) -> Path:
    """Compares the logits of every task on random images, whose file in the folder is returned."""
    images, file = random_images(session, folder)
    for task in session.tasks:
        logits = runner_logits(artifact, task, [file], folder)
        np.testing.assert_array_equal(logits, session_logits(session, task, images))
    return file


def test_the_runner_gives_the_logits_of_the_session(deployable: Path, session: Session, tmp_path: Path) -> None:
    assert_logits_of_the_session(deployable, session, tmp_path)


@pytest.mark.parametrize("fold", [pytest.param("bake", marks=pytest.mark.slow), "fused"])
def test_other_fold_modes(fold: FoldMode, varied: Bundle, tmp_path: Path) -> None:
    (artifact,) = compile_bundle(
        select_tasks(varied, "element-task"), load_target("host"), tmp_path / "artifact", fold=fold, runner=True
    )
    assert_logits_of_the_session(artifact, Session.load(artifact), tmp_path)


def test_int8(calibrated_bundle: Bundle, int8_artifact: Path, tmp_path: Path) -> None:
    """Functions of int8 take codes, which the program reads out of the packs."""
    artifact = shutil.copytree(int8_artifact, tmp_path / "artifact")
    runner.add_runner(artifact, read_manifest(artifact), load_bundle(artifact))
    assert_logits_of_the_session(artifact, Session.load(artifact), tmp_path)
    description = json.loads((artifact / "runner" / "runner.json").read_text())
    assert {array["coding"] for task in description["tasks"] for array in task["parameters"]} == {"plain", "halves"}
    assert (artifact / "runner" / "parameters.bin").stat().st_size < 100_000


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_rounded_backbone(precision: BackbonePrecision, artifact: Path, tmp_path: Path) -> None:
    folder = rounded_artifact(artifact, precision, tmp_path / "artifact")
    runner.add_runner(folder, read_manifest(folder), load_bundle(folder))
    file = assert_logits_of_the_session(folder, Session.load(folder), tmp_path)
    # The weights are read from the backbone's file, and are not there again.
    description = json.loads((folder / "runner" / "runner.json").read_text())
    coded = {array["coding"] for task in description["tasks"] for array in task["parameters"]}
    assert coded == {"plain", "float16", precision}
    assert (folder / "runner" / "parameters.bin").stat().st_size < 60_000
    if precision == "int8":
        check_damaged_scales(folder, file)


def check_damaged_scales(artifact: Path, images: Path) -> None:
    path = artifact / "backbone.safetensors"
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    begin, end = next(entry["data_offsets"] for name, entry in header.items() if name.endswith("/scale"))
    for scale in np.nan, np.inf, 0, -1, 3e38:
        damaged = np.full((end - begin) // 4, scale, np.float32).tobytes()
        path.write_bytes(whole[: start + begin] + damaged + whole[start + end :])
        assert_refuses(run(artifact, "--task", "element-task", images), f"{path} is damaged: a scale of its weights")


def images_of_every_kind(folder: Path, photographs: Path) -> list[Path]:
    """PNG files: colours, gray, palettes, transparency, of sizes that shrink, grow and are not square."""
    cat = Image.open(photographs / "cat.png").convert("RGB")
    alpha = Image.linear_gradient("L").resize(cat.size)
    transparent = cat.copy()
    transparent.putalpha(alpha)
    palette = cat.quantize(16)
    images = {
        "colours": cat,
        "wide": cat.crop((0, 50, 300, 117)),
        "tall": cat.crop((10, 0, 121, 300)),
        "small": cat.resize((19, 23)),
        "as large as the input": cat.resize((32, 32)),
        "one row": cat.crop((0, 9, 80, 10)),
        "gray": cat.convert("L"),
        "black and white": cat.convert("1"),
        "transparent": transparent,
        "transparent gray": transparent.convert("LA"),
        "palette": palette,
    }
    for name, image in images.items():
        image.save(folder / f"{name}.png")
    palette.save(folder / "transparent palette.png", transparency=3)
    cat.save(folder / "bitmap.bmp")
    palette.save(folder / "frame.gif")
    palette.save(folder / "frames.gif", save_all=True, append_images=[palette.rotate(90)])
    cat.save(folder / "frames.png", save_all=True, append_images=[cat.rotate(90)])
    transparent.save(folder / "32 bits.bmp")  # Whose fourth byte is no alpha, by the format.
    Image.fromarray(np.asarray(cat.convert("L")).astype(np.uint16) * 257 + 99).save(folder / "16 bits.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9001, 2, 3), np.uint8)).save(folder / "very long.png")
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        images["wide"].save(folder / f"orientation {orientation}.png", exif=exif)
    notes = PngInfo()
    notes.add_itxt("XML:com.adobe.xmp", "<tiff:Orientation>6</tiff:Orientation>")
    images["wide"].save(folder / "orientation in XMP.png", pnginfo=notes)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("task", ["kernel-task", "other-task"])  # Bilinear and bicubic.
def test_images_become_the_same_numbers_as_in_python(
    task: str, deployable: Path, session: Session, photographs: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    files = images_of_every_kind(tmp_path / "images", photographs)
    assert len(files) == 27
    images = preprocess_batch([read_image(path) for path in files], session.descriptions[task].preprocessing)
    logits = runner_logits(deployable, task, files, tmp_path)
    for file, found, expected in zip(files, logits, session_logits(session, task, images), strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=file.name)


def jpegs_of_every_kind(folder: Path) -> list[Path]:
    """Turned, of one, three and four colours, with and without Adobe's mark, in one pass and in several.

    Each block of 8 × 8 pixels is of one grey: what decoders do not round alike is not in it.
    """
    greys = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9), np.uint8))
    image = greys.resize((72, 48), Image.Resampling.NEAREST).convert("RGB")
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif.endian = ">" if orientation == 8 else "<"
        exif[ExifTags.Base.Orientation] = orientation
        image.save(folder / f"orientation {orientation}.jpg", exif=exif, quality=100)
    image.save(folder / "orientation in XMP.jpg", xmp=b'<a tiff:Orientation="5"/>', quality=100)
    image.convert("L").save(folder / "grey.jpg", quality=100)
    image.save(folder / "progressive.jpg", progressive=True, quality=100)
    inks = folder / "inks.jpg"
    image.convert("CMYK").save(inks, quality=100)
    content = inks.read_bytes()
    mark = content.index(b"\xff\xee")
    (folder / "inks without a mark.jpg").write_bytes(content[:mark] + content[mark + 16 :])
    return sorted(folder.iterdir())


def test_jpegs_become_the_same_numbers_as_in_python(deployable: Path, session: Session, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    files = jpegs_of_every_kind(tmp_path / "images")
    images = preprocess_batch([read_image(path) for path in files], session.descriptions["kernel-task"].preprocessing)
    found = runner_logits(deployable, "kernel-task", files, tmp_path)
    for file, logits, expected in zip(files, found, session_logits(session, "kernel-task", images), strict=True):
        np.testing.assert_array_equal(logits, expected, err_msg=file.name)


def test_the_largest_image(deployable: Path, photographs: Path) -> None:
    image = photographs / "coffee.png"  # 600 × 400
    too_small, enough = (run(deployable, "--task", "kernel-task", "--max-pixels", n, image) for n in (239_999, 240_000))
    assert_refuses(too_small, "it is too large: 600 × 400 pixels", "at most 239999 pixels (--max-pixels)")
    assert enough.returncode == 0


def test_an_input_that_cannot_be_read_does_not_end_the_others(
    deployable: Path, session: Session, photographs: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no image")
    files = [photographs / "cat.png", tmp_path / "text.png", tmp_path / "missing.png", photographs / "coffee.png"]
    done = run(deployable, "--task", "kernel-task", *files, "--logits", tmp_path / "logits.npy")
    assert done.returncode == 2
    assert [line.split()[1] for line in done.stderr.splitlines()] == ["Cannot", "No"]
    assert re.findall(r"^(\S+) \(kernel-task\)$", done.stdout, re.MULTILINE) == [str(files[0]), str(files[3])]
    images = preprocess_batch(
        [read_image(files[0]), read_image(files[3])], session.descriptions["kernel-task"].preprocessing
    )
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), session_logits(session, "kernel-task", images))


def test_it_prints_the_most_probable_classes(deployable: Path, photographs: Path) -> None:
    image = photographs / "cat.png"
    (expected,) = classify(Session.load(deployable), [image], "element-task", top=3)
    lines = run(deployable, "--task", "element-task", "--top", 3, image).stdout.splitlines()
    assert lines == [
        f"{image} (element-task)",
        *(f"  {100 * probability:5.1f}%  {name}" for name, probability in expected.classes),
    ]


def test_list_and_help(deployable: Path) -> None:
    assert (
        run(deployable, "--list").stdout == "element-task: 7 classes\nkernel-task: 5 classes\nother-task: 5 classes\n"
    )
    done = run(deployable, "--help")
    assert done.returncode == 0
    options = ("--task", "--top", "--logits", "--max-pixels", "--measure", "--threads", "--list", "--help")
    assert all(f"  {option} " in done.stdout for option in options)


def test_measure_prints_the_latency_and_each_switch(deployable: Path) -> None:
    done = run(deployable, "--task", "kernel-task", "--measure", 3, "--threads", 1)
    assert done.returncode == 0, done.stderr
    names = ["inference of kernel-task", "switch to element-task", "switch to kernel-task", "switch to other-task"]
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        match = re.fullmatch(rf"{name}: median ([\d.]+) ms, p90 ([\d.]+) ms, minimum ([\d.]+) ms \(3 runs\)", line)
        assert match, line
        median, p90, minimum = map(float, match.groups())
        assert 0 < minimum <= median <= p90


def test_the_deployed_files_are_enough(deployable: Path, session: Session, tmp_path: Path) -> None:
    for file in runner.deployed_files(deployable):
        copy = tmp_path / "board" / file.relative_to(deployable)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    copied = [path for path in (tmp_path / "board").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in copied) == runner.deployed_bytes(deployable)
    assert not any("samples" in path.parts for path in copied)
    images, file = random_images(session, tmp_path)
    logits = runner_logits(tmp_path / "board", "other-task", [file], tmp_path)
    np.testing.assert_array_equal(logits, session_logits(session, "other-task", images))


def test_the_manifest_lists_the_runner(damaged: Path) -> None:
    with (damaged / "runner" / "ksm-runner").open("ab") as program:
        program.write(b"more")
    with pytest.raises(UserError, match="ksm-runner has"):
        read_manifest(damaged)


def assert_refuses(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and all(part in done.stderr for part in parts), done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--task", "kernel-task"], "No images given"),
        (["--task"], "--task lacks its value"),
        (["--speed"], "no option --speed"),
        (["--top", "many", "x.png"], "--top takes a number of at least 0, found 'many'"),
        (["--threads", "0", "x.png"], "--threads takes a number of at least 1, found '0'"),
        (["--measure", "9999999999"], "found '9999999999'"),
        (["x.png"], "several tasks; give one with --task: element-task, kernel-task, other-task."),
        (["--task", "cars", "x.png"], "No task named 'cars'. There are: element-task, kernel-task, other-task."),
        (["--task", "kernel-task", "missing.png"], "No image at missing.png"),
        (["--task", "kernel-task", "missing.npy"], "No array at missing.npy"),
        (["--task", "kernel-task", "--measure", "1", "--logits", "x.npy"], "none is given"),
    ],
)
def test_bad_command_lines(arguments: list[str], expected: str, deployable: Path) -> None:
    assert_refuses(run(deployable, *arguments), expected)


def test_no_artifact(deployable: Path, tmp_path: Path) -> None:
    program = str(deployable / "runner" / "ksm-runner")
    for arguments, expected in ([], "No artifact given"), ([str(tmp_path), "x.png"], "ksm-hw compile --runner"):
        assert_refuses(subprocess.run([program, *arguments], capture_output=True, text=True), expected)


def test_an_artifact_whose_files_are_half_replaced(damaged: Path, photographs: Path) -> None:
    (damaged / ".ksm-hw-ready").mkdir()
    assert_refuses(run(damaged, "--task", "other-task", photographs / "cat.png"), "are being replaced")
    assert CliRunner().invoke(app, ["tasks", "--bundle", str(damaged)]).exit_code == 0, "what the message says"
    assert run(damaged, "--task", "other-task", photographs / "cat.png").returncode == 0


def test_images_that_do_not_decode(deployable: Path, photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    whole = (photographs / "cat.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    # 12000 × 12000 pixels, by the header.
    (tmp_path / "bomb.png").write_bytes(whole[:16] + struct.pack(">II", 12000, 12000) + whole[24:])
    cat = Image.open(photographs / "cat.png").convert("RGB")
    reasons = {"text.png": "unknown image type", "half.png": "outofdata", "bomb.png": "too large"}
    # What the decoder takes for whole, with zeros for what is missing.
    for name in "half.jpg", "half.gif", "half.bmp":
        cat.save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:5000])
        reasons[name] = "it is truncated"
    # Whose tables hold more codes than there are bytes: the decoder would write beyond its own.
    table = bytearray((tmp_path / "half.jpg").read_bytes())
    begin = table.index(b"\xff\xc4")
    table[begin + 5 : begin + 21] = b"\xff" * 16
    (tmp_path / "table.jpg").write_bytes(table)
    reasons["table.jpg"] = "its Huffman tables are damaged"
    done = run(deployable, "--task", "kernel-task", *(tmp_path / name for name in reasons))
    assert (done.returncode, done.stdout) == (2, "")
    for (name, reason), line in zip(reasons.items(), done.stderr.splitlines(), strict=True):
        assert f"Cannot decode {tmp_path / name} as an image" in line and reason in line and "PNG, JPEG" in line


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_damaged_images_by_the_thousand(
    kind: str, deployable: Path, photographs: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Each is classified or refused, by one process: a decoder that writes where it must not ends it, or what follows.

    10,000 with `--slow`.
    """
    whole = tmp_path / "whole"
    with Image.open(photographs / "cat.png") as image:
        image.resize((40, 30)).save(whole, kind)
    count = 2500 if request.config.getoption("--slow") else 60
    files = [tmp_path / str(number) for number in range(count)]
    for number, file in enumerate(files):
        file.write_bytes(damaged_bytes(whole.read_bytes(), np.random.default_rng(number)))
    done = run(deployable, "--task", "kernel-task", "--threads", 1, "--top", 1, *files, whole)
    refused = done.stderr.strip().splitlines()
    assert done.returncode == 2 and all(line.startswith("error: Cannot decode ") for line in refused), done.stderr[
        -500:
    ]
    classified = re.findall(r"^/.*\(kernel-task\)$", done.stdout, re.MULTILINE)
    assert len(refused) + len(classified) == count + 1 and classified[-1].startswith(str(whole))
    assert len(refused) > count // 10, "hardly any damage was seen"


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((1, 3, 32, 32)), "'<f8'"),
        (np.zeros((1, 3, 32, 31), np.float32), "[1, 3, 32, 31]; expected any number of images [3, 32, 32]"),
        (np.zeros((3, 32, 32), np.float32), "[3, 32, 32]; expected"),
        (np.zeros((0, 3, 32, 32), np.float32), "[0, 3, 32, 32]; expected"),
        (np.asfortranarray(np.zeros((2, 3, 32, 32), np.float32)), "'fortran_order': True"),
        (np.full((1, 3, 32, 32), np.nan, np.float32), "not finite"),
        (np.full((1, 3, 32, 32), -np.inf, np.float32), "not finite"),
    ],
)
def test_arrays_that_do_not_fit(array: np.ndarray, expected: str, deployable: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", array)
    assert_refuses(run(deployable, "--task", "kernel-task", tmp_path / "images.npy"), "images.npy", expected)


def test_damaged_arrays(deployable: Path, session: Session, tmp_path: Path) -> None:
    _, file = random_images(session, tmp_path)
    whole = file.read_bytes()
    for content, reason in (whole[:-4], "truncated"), (whole[:60], "truncated"), (b"text", "no .npy"), (b"", "no .npy"):
        file.write_bytes(content)
        assert_refuses(run(deployable, "--task", "kernel-task", file), reason, "numpy.save")


def test_logits_that_cannot_be_written(deployable: Path, photographs: Path, tmp_path: Path) -> None:
    path = tmp_path / "missing" / "logits.npy"
    done = run(deployable, "--task", "kernel-task", "--top", 0, photographs / "cat.png", "--logits", path)
    assert_refuses(done, f"Cannot write {path}: No such file or directory")
    # A device of our own: the runner once removed what it could not write, and root's /dev/full was gone.
    full = tmp_path / "full"
    if subprocess.run(["mknod", full, "c", "1", "7"], capture_output=True).returncode == 0:
        done = run(deployable, "--task", "kernel-task", "--top", 0, photographs / "cat.png", "--logits", full)
        assert_refuses(done, f"Cannot write {full}: No space left on device")
        assert full.is_char_device()


def test_logits_do_not_take_the_place_of_what_is_read(deployable: Path, photographs: Path, tmp_path: Path) -> None:
    image = Path(shutil.copy(photographs / "cat.png", tmp_path))
    (tmp_path / "link").symlink_to(deployable)
    for place, expected in ((tmp_path / "link" / "model.so", "would lie in the artifact"), (image, "of the input")):
        before = place.read_bytes()
        done = run(deployable, "--task", "kernel-task", "--top", 0, image, "--logits", place)
        assert done.returncode == 2 and expected in done.stderr
        assert place.read_bytes() == before


def test_what_is_no_file_is_told(deployable: Path, tmp_path: Path) -> None:
    done = run(deployable, "--task", "kernel-task", tmp_path, "/dev/zero")
    assert done.returncode == 2
    assert "is a folder. Give the image files in it" in done.stderr and "over 1024 MiB" in done.stderr


def test_logits_through_a_link(deployable: Path, photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "older.npy").write_text("older")
    (tmp_path / "link").symlink_to("older.npy")
    done = run(deployable, "--task", "kernel-task", "--top", 0, photographs / "cat.png", "--logits", tmp_path / "link")
    assert done.returncode == 0 and (tmp_path / "link").is_symlink()
    assert np.load(tmp_path / "older.npy").shape[0] == 1 and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["backbone.safetensors", "runner/parameters.bin", "tasks/other-task.safetensors"])
def test_files_that_are_truncated_or_missing(name: str, damaged: Path, photographs: Path) -> None:
    file = damaged / name
    file.write_bytes(file.read_bytes()[:100])
    assert_refuses(run(damaged, "--task", "other-task", photographs / "cat.png"), f"{name} is truncated")
    file.unlink()
    assert_refuses(run(damaged, "--task", "other-task", photographs / "cat.png"), f"lacks {file}")


def test_logits_that_are_not_finite_give_no_class(damaged: Path, photographs: Path) -> None:
    pack = damaged / "tasks" / "other-task.safetensors"
    arrays = safetensors.numpy.load_file(pack)
    content = bytearray(pack.read_bytes())
    at = content.index(arrays["head/bias"].tobytes())
    content[at : at + 4] = struct.pack("<f", np.nan)
    pack.write_bytes(content)
    image = photographs / "cat.png"
    assert_refuses(run(damaged, "--task", "other-task", image), f"{image}: task 'other-task' gives logits that are not")


def test_a_damaged_library_or_description(damaged: Path, photographs: Path) -> None:
    arguments = ["--task", "other-task", photographs / "cat.png"]
    library, description = damaged / "model.so", damaged / "runner" / "runner.json"
    size = library.stat().st_size
    library.write_bytes(bytes(size))
    assert_refuses(run(damaged, *arguments), f"Cannot load {library}", "copy the artifact again")
    library.write_bytes(bytes(1000))
    assert_refuses(run(damaged, *arguments), f"{library} has 1000 bytes; expected {size}")
    library.unlink()
    assert_refuses(run(damaged, *arguments), f"lacks {library}")
    smaller = json.loads(description.read_text())
    smaller["tasks"][0]["preprocessing"]["resize_to"] = 31
    for content in "{", "[]", '{"device": "cpu"}', json.dumps(smaller):
        description.write_text(content)
        assert_refuses(run(damaged, *arguments), f"{description} is damaged")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "nothing"}, "nothing"),
        ({"coding": "halves"}, "halves of int32"),
        ({"coding": "int8"}, "int8 of int32"),
        ({"coding": "quarters"}, "holds quarters"),
        ({"values": 1 << 40}, "holds 1099511627776 values"),
    ],
)
def test_types_that_the_runner_does_not_know(
    change: dict[str, object], said: str, damaged: Path, photographs: Path
) -> None:
    description = damaged / "runner" / "runner.json"
    content = json.loads(description.read_text())
    arrays = (array for task in content["tasks"] for array in task["parameters"])
    next(array for array in arrays if array["dtype"] == "int32").update(change)
    description.write_text(json.dumps(content))
    done = run(damaged, "--task", "kernel-task", photographs / "cat.png")
    assert_refuses(done, f"{description} is damaged", said)


def test_logits_of_another_type(damaged: Path, photographs: Path) -> None:
    """As bytes they would be read for numbers of another type."""
    library, description = damaged / "model.so", damaged / "runner" / "runner.json"
    content = json.loads(description.read_text())
    builder = relax.BlockBuilder()
    images = relax.Var("images", relax.TensorType(content["input_shape"], "float32"))
    with builder.function("halves", [images]):
        flat = builder.emit(relax.op.reshape(images, (BATCH, -1)))
        kept = builder.emit(relax.op.strided_slice(flat, [1], [0], [content["output_shape"][1]]))
        builder.emit_func_output(builder.emit(relax.op.astype(kept, "float16")))
    library.unlink()
    tvm.compile(builder.get(), "llvm").export_library(str(library))
    content["library_bytes"] = library.stat().st_size
    for task in content["tasks"]:
        task |= {"main": "halves", "rewrite": None, "parameters": []}
    description.write_text(json.dumps(content))
    done = run(damaged, "--task", "kernel-task", photographs / "cat.png")
    assert_refuses(done, "logits of float16; ksm-runner reads float32")


@pytest.mark.usefixtures("opencl")
def test_the_runner_on_an_opencl_device(bundle: Bundle, tmp_path: Path) -> None:
    one = dataclasses.replace(bundle, packs={"kernel-task": bundle.packs["kernel-task"]})
    target = load_target("mali", host="host")
    (artifact,) = compile_bundle(one, target, tmp_path / "artifact", runner=True)
    session = Session.load(artifact)
    images, file = random_images(session, tmp_path)
    found = runner_logits(artifact, "kernel-task", [file], tmp_path)
    np.testing.assert_allclose(found, session_logits(session, "kernel-task", images), rtol=1e-5, atol=1e-5)


def test_the_runtime_of_a_gpu_is_missing(damaged: Path, photographs: Path) -> None:
    description = damaged / "runner" / "runner.json"
    description.write_text(description.read_text().replace('"device": "cpu"', '"device": "none"'))
    done = run(damaged, "--task", "other-task", photographs / "cat.png")
    assert_refuses(done, "Put libtvm_runtime_none.so beside ksm-runner")


def stored(array: StoredArray, folder: Path) -> np.ndarray:
    """What a program reads there."""
    content = (folder / array.file).read_bytes()[array.offset :]
    values = np.zeros(array.shape, array.dtype)
    if array.coding == "halves":
        halves = np.frombuffer(content, np.uint8, -(-array.values // 2))
        held = np.stack([halves >> 4, halves & 15], axis=1).ravel()[: array.values]
    else:
        held = np.frombuffer(content, array.dtype, array.values)
    values.flat[: array.values] = held
    return values


@pytest.mark.parametrize("hold", [False, True])
def test_the_parameter_file_holds_what_tasks_pass(hold: bool, deployable: Path, varied: Bundle, tmp_path: Path) -> None:
    folder = shutil.copytree(deployable, tmp_path / "artifact")
    manifest = read_manifest(folder)
    files = ["backbone.safetensors", *(f"tasks/{task}.safetensors" for task in varied.packs)]
    held = held_arrays(folder, files) if hold else None
    written = write_parameter_file(folder, "parameters.bin", manifest, varied, held)
    distinct: dict[StoredArray, np.ndarray] = {}
    for task, entry in manifest.tasks.items():
        arrays = task_parameters(entry.parameters, varied.packs[task], varied.tensors, manifest.output_shape[1])
        for place, array in zip(written.tasks[task], arrays, strict=True):
            assert (place.dtype, place.shape) == (array.dtype.name, array.shape)
            np.testing.assert_array_equal(stored(place, folder), array)
            distinct[place] = array
    own = {place: array for place, array in distinct.items() if place.file == "parameters.bin"}
    assert all(place.offset % ALIGNMENT == 0 for place in own)
    # Each array is there once, and what other files hold is not.
    size = (folder / "parameters.bin").stat().st_size
    assert 0 <= size - sum(place.values * array.itemsize for place, array in own.items()) < ALIGNMENT * len(own)
    assert hold == ({place.file for place in distinct} > {"parameters.bin"})
    if hold:
        assert {place.coding for place in distinct} == {"plain", "halves"}
        # Of a head with fewer classes than another, the pack has all that is not 0.
        assert any(len(place.shape) == 2 and place.values < np.prod(place.shape) for place in distinct)
        assert not any(len(place.shape) == 2 for place in own)
        backbone = {place for place in distinct if place.file == "backbone.safetensors"}
        assert len(backbone) > 50 and size < (folder / "backbone.safetensors").stat().st_size / 10


def test_a_dtype_that_no_parameter_has(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"weight": np.zeros(3, np.float64)}, tmp_path / "backbone.safetensors")
    with pytest.raises(
        UserError, match=r"backbone\.safetensors has a tensor of dtype F64; .* one of F32, U8, I32, F16, I8"
    ):
        held_arrays(tmp_path, ["backbone.safetensors"])


def hide_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: None)


def test_no_compiler_and_no_decoder(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, output = load_target("host"), tmp_path / "artifact"
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"apt-get install g\+\+"):
        hide_compilers(patch)
        compile_bundle(bundle, target, output, runner=True)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="apt-get install libstb-dev"):
        patch.setattr(Path, "is_file", lambda path: False)
        compile_bundle(bundle, target, output, runner=True)
    assert not output.exists()


def test_cross_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    command = runner.compiler_command("aarch64")
    assert command[1:] == ["-m", "ziglang", "c++", "-target", "aarch64-linux-gnu.2.28"]
    hide_compilers(monkeypatch)
    with pytest.raises(UserError, match=r"apt-get install g\+\+-aarch64-linux-gnu, or: pip install ziglang"):
        runner.compiler_command("aarch64")


def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.cc").write_text("#error this is no program\n")
    monkeypatch.setattr(runner, "_SOURCES", tmp_path)
    with pytest.raises(UserError, match=r"cannot build the runner: .*this is no program"):
        runner._built_program.__wrapped__(platform.machine())


def test_a_target_that_the_runner_does_not_know() -> None:
    with pytest.raises(UserError, match="cpu or opencl; this one runs on cuda"):
        runner.check_runner("cuda", "x86_64")


def test_the_runtime_of_another_architecture_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = libraries_folder("aarch64")
    with pytest.raises(UserError, match=r"put libtvm_runtime.so and libtvm_ffi.so .* into") as caught:
        runtime_libraries("aarch64")
    assert str(folder) in str(caught.value)
    folder.mkdir(parents=True, exist_ok=True)
    for name in "libtvm_runtime.so", "libtvm_ffi.so":
        (folder / name).touch()
    assert [path.parent for path in runtime_libraries("aarch64")] == [folder, folder]


@needs_emulator
def test_every_shipped_task_on_arm64(shipped_on_arm64: Path, tmp_path: Path) -> None:
    """Their real images, decoded, scaled and classified there."""
    shipped = load_bundle(shipped_bundle())
    for task, pack in shipped.packs.items():
        first, second = sample_images(shipped, task)[:2]
        files = [first, second, saved_as_jpeg(second, tmp_path)]
        logits = runner_logits(shipped_on_arm64, task, files, tmp_path, cpu="cortex-a53")
        expected = pytorch_logits(shipped, pack, files)
        errors = np.abs(logits - expected).max(axis=1) / np.abs(expected).max(axis=1)
        # Decoders of JPEG differ by a level here and there.
        assert errors[0] <= TOLERANCE and errors[1] <= TOLERANCE and errors[2] <= 2e-2
        np.testing.assert_array_equal(logits.argmax(axis=1), expected.argmax(axis=1))


@torch.inference_mode()
def pytorch_logits(bundle: Bundle, pack: TaskPack, files: list[Path]) -> np.ndarray:
    images = preprocess_batch([read_image(path) for path in files], pack.preprocessing)
    return task_module(bundle, pack)(torch.from_numpy(images)).numpy()


def saved_as_jpeg(file: Path, folder: Path) -> Path:
    read_image(file).save(folder / f"{file.stem}.jpg", quality=90)
    return folder / f"{file.stem}.jpg"


@needs_emulator
def test_a_cpu_with_and_one_without_the_instructions(varied: Bundle, session: Session, tmp_path: Path) -> None:
    (tmp_path / "sve.toml").write_text(
        'description = "SVE"\ndevice = "cpu"\n[tvm]\nkind = "llvm"\nmtriple = "aarch64-linux-gnu"\n'
        'mcpu = "neoverse-v1"\nnum-cores = 2\n'
    )
    target = load_target("sve", file=tmp_path / "sve.toml")
    # Rows of 9 values, each with its own mask: LLVM makes their last step of scalable vectors.
    one = select_tasks(varied, "element-task")
    (artifact,) = compile_bundle(one, target, tmp_path / "artifact", fold="fused", runner=True)
    images, file = random_images(session, tmp_path)
    logits = runner_logits(artifact, "element-task", [file], tmp_path, cpu="max")
    expected = session_logits(session, "element-task", images)
    assert np.abs(logits - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert_refuses(run(artifact, file, cpu="cortex-a72"), "lacks an instruction", "compiled for neoverse-v1")
