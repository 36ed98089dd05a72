"""The formats of checkpoints, as one table: how each is told from the others, and what reads it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ksm_hw.errors import UserError
from ksm_hw.importing.checkpoint import Checkpoint, FormError
from ksm_hw.importing.cpg import is_cpg, read_cpg
from ksm_hw.importing.ksm import is_ksm, read_ksm
from ksm_hw.importing.packnet import is_packnet, read_packnet
from ksm_hw.importing.piggyback import is_piggyback, read_piggyback
from ksm_hw.state_dicts import read_checkpoint
from ksm_hw.torch_files.records import DamagedFile, mapping_of


@dataclass(frozen=True)
class CheckpointFormat:
    """What a method's scripts write.

    Attributes:
        name: for the command line and in task packs.
        title: for people.
        matches: whether a file's content is of this form.
        read: what it holds, over a backbone, whose weights are looked at where the file has none of its own.
    """

    name: str
    title: str
    matches: Callable[[Mapping[Any, Any]], bool]
    read: Callable[[Mapping[Any, Any], nn.Module], Checkpoint]


FORMATS = {
    each.name: each
    for each in (
        CheckpointFormat("ksm", "KSM", is_ksm, read_ksm),
        CheckpointFormat("piggyback", "Piggyback", is_piggyback, read_piggyback),
        CheckpointFormat("packnet", "PackNet", is_packnet, read_packnet),
        CheckpointFormat("cpg", "CPG", is_cpg, read_cpg),
    )
}


def read_tasks(path: Path, name: str, network: nn.Module) -> tuple[CheckpointFormat, Checkpoint]:
    """Reads a checkpoint.

    Args:
        path: of the file.
        name: of a format, or `auto`.
        network: the backbone, in its published widths.

    Raises:
        UserError: the file cannot be read, is of no or another format, or does not fit the backbone.
    """
    if not path.exists():
        raise UserError(f"No checkpoint at {path}. Check the path.")
    content = read_checkpoint(path, "a checkpoint")
    known, found = ", ".join(each.title for each in FORMATS.values()), FORMATS.get(name)
    try:
        mapping = mapping_of(content)
        if mapping is None:
            raise FormError(f"it holds a {type(content).__name__}, and checkpoints are dictionaries")
        found = found or next((each for each in FORMATS.values() if each.matches(mapping)), None)
        if found is None:
            entries = ", ".join(str(key)[:40] for key in list(mapping)[:8])
            raise FormError(
                f"it has the entries {entries or '(none)'}, as none of theirs. Weights of a plain network go to "
                "--backbone-weights here, or to --weights of `ksm-hw train`"
            )
        return found, found.read(mapping, network)
    except (FormError, DamagedFile) as error:
        title = known if found is None else found.title
        raise UserError(
            f"{path} cannot be imported as a checkpoint of {title}: {error}. Check --format and --backbone, or copy "
            "the file again."
        ) from error
