"""The curves of learning, epoch by epoch, in files that other programs draw."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ksm_hw.errors import UserError
from ksm_hw.files.written import check_file, check_folder, explained
from ksm_hw.learning.learn import Epoch

COLUMNS = ("number", "loss", "accuracy", "validation", "seconds", "width")


def curve(kind: str | None, folder: Path, task: str) -> Callable[[Epoch], None]:
    """What takes each epoch of a task; one that goes on adds to what is there.

    Args:
        kind: `csv` writes `FOLDER/TASK.csv`, a line an epoch; `tensorboard` events in `FOLDER/TASK`; None nothing.
        folder: made where it is not there.
        task: its name.

    Raises:
        UserError: the folder cannot be written, or TensorBoard is not installed.
    """
    if kind is None:
        return lambda epoch: None
    check_folder(folder)
    if kind == "csv":
        path = folder / f"{task}.csv"
        check_file(path)
        return lambda epoch: _write_line(path, epoch)
    writer = _event_writer(folder / task)
    return lambda epoch: _write_events(writer, epoch)


def read_curve(path: Path) -> list[tuple[float, float]]:
    """Of each epoch of a CSV the seconds since the start and the accuracy in 0…1; none where there is no file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [(float(line["seconds"]), float(line["accuracy"])) for line in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({error}). Remove it; the curve is then left out.") from error


def _write_line(path: Path, epoch: Epoch) -> None:
    is_first = epoch.number == 1 or not path.exists()
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with explained(path), path.open("w" if is_first else "a", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        if is_first:
            lines.writerow(COLUMNS)
        lines.writerow([getattr(epoch, column) for column in COLUMNS])


def _event_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("TensorBoard is not installed. Install it: pip install 'ksm-hw[tensorboard]'.") from error
    return SummaryWriter(str(folder))


def _write_events(writer: Any, epoch: Epoch) -> None:
    for column in COLUMNS[1:]:
        if (value := getattr(epoch, column)) is not None:
            writer.add_scalar(column, value, epoch.number)
    writer.flush()
