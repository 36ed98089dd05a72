"""A bundle: one backbone and the tasks over it, and its folder.

bundle.json            format version, backbone name and SHA-256 of its weights, names of the tasks; version 2 where
                       the weights are rounded (`backbone_rounding`), as an artifact's may be
backbone.safetensors   the tensors that all tasks share; absent when a pip package carries them
tasks/<task>.safetensors
samples/<task>/<number>-<class>.png    a few real test images of each task, for verify and demo
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ksm_hw.errors import UserError, did_you_mean
from ksm_hw.files.staging import OWN_NAMES, changed_folder, check_places, read_whole, staged_files
from ksm_hw.files.written import check_folder, explained
from ksm_hw.images.finding import images_of_folder
from ksm_hw.json_document import OtherVersion, read_json, read_version, read_versioned_json
from ksm_hw.masks.backbone_precision import BackbonePrecision, RoundedPrecision
from ksm_hw.masks.backbone_rounding import exact_tensors, rounded_arrays
from ksm_hw.masks.calibration import Calibration
from ksm_hw.masks.growth import carried_over, shapes_of
from ksm_hw.masks.mask_format import mask_shape
from ksm_hw.masks.mask_names import layer_of, weight_of
from ksm_hw.masks.safetensors_file import check_float32, read_arrays, sha256_of_tensors, write_arrays
from ksm_hw.masks.task_pack import TaskDescription, TaskPack, is_same_task, load_task_pack, save_task_pack
from ksm_hw.state_dicts import packaged_tensors

FORMAT_VERSIONS = (1, 2)
DESCRIPTION = "bundle.json"
_BACKBONE = "backbone.safetensors"
LEARNING = ".learning"  # Folder of what unfinished training keeps (`ksm_hw.learning.train`).
Task = TypeVar("Task")
_SAMPLE = re.compile(r"\d\d-[A-Za-z0-9_]*\.png")  # Name of a sample image, as training writes it.


@dataclass(frozen=True)
class Bundle:
    """One backbone and its tasks, in memory.

    Attributes:
        backbone: name of the network.
        backbone_sha256: hash of `tensors`; of what they were before they were rounded.
        tensors: what all tasks share, float32, by name in the network's state dict.
        packs: the tasks by name.
        samples: folder with one folder of images for each task; None when there are none.
        folder: where it was loaded from; None for one that was made in memory.
        backbone_precision: what the weights among `tensors` were rounded to, and are written in.
    """

    backbone: str
    backbone_sha256: str
    tensors: Mapping[str, npt.NDArray[np.float32]]
    packs: Mapping[str, TaskPack]
    samples: Path | None = None
    folder: Path | None = None
    backbone_precision: BackbonePrecision = "float32"


def select_tasks(bundle: Bundle, task: str) -> Bundle:
    """The bundle with the named task alone, or with all of them for `all`.

    Raises:
        UserError: there is no such task.
    """
    if task == "all":
        return bundle
    return dataclasses.replace(bundle, packs={task: task_of(bundle.packs, task)})


def task_of(packs: Mapping[str, Task], task: str) -> Task:
    """The pack of a task, or what else is kept of each.

    Raises:
        UserError: there is no such task; the message names the near ones.
    """
    if task not in packs:
        hint = did_you_mean(str(task), packs)
        raise UserError(f"No task named '{task}'.{hint} There are: {', '.join(packs) or 'none'}.")
    return packs[task]


def rounded_bundle(bundle: Bundle, precision: BackbonePrecision) -> Bundle:
    """The bundle over a backbone whose weights are rounded (`backbone_rounding`).

    Raises:
        UserError: they are rounded to something else already, or a weight is too large for float16.
    """
    if bundle.backbone_precision == precision:
        return bundle
    if bundle.backbone_precision != "float32":
        raise UserError(
            f"The backbone of {bundle.folder} is rounded to {bundle.backbone_precision}, and it was asked for in "
            f"{precision}. Give --backbone-precision {bundle.backbone_precision}, or the bundle that it was compiled "
            "from."
        )
    tensors = exact_tensors(rounded_arrays(bundle.tensors, precision), precision, Path(_BACKBONE))
    return dataclasses.replace(bundle, tensors=tensors, backbone_precision=precision)


def sample_images(bundle: Bundle, task: str) -> list[Path]:
    """The files of the real images that a bundle carries of a task.

    Raises:
        UserError: it carries none.
    """
    if bundle.samples is None or not (bundle.samples / task).is_dir():
        raise UserError(f"The bundle carries no sample images of task '{task}'. Give images of your own with --images.")
    return images_of_folder(bundle.samples / task)


def check_task_name(name: str) -> None:
    """Checks that a task's name can be a file's.

    Raises:
        UserError: it cannot, or it is `all`.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", name) or name == "all":
        raise UserError(
            f"'{name}' cannot name a task: use letters, digits, '-' and '_', at most 128, a letter or digit first, and "
            "not the word 'all'."
        )


def load_bundle(folder: Path) -> Bundle:
    """Reads a bundle and checks every task against the backbone.

    Raises:
        UserError: a file is missing or damaged, or a hash or a shape does not match.
    """
    return read_whole(folder, DESCRIPTION, lambda: _load_bundle(folder))


def _load_bundle(folder: Path) -> Bundle:
    bundle, packs = open_bundle(folder)
    return dataclasses.replace(bundle, packs=dict(packs))


def open_bundle(folder: Path) -> tuple[Bundle, Iterator[tuple[str, TaskPack]]]:
    """A bundle without its tasks, and these by their names, each read when it is its turn.

    For who keeps no pack: all of them take as much memory as what a session makes of them. Files that another process
    replaces meanwhile are for the caller to heed (`read_whole`), as `load_bundle` does.

    Raises:
        UserError: as `load_bundle`; of a task when it is its turn.
    """
    description = _read_description(folder)
    name, rounding = description.backbone, description.rounding
    expected = description.backbone_sha256 if rounding is None else rounding.sha256
    precision: BackbonePrecision = "float32" if rounding is None else rounding.precision
    stored = _stored_arrays(name, folder / _BACKBONE, precision)
    tensors = exact_tensors(stored, precision, folder / _BACKBONE)
    check_float32(tensors, folder / _BACKBONE)
    found = sha256_of_tensors(stored)
    if found != expected:
        raise UserError(
            f"The backbone of {folder} has SHA-256 {found}; its bundle.json expects {expected}. "
            "Copy the bundle again, or learn its tasks over this backbone."
        )
    samples = folder / "samples"
    sha256, present = description.backbone_sha256, samples if samples.is_dir() else None
    bundle = Bundle(name, sha256, tensors, {}, present, folder, precision)
    return bundle, _fitting_packs(bundle, folder, description.tasks)


def _fitting_packs(bundle: Bundle, folder: Path, tasks: Iterable[str]) -> Iterator[tuple[str, TaskPack]]:
    for task in tasks:
        pack = load_task_pack(folder / "tasks" / f"{task}.safetensors")
        check_pack_fits(pack, bundle.backbone, bundle.backbone_sha256, bundle.tensors)
        yield task, pack


def describe_tasks(folder: Path) -> dict[str, TaskDescription]:
    """What the tasks of a bundle are, by their names; raises as `load_bundle`."""
    return {task: pack.description for task, pack in load_bundle(folder).packs.items()}


def tasks_in(folder: Path) -> list[str]:
    """The names of a bundle's tasks, without reading them.

    Raises:
        UserError: there is no bundle, or its description is damaged.
    """
    return _read_description(folder).tasks


def backbone_precision_in(folder: Path) -> BackbonePrecision:
    """What the weights of a bundle lie in at rest, without reading them; raises as `tasks_in`."""
    rounding = _read_description(folder).rounding
    return "float32" if rounding is None else rounding.precision


def is_bundle(folder: Path) -> bool:
    """Whether a folder has the description of a bundle, of whichever version of ksm-hw; an artifact has one too."""
    try:
        read_versioned_json((folder / DESCRIPTION).read_bytes(), _Description, *FORMAT_VERSIONS)
    except OtherVersion:
        return True
    except (OSError, ValueError):
        return False
    return True


@dataclass(frozen=True)
class _Rounding:
    """What the weights at rest are rounded to, and the SHA-256 of what lies there (`sha256_of_tensors`)."""

    precision: RoundedPrecision
    sha256: str


@dataclass(frozen=True)
class _Description:
    """What bundle.json says; version 2 has a `rounding`, and version 1 none."""

    backbone: str
    backbone_sha256: str
    tasks: list[str]
    rounding: _Rounding | None = None

    @property
    def format_version(self) -> int:
        return 1 if self.rounding is None else 2


def _read_description(folder: Path) -> _Description:
    path = folder / DESCRIPTION
    try:
        text = path.read_bytes()
        version = read_version(text, *FORMAT_VERSIONS)
        description = read_json(text, _Description)
        if version != description.format_version:
            raise ValueError(f"format version {version} {'without' if version == 2 else 'with'} rounding")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"No bundle at {folder}: bundle.json is missing. Make one with `ksm-hw train`.") from error
    except OtherVersion as error:
        known = " and ".join(map(str, FORMAT_VERSIONS))
        raise UserError(f"{path} has {error}; this ksm-hw reads {known}.") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). Copy the bundle again.") from error
    for task in description.tasks:
        check_task_name(task)
    return description


def _stored_arrays(name: str, file: Path, precision: BackbonePrecision) -> Mapping[str, npt.NDArray[Any]]:
    """The tensors of a bundle's file as they lie there, or, of float32 and where there is no file, of a package."""
    if file.exists():
        arrays, _ = read_arrays(file)
        return arrays
    tensors = packaged_tensors(name) if precision == "float32" else None
    if tensors is None:
        of = name if precision == "float32" else f"{name} in {precision}"
        raise UserError(f"{file} is missing, and no package carries the weights of {of}. Copy the bundle again.")
    return tensors


def check_pack_fits(pack: TaskPack, backbone: str, sha256: str, tensors: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Checks that a task was learned over this backbone, and that its tensors have the shapes of the backbone's.

    Raises:
        UserError: the hash differs, a layer does not exist, a mask or a tensor of its own has another shape, or it has
            a part of a norm alone.
    """
    if pack.backbone_sha256 != sha256:
        raise UserError(
            f"Task '{pack.task}' was learned over {pack.backbone} with SHA-256 {pack.backbone_sha256}; this backbone "
            f"is {backbone} with SHA-256 {sha256}. A mask fits only the weights that it was learned over."
        )
    for layer, mask in pack.masks.items():
        weight = tensors.get(weight_of(layer))
        expected = None if weight is None or weight.ndim < 2 else mask_shape(weight.shape, pack.granularity)
        if mask.shape != expected:
            raise UserError(
                f"Task '{pack.task}' has a mask of shape {list(mask.shape)} for layer '{layer}'; expected "
                f"{'no such layer' if expected is None else list(expected)} ({pack.granularity}-wise over {backbone}). "
                "The file is damaged or belongs to another network."
            )
    for name, array in pack.for_int8.own_tensors.items():
        expected = None if name not in tensors else tensors[name].shape
        if layer_of(name) in pack.masks:
            expected = None  # A weight is the backbone's with a mask, or the task's own, and not both.
        if array.shape != expected:
            raise UserError(
                f"Task '{pack.task}' has '{name}' with shape {list(array.shape)}; expected "
                f"{'no such tensor' if expected is None else list(expected)}. "
                "The file is damaged or belongs to another network."
            )
    own = pack.own_tensors
    for name in own:
        if missing := [part for part in _norm_of(name, tensors) if part not in own]:
            raise UserError(
                f"Task '{pack.task}' has '{name}' and lacks '{missing[0]}'; expected all parts of a norm, or none. "
                "The file is damaged; learn or copy the task again."
            )


def _norm_of(name: str, tensors: Mapping[str, npt.NDArray[np.float32]]) -> list[str]:
    """All tensors of the norm that one belongs to, a BatchNorm or a LayerNorm; nothing where it belongs to none."""
    path = name.rpartition(".")[0]
    parts = [f"{path}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    present = [part for part in parts if part in tensors]
    return present if all(tensors[part].ndim == 1 for part in present) else []


def check_bundle_folder(folder: Path, task: str) -> None:
    """Checks, before a task is learned, that it can be written into a folder.

    Raises:
        UserError: the folder is an artifact, lies in one or in a bundle, holds something else, or cannot be written.
    """
    _check_owner(folder)
    of_task = (f"tasks/{task}.safetensors", f"samples/{task}/00-class.png", f"{LEARNING}/{task}.pt")
    check_places(folder, (DESCRIPTION, *of_task))
    for written in (folder, *(folder / name for name in ("tasks", "samples", LEARNING))):
        check_folder(written)


def pack_in(folder: Path, task: str) -> TaskPack | None:
    """The pack of a task in a bundle, if there is one.

    Raises:
        UserError: the bundle or the pack is damaged.
    """
    if not (folder / DESCRIPTION).exists() or task not in _read_description(folder).tasks:
        return None
    return load_task_pack(folder / "tasks" / f"{task}.safetensors")


def stored_bytes(bundle: Bundle, task: str) -> int:
    """Bytes of a task's tensors in the file of its pack: of a bundle coded, of an artifact as devices read them.

    Raises:
        UserError: the file is gone or damaged since the bundle was read.
    """
    assert bundle.folder is not None
    return sum(array.nbytes for array in read_arrays(bundle.folder / "tasks" / f"{task}.safetensors")[0].values())


def _check_owner(folder: Path) -> None:
    """Checks that a folder is a bundle, or may become one; what else lies in a bundle is never touched."""
    real = Path(os.path.realpath(folder))
    for each in (real, *real.parents):
        if is_bundle(each) and (each / "manifest.json").is_file():
            raise UserError(f"{each} is an artifact, and tasks are learned into bundles. Give another bundle.")
        if each != real and is_bundle(each):
            raise UserError(f"{folder} lies in the bundle {each}. Give that, or another.")
    with explained(folder):
        if not os.path.lexists(real):
            return
        if (real / DESCRIPTION).exists():
            _check_exact(folder)
            return
        if foreign := sorted(set(os.listdir(real)) - OWN_NAMES - {LEARNING}):
            raise UserError(
                f"{folder} holds {foreign[0]} and is no bundle, so no task is written into it. Give another bundle."
            )


def _check_exact(folder: Path) -> None:
    """Checks that the weights of a bundle are those that tasks were learned over."""
    if (rounding := _read_description(folder).rounding) is not None:
        raise UserError(
            f"The backbone of {folder} is rounded to {rounding.precision}, and tasks are learned over weights as they "
            "were. Give the bundle that it was compiled from."
        )


def save_bundle(bundle: Bundle, folder: Path) -> None:
    """Writes a whole bundle, backbone included, into a folder that exists.

    Raises:
        UserError: a file cannot be written.
    """
    stored = rounded_arrays(bundle.tensors, bundle.backbone_precision)
    write_arrays(folder / _BACKBONE, stored)
    for pack in bundle.packs.values():
        save_task_pack(pack, folder / "tasks" / f"{pack.task}.safetensors")
        if bundle.samples is not None and (bundle.samples / pack.task).is_dir():
            _copy_samples(bundle.samples / pack.task, folder / "samples" / pack.task)
    precision = bundle.backbone_precision
    rounding = None if precision == "float32" else _Rounding(precision, sha256_of_tensors(stored))
    description = _Description(bundle.backbone, bundle.backbone_sha256, sorted(bundle.packs), rounding=rounding)
    _write_description(folder, description)


def add_task(
    folder: Path, pack: TaskPack, tensors: Mapping[str, npt.NDArray[np.float32]], samples: Path | None = None
) -> None:
    """Adds a task to a bundle, or replaces the task of that name; makes the bundle when the folder has none.

    The task is there whole or not at all, and so are the tasks that other processes add at the same time.

    Args:
        folder: the bundle.
        pack: the task.
        tensors: the backbone that it was learned over.
        samples: folder of a few real test images, which is copied; None keeps what there is.

    Raises:
        UserError: the bundle has another backbone, or cannot be written; the folder holds something else.
    """
    check_task_name(pack.task)
    _check_owner(folder)
    folder = Path(os.path.realpath(folder))
    with changed_folder(folder):
        older = [] if samples is None else _sample_names(folder, pack.task)
        is_new, tasks = not (folder / DESCRIPTION).exists(), []
        if not is_new:
            description = _read_description(folder)
            check_pack_fits(pack, description.backbone, description.backbone_sha256, tensors)
            tasks = description.tasks
        with staged_files(folder, DESCRIPTION, older) as staging:
            if samples is not None:
                _copy_samples(samples, staging / "samples" / pack.task)
            _write_tasks(staging, [pack], tasks, tensors if is_new else None)


def add_calibration(folder: Path, pack: TaskPack, found: Calibration) -> TaskPack:
    """Writes ranges into the pack of a task of a bundle, in the place of those that it had.

    Args:
        folder: the bundle.
        pack: the task that was calibrated, as it was read.
        found: its ranges.

    Returns:
        The pack as it is now.

    Raises:
        UserError: the task changed since it was read, or is gone; the folder cannot be written.
    """
    _check_owner(folder)
    folder = Path(os.path.realpath(folder))
    with changed_folder(folder):
        now = pack_in(folder, pack.task)
        if now is None or not is_same_task(now, pack):
            raise UserError(
                f"Task '{pack.task}' of {folder} was replaced or removed while it was calibrated, so these ranges are "
                "not its. Nothing is written; calibrate it again."
            )
        calibrated = dataclasses.replace(now, calibration=found)
        with staged_files(folder, DESCRIPTION) as staging:
            _write_tasks(staging, [calibrated], _read_description(folder).tasks, None)
    return calibrated


def add_tasks_over(
    folder: Path,
    packs: Sequence[TaskPack],
    tensors: Mapping[str, npt.NDArray[np.float32]],
    check_can_grow: Callable[[], None],
    samples: Path | None = None,
    finished: Sequence[str] = (),
) -> list[str]:
    """Adds tasks to a bundle, whose backbone they may replace, or replaces tasks of their names; all or nothing.

    Another backbone replaces the bundle's only where every older task that stays computes what it did (`growth`). The
    sample images of a task that is replaced go with it.

    Args:
        folder: the bundle, which is made when there is none.
        packs: the tasks, one at least.
        tensors: the backbone that they were all learned over.
        check_can_grow: asked where older tasks come into layers of other shapes; raises UserError where the network
            cannot be widened so that they compute what they did.
        samples: folder with a folder of a few real test images for each task that has some, which are copied.
        finished: names of files in the folder that go in the same step: what is no longer needed.

    Returns:
        The names of the older tasks that are now over another backbone.

    Raises:
        UserError: the bundle is over another network, an older task would change, heads take other features, or the
            folder cannot be written.
    """
    backbone, sha256, names = packs[0].backbone, packs[0].backbone_sha256, {pack.task for pack in packs}
    for pack in packs:
        check_task_name(pack.task)
        check_pack_fits(pack, backbone, sha256, tensors)
    _check_owner(folder)
    folder = Path(os.path.realpath(folder))
    with changed_folder(folder):
        older = _load_bundle(folder) if (folder / DESCRIPTION).exists() else None
        tasks = {} if older is None else dict(older.packs)
        staying = [pack for task, pack in tasks.items() if task not in names]
        is_same = older is not None and older.backbone_sha256 == sha256
        if older is not None and older.backbone != backbone:
            raise UserError(f"{folder} is over {older.backbone}, and the tasks are over {backbone}. Give another.")
        if older is not None and not is_same:
            if staying and shapes_of(older.tensors) != shapes_of(tensors):
                check_can_grow()
            head = packs[0].head_weight.shape[1:]
            staying = [carried_over(pack, older.tensors, tensors, sha256, head) for pack in staying]
        _check_heads([*packs, *staying])
        carried = [] if is_same else staying
        gone = [name for task in names & tasks.keys() for name in _sample_names(folder, task)]
        gone += finished
        if not is_same:
            gone.append(_BACKBONE)  # A package may carry the new one.
        with staged_files(folder, DESCRIPTION, gone) as staging:
            for task in names:
                if samples is not None and (samples / task).is_dir():
                    _copy_samples(samples / task, staging / "samples" / task)
            _write_tasks(staging, [*packs, *carried], tasks, None if is_same else tensors)
        return [pack.task for pack in carried]


def _check_heads(packs: Sequence[TaskPack]) -> None:
    """Checks that the heads of a bundle's tasks take the features of one network."""
    first, *others = packs
    for pack in others:
        expected, found = first.head_weight.shape[1:], pack.head_weight.shape[1:]
        if found != expected:
            raise UserError(
                f"The head of task '{pack.task}' takes {list(found)} features, and that of '{first.task}' takes "
                f"{list(expected)}, which cannot be over one backbone. Nothing is written; give another bundle."
            )


def _write_tasks(
    staging: Path,
    packs: Sequence[TaskPack],
    older: Iterable[str],
    tensors: Mapping[str, npt.NDArray[np.float32]] | None,
) -> None:
    """Writes tasks, the description of a bundle that has them and older ones, and a backbone if there is a new one."""
    backbone, sha256 = packs[0].backbone, packs[0].backbone_sha256
    if tensors is not None and not _is_packaged(backbone, sha256):
        write_arrays(staging / _BACKBONE, tensors)
    for pack in packs:
        save_task_pack(pack, staging / "tasks" / f"{pack.task}.safetensors", coded=True)
    tasks = sorted({*older, *(pack.task for pack in packs)})
    _write_description(staging, _Description(backbone, sha256, tasks))


def _sample_names(folder: Path, task: str) -> list[str]:
    """The sample images of a task that training wrote; a user's own beside them stay."""
    place = folder / "samples" / task
    return [f"samples/{task}/{path.name}" for path in place.glob("*") if _SAMPLE.fullmatch(path.name)]


def _copy_samples(source: Path, destination: Path) -> None:
    """Copies the images of a task, and nothing hidden that file managers left there."""
    with explained(destination):
        destination.mkdir(parents=True)
        for file in sorted(source.iterdir()):
            if file.is_file() and not file.name.startswith("."):
                shutil.copyfile(file, destination / file.name)


def _write_description(folder: Path, description: _Description) -> None:
    content = {**dataclasses.asdict(description), "format_version": description.format_version}
    if description.rounding is None:
        del content["rounding"]
    with explained(folder):
        (folder / DESCRIPTION).write_text(json.dumps(content, indent=2) + "\n")


def _is_packaged(backbone: str, sha256: str) -> bool:
    """Whether a pip package carries these weights, so that a bundle need not."""
    tensors = packaged_tensors(backbone)
    return tensors is not None and sha256_of_tensors(tensors) == sha256
