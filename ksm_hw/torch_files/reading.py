"""The containers of `torch.save`: the zip archive that it writes today, and the pickles in a row of PyTorch before 1.6.

zip: `<name>/data.pkl` is the pickle, `<name>/data/<key>` the numbers of a storage, each a file that is not compressed.
Before: a magic number, a version, facts of the machine, the content, and the keys of its storages, each a pickle; then
of each storage in that order how many numbers it has (int64), and the numbers.
"""

import io
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ksm_hw.torch_files.records import DamagedFile, Name
from ksm_hw.torch_files.unpickler import Readable, Storage, Unpickler

if TYPE_CHECKING:
    import torch

_MAGIC = 0x1950A86A20F9469CFC6C
_MOST_PICKLE = 16 << 20  # Bytes; that of ResNet-50 with its optimizer has 200,000.
# How much more than the file's bytes its tensors may take: some share their numbers, and small files some memory.
_SHARED, _SPARE = 4, 64 << 20
# Which Python unpacks in pieces of a given size, as it does no other; torch.save itself compresses nothing.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_torch_file(path: Path) -> Any:
    """What a file holds: dictionaries, lists, tuples, numbers, texts, tensors, and records of all other objects.

    Memory is bounded by the file's size. Keys of dictionaries that are not plain (a tuple, a long text) are left out.

    Raises:
        OSError: the file cannot be opened.
        DamagedFile: it is no file of `torch.save`, or is damaged; the message says in what.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        start = stream.read(4)
        stream.seek(0)
        try:
            return _read_zip(stream, size) if start == b"PK\x03\x04" else _read_row(stream, size)
        except DamagedFile:
            raise
        except Exception as error:  # Python's own reader raises many types for damaged pickles; each means the same.
            reason = str(error)[:200] or "nothing more is known"
            raise DamagedFile(f"it is truncated or damaged ({type(error).__name__}: {reason})") from error


def _read_zip(stream: BinaryIO, size: int) -> Any:
    with zipfile.ZipFile(stream) as archive:
        files = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in files if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise DamagedFile("it is a zip archive, but none of torch.save")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in files:
            raise DamagedFile("it is a TorchScript program, not a checkpoint")
        if files[pickles[0]].file_size > _MOST_PICKLE:
            raise DamagedFile(f"its pickle has more than {_MOST_PICKLE} bytes beside the tensors")
        if sum(info.file_size for info in files.values()) > _SHARED * size:
            raise DamagedFile("the sizes in it add up to far more than the file has")
        if any(info.compress_type not in _COMPRESSIONS for info in files.values()):
            raise DamagedFile("it is compressed in a way that torch.save does not know")
        order = files.get(f"{folder}byteorder")
        if order is not None and _start(archive, order, 6) != b"little":
            raise DamagedFile("it was written on a machine whose numbers begin with the highest byte")
        loaded: dict[str, Storage] = {}

        def load_storage(identity: tuple[Any, ...]) -> Storage | None:
            dtype, key = _dtype_of(identity[1]), identity[2]
            if dtype is None or not isinstance(key, str):
                return None
            if key not in loaded:
                loaded[key] = Storage(_numbers(archive, files[f"{folder}data/{key}"], dtype))
            return loaded[key]

        pickled = _start(archive, files[pickles[0]], files[pickles[0]].file_size)
        return Unpickler(io.BytesIO(pickled), load_storage, _SHARED * size + _SPARE).load()


def _start(archive: zipfile.ZipFile, info: zipfile.ZipInfo, count: int) -> bytes:
    """The first bytes of a file in the archive; without a count all would be unpacked, whatever size it claims."""
    with archive.open(info) as file:
        return file.read(count)


def _numbers(archive: zipfile.ZipFile, info: zipfile.ZipInfo, dtype: "torch.dtype") -> "torch.Tensor":
    """The numbers of a file in the archive, one behind the other."""
    import torch

    numbers = torch.empty(info.file_size // dtype.itemsize, dtype=dtype)
    with archive.open(info) as file:
        _fill(numbers, file)
        file.read(dtype.itemsize)  # To the end, where the checksum is compared.
    return numbers


def _fill(numbers: "torch.Tensor", file: Any) -> None:
    """Reads the bytes of numbers."""
    import torch

    place = memoryview(numbers.view(torch.uint8).numpy().data)
    while len(place):
        count = file.readinto(place)
        if not count:
            raise DamagedFile("it ends before its tensors do")
        place = place[count:]


def _dtype_of(kind: Any) -> "torch.dtype | None":
    """The type of the numbers of a class of storages."""
    import torch

    if not isinstance(kind, Name) or not kind.module.startswith("torch"):
        return None
    return {
        "DoubleStorage": torch.float64,
        "FloatStorage": torch.float32,
        "HalfStorage": torch.float16,
        "BFloat16Storage": torch.bfloat16,
        "LongStorage": torch.int64,
        "IntStorage": torch.int32,
        "ShortStorage": torch.int16,
        "CharStorage": torch.int8,
        "ByteStorage": torch.uint8,
        "BoolStorage": torch.bool,
        "ComplexFloatStorage": torch.complex64,
        "ComplexDoubleStorage": torch.complex128,
    }.get(kind.name)


class _Bounded(Readable):
    """The pickles of a file, in which no number leads beyond what pickles may have."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left = _MOST_PICKLE

    def read(self, count: int = -1, /) -> bytes:
        content = self._stream.read(min(count, self._left) if count >= 0 else self._left)
        self._left -= len(content)
        return content

    def readline(self) -> bytes:
        line = self._stream.readline(self._left)
        self._left -= len(line)
        return line


def _read_row(stream: BinaryIO, size: int) -> Any:
    import torch

    pickles = _Bounded(stream)
    storages: dict[str, tuple[Storage, torch.dtype]] = {}
    left = size

    def load_storage(identity: tuple[Any, ...]) -> Storage | None:
        nonlocal left
        dtype, key, count = _dtype_of(identity[1]), identity[2], identity[4]
        if dtype is None or not isinstance(key, str):
            return None
        if key not in storages:
            left -= dtype.itemsize * count if type(count) is int else 0
            if type(count) is not int or count < 0 or left < 0:
                raise DamagedFile("the sizes of its tensors add up to more than the file has")
            storages[key] = Storage(torch.empty(count, dtype=dtype)), dtype
        return _part(storages[key][0], identity[5] if len(identity) > 5 else None)

    def load() -> Any:
        return Unpickler(pickles, load_storage, _SHARED * size + _SPARE).load()

    if (magic := load()) != _MAGIC:
        raise DamagedFile(f"it is no file of torch.save: it begins with {type(magic).__name__}")
    load()  # The version of the protocol, which is 1001 in all of them.
    machine = load()
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise DamagedFile("it was written on a machine whose numbers begin with the highest byte")
    content, keys = load(), load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise DamagedFile("its list of tensors is none")
    for key in keys:
        storage, _ = storages[key]
        (count,) = struct.unpack("<q", stream.read(8))
        if count != storage.numbers.numel():
            raise DamagedFile(f"a tensor's numbers are {count} in one place and {storage.numbers.numel()} in another")
        _fill(storage.numbers, stream)
    if missing := storages.keys() - set(keys):
        raise DamagedFile(f"{len(missing)} tensors have no numbers")
    return content


def _part(storage: Storage, view: Any) -> Storage:
    """A part of a storage, which files of PyTorch 0.3 and before have: (key, offset, count)."""
    if view is None:
        return storage
    _, offset, count = view
    there = storage.numbers.numel()
    if type(offset) is not int or type(count) is not int or not 0 <= offset <= offset + count <= there:
        raise DamagedFile(f"a part of a storage of {there} numbers lies outside of it")
    return Storage(storage.numbers[offset : offset + count])
