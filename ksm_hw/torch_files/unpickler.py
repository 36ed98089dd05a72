"""An unpickler that resolves no class and calls nothing: it makes plain containers, tensors and records.

Python's own unpickler does the reading. Every instruction that would look up, make, call or change an object of a class
is replaced here: a name stays a name (`Name`), an object becomes a `Record`, and the few functions of torch that stand
for a tensor are done by hand, with every number checked before torch sees it.
"""

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ksm_hw.torch_files.records import DamagedFile, Name, Record

if TYPE_CHECKING:
    import torch

_MOST_TENSORS = 300_000
_LONGEST_KEY = 1000  # Characters of a key that is kept.
_MOST_DIMENSIONS = 64
_MOST_ARGUMENTS = 16  # That are kept of a call through `copyreg`, each time as a copy.
# What a call of is worth a word: no checkpoint needs it, and it is how pickles run code. Nothing else is called either.
_CODE = {
    "os",
    "posix",
    "nt",
    "subprocess",
    "sys",
    "shutil",
    "socket",
    "runpy",
    "pty",
    "ctypes",
    "importlib",
    "commands",
}
_CODE_OF_BUILTINS = {
    "eval",
    "exec",
    "compile",
    "setattr",
    "__import__",
    "open",
    "breakpoint",
    "apply",
    "execfile",
}
_BUILTINS = ("builtins", "__builtin__")


class Readable(Protocol):
    """What a pickle is read from."""

    def read(self, count: int = -1, /) -> bytes:
        """At most so many bytes."""

    def readline(self) -> bytes:
        """Up to the end of a line."""


@dataclass(frozen=True, slots=True)
class Storage:
    """The numbers of tensors, one behind the other: a tensor of one dimension."""

    numbers: "torch.Tensor"


LoadStorage = Callable[[tuple[Any, ...]], Storage | None]


class Unpickler(pickle._Unpickler):  # The one in Python, whose instructions can be replaced.
    """Reads a pickle of `torch.save`.

    Args:
        stream: which ends where the pickle may not go on; this class itself bounds no strings and lists.
        load_storage: from a persistent id ('storage', type, key, …) to the numbers; None for a type that is not known.
        most_bytes: of all tensors together, which may share their numbers.
    """

    def __init__(self, stream: Readable, load_storage: LoadStorage, most_bytes: int) -> None:
        # Pickles of Python 2 hold texts as bytes; in latin1 every byte is a character.
        super().__init__(stream, encoding="latin1")
        self.load_storage = load_storage
        self.bytes_left = most_bytes
        self.tensors_left = _MOST_TENSORS

    def find_class(self, module: str, name: str) -> Name:
        """The name alone."""
        return Name(module, name)

    def persistent_load(self, identity: Any) -> Any:
        """The numbers of tensors; a module's source code, which old files hold, is left out."""
        if isinstance(identity, tuple) and identity[:1] == ("module",) and len(identity) > 1:
            return identity[1]
        if not isinstance(identity, tuple) or identity[:1] != ("storage",) or len(identity) < 5:
            raise DamagedFile("it refers to what torch.save does not write")
        return self.load_storage(identity)

    def made(self, what: Any, arguments: Any) -> Any:
        """What a class or function is taken to give for its arguments."""
        if not isinstance(what, Name) or not isinstance(arguments, tuple):
            raise DamagedFile("it calls what is no class or function")
        module, name = what.module, what.name
        if module.partition(".")[0] in _CODE or (module in _BUILTINS and name in _CODE_OF_BUILTINS):
            raise DamagedFile(f"it wants {what} to be called, which no checkpoint needs, and which was not done")
        if (module, name) in (("collections", "OrderedDict"), ("collections", "defaultdict")):
            return OrderedDict()
        if module in _BUILTINS and name in ("set", "frozenset"):
            # The list itself: a copy for each call would take far more memory than the file.
            return arguments[0] if arguments and isinstance(arguments[0], list) else []
        if module in ("copyreg", "copy_reg") and name in ("__newobj__", "_reconstructor") and arguments:
            # How old protocols make an object. Not deeper: what makes what makes … would be endless.
            inner = arguments[0]
            if isinstance(inner, Name) and inner.module != module:
                return self.made(inner, arguments[1 : 1 + _MOST_ARGUMENTS] if name == "__newobj__" else ())
        made = self.tensor(module, name, arguments)
        return Record(what, arguments) if made is None else made

    def tensor(self, module: str, name: str, arguments: tuple[Any, ...]) -> "torch.Tensor | None":
        """The tensor that a function of torch makes; None for another function or other arguments."""
        import torch

        if not module.startswith("torch"):
            return None
        if name in ("_rebuild_tensor", "_rebuild_tensor_v2") and len(arguments) >= 4:
            return self.view(*arguments[:4]) if isinstance(arguments[0], Storage) else None
        if name == "_rebuild_from_type_v2" and len(arguments) >= 3 and isinstance(arguments[2], tuple):
            inner = arguments[0]
            # Not deeper: a type in a type in a type would be endless.
            known = isinstance(inner, Name) and inner.name.startswith(("_rebuild_tensor", "_rebuild_parameter"))
            return self.tensor(inner.module, inner.name, arguments[2]) if known else None
        if name in ("_rebuild_parameter", "_rebuild_parameter_with_state", "Parameter", "Variable") and arguments:
            return arguments[0] if isinstance(arguments[0], torch.Tensor) else None
        return None

    def view(self, storage: Storage, offset: Any, size: Any, stride: Any) -> "torch.Tensor":
        """A tensor over the numbers of a storage.

        Raises:
            DamagedFile: the numbers say that it has more than there are.
        """
        lists = isinstance(size, (tuple, list)) and isinstance(stride, (tuple, list)) and len(size) == len(stride)
        if not lists or len(size) > _MOST_DIMENSIONS or not all(map(_is_extent, (offset, *size, *stride))):
            raise DamagedFile("a tensor's shape is none")
        count, there = math.prod(size), storage.numbers.numel()
        last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True)) if count else 0
        if count > there or last >= max(there, 1):
            raise DamagedFile(f"a tensor of {min(count, 1 << 62)} numbers lies in a storage of {there}")
        self.tensors_left -= 1
        self.bytes_left -= count * storage.numbers.element_size()
        if self.tensors_left < 0 or self.bytes_left < 0:
            raise DamagedFile("its tensors would take far more memory than the file has bytes")
        return storage.numbers.as_strided(tuple(size), tuple(stride), offset)


def _is_extent(number: object) -> bool:
    """Whether this is a number of elements; products of larger numbers could take all memory."""
    return type(number) is int and 0 <= number < 1 << 63


def _reduce(unpickler: Any) -> None:
    arguments = unpickler.stack.pop()
    unpickler.stack[-1] = unpickler.made(unpickler.stack[-1], arguments)


def _new_object(unpickler: Any) -> None:
    _reduce(unpickler)


def _new_object_with_keywords(unpickler: Any) -> None:
    unpickler.stack.pop()
    _reduce(unpickler)


def _instance(unpickler: Any) -> None:
    """INST of protocol 0: the name is in the instruction."""
    module, name = (unpickler.readline()[:-1].decode("ascii") for _ in range(2))
    arguments = tuple(unpickler.pop_mark())
    unpickler.append(unpickler.made(unpickler.find_class(module, name), arguments))


def _object(unpickler: Any) -> None:
    """OBJ of protocol 1: the class lies below the arguments."""
    what, *arguments = unpickler.pop_mark()
    unpickler.append(unpickler.made(what, tuple(arguments)))


def _build(unpickler: Any) -> None:
    state = unpickler.stack.pop()
    made = unpickler.stack[-1]
    if isinstance(made, Record):
        # Classes with __slots__ have a pair: attributes, and those in slots.
        made.state = state[0] if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict) else state


def _set_item(unpickler: Any) -> None:
    value = unpickler.stack.pop()
    key = unpickler.stack.pop()
    _put(unpickler.stack[-1], [key, value])


def _set_items(unpickler: Any) -> None:
    items = unpickler.pop_mark()
    _put(unpickler.stack[-1], items)


def _dictionary(unpickler: Any) -> None:
    made: dict[Any, Any] = {}
    _put(made, unpickler.pop_mark())
    unpickler.append(made)


def _put(container: Any, items: list[Any]) -> None:
    if isinstance(container, Record):
        container = container.entries
    if not isinstance(container, dict):
        return
    for key, value in zip(items[::2], items[1::2], strict=True):
        if _is_plain(key):
            container[key] = value


def _is_plain(key: object) -> bool:
    """Whether a key is kept: hashing a tuple in a tuple in a tuple … would end this process."""
    if isinstance(key, (str, bytes)):
        return len(key) <= _LONGEST_KEY
    return isinstance(key, (float, Name)) or key is None or (isinstance(key, int) and abs(key) < 1 << 63)


def _append(unpickler: Any) -> None:
    value = unpickler.stack.pop()
    if isinstance(unpickler.stack[-1], list):
        unpickler.stack[-1].append(value)


def _append_all(unpickler: Any) -> None:
    values = unpickler.pop_mark()
    if isinstance(unpickler.stack[-1], list):
        unpickler.stack[-1].extend(values)


def _empty_set(unpickler: Any) -> None:
    """As a list, which asks no element for its hash."""
    unpickler.append([])


def _frozen_set(unpickler: Any) -> None:
    unpickler.append(unpickler.pop_mark())


_REPLACED = {
    pickle.REDUCE: _reduce,
    pickle.NEWOBJ: _new_object,
    pickle.NEWOBJ_EX: _new_object_with_keywords,
    pickle.INST: _instance,
    pickle.OBJ: _object,
    pickle.BUILD: _build,
    pickle.SETITEM: _set_item,
    pickle.SETITEMS: _set_items,
    pickle.DICT: _dictionary,
    pickle.APPEND: _append,
    pickle.APPENDS: _append_all,
    pickle.EMPTY_SET: _empty_set,
    pickle.ADDITEMS: _append_all,
    pickle.FROZENSET: _frozen_set,
}
# They look up what other code registered, or take as much memory as a number in the file says.
_LEFT_OUT = (
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4),
    *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
)
Unpickler.dispatch = {
    **{number: done for number, done in pickle._Unpickler.dispatch.items() if bytes([number]) not in _LEFT_OUT},
    **{instruction[0]: done for instruction, done in _REPLACED.items()},
}
