"""What a pickle names and ksm-hw does not resolve: classes and functions as names, objects as what was said of them.

Nothing here behaves like what it stands for. Out of the record of a module (`nn.Module`) its tensors can be taken.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_DEEPEST = 32  # Modules in each other; no network has so many, but a damaged file's may hold themselves.
_MOST_ENTRIES = 300_000  # Of the dictionaries of modules, which a file may hold many times over.
_LONGEST_PATH = 500  # Characters.


class DamagedFile(Exception):
    """A file of `torch.save` is not as such files are; the message says in what."""


@dataclass(frozen=True, slots=True)
class Name:
    """A class or a function that a pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:100]


@dataclass(eq=False, slots=True)
class Record:
    """An object of a class that is not resolved.

    Attributes:
        made_by: the class, or the function that would have made the object.
        arguments: what that would have been called with.
        state: what the object would have been given afterwards, as a rule a dictionary of its attributes.
        entries: what would have been put in, as into a dictionary.
    """

    made_by: Name
    arguments: tuple[Any, ...]
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Short: tuples of which each holds another twice would take for ever."""
        return f"<{self.made_by}>"


def is_module(content: object) -> bool:
    """Whether this is the record of a module."""
    return isinstance(content, Record) and isinstance(content.state, dict) and "_modules" in content.state


def attribute(record: object, name: str) -> Any:
    """What an object or a dictionary has under a name: an attribute, an entry, or a module in it; or None."""
    if isinstance(record, Mapping):
        return record.get(name)
    if not isinstance(record, Record) or not isinstance(record.state, dict):
        return None
    inner = record.state.get("_modules")
    return record.state.get(name, inner.get(name) if isinstance(inner, dict) else None)


def mapping_of(content: object) -> Mapping[Any, Any] | None:
    """A dictionary as it is; of a module its state dict, of another object its entries or attributes; or None.

    Raises:
        DamagedFile: modules lie in each other without end.
    """
    if isinstance(content, Record):
        if is_module(content):
            return module_tensors(content)
        return content.entries or (content.state if isinstance(content.state, dict) else None)
    return content if isinstance(content, Mapping) else None


def module_tensors(module: Record) -> dict[str, "torch.Tensor"]:
    """The tensors of a module and of those in it, named and ordered as its `state_dict()` has them.

    Raises:
        DamagedFile: modules lie in each other without end.
    """
    return dict(_named_tensors(module))


def _named_tensors(module: Record) -> Iterator[tuple[str, "torch.Tensor"]]:
    import torch

    waiting, seen = [("", module, 0)], 0
    while waiting:
        path, current, depth = waiting.pop()
        hidden = _contents(current, "_non_persistent_buffers_set")
        entries = [len(_contents(current, kind)) for kind in ("_parameters", "_buffers", "_modules")]
        seen += 1 + len(hidden) + sum(entries)
        if depth > _DEEPEST or len(path) > _LONGEST_PATH or seen > _MOST_ENTRIES:
            raise DamagedFile("modules lie in each other without end, or hold far more than networks do")
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _contents(current, kind).items():
                if isinstance(tensor, torch.Tensor) and name not in hidden:
                    yield f"{path}{name}", tensor
        inner = [(f"{path}{name}.", each, depth + 1) for name, each in _contents(current, "_modules").items()]
        waiting += [entry for entry in reversed(inner) if is_module(entry[1])]


def _contents(module: Record, attribute: str) -> dict[Any, Any]:
    """A dictionary of a module by its attribute; of a set the dictionary that has its elements as keys."""
    found = module.state.get(attribute)
    if isinstance(found, list):
        return {name: None for name in found if isinstance(name, str)}
    return found if isinstance(found, dict) else {}
