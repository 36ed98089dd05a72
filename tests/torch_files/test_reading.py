"""Files of `torch.save` are read as PyTorch reads them, foreign objects as records, and nothing is called."""

import argparse
import collections
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ksm_hw.errors import UserError
from ksm_hw.state_dicts import read_state_dict
from ksm_hw.torch_files.reading import read_torch_file
from ksm_hw.torch_files.records import DamagedFile, Record, attribute, module_tensors


class Network(nn.Module):
    """A network of a script that the reader has not got."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.Sequential(nn.BatchNorm2d(4))
        self.register_buffer("table", torch.ones(2), persistent=False)
        self.conv.weight.extra = 3  # Which makes torch pickle the parameter in a longer way.


@pytest.fixture(params=[True, False], ids=["zip", "before 1.6"])
def new(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def saved(content: Any, path: Path, new: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=new)
    return path


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected) or isinstance(expected, nn.Parameter)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and found.stride() == expected.stride() and torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for left, right in zip(found, expected, strict=True):
            assert_same(left, right)
    else:
        assert found == expected


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int64, torch.bool)


def test_plain_content_is_read_as_it_was_saved(tmp_path: Path, new: bool) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    content = {
        "state": collections.OrderedDict(a=whole, part=whole[1:, 2:4], turned=whole.T, none=torch.zeros(0, 3)),
        "parameter": nn.Parameter(torch.ones(3)),
        "types": [torch.ones(3).to(dtype) for dtype in DTYPES],
        "rest": (1, 2.5, None, True, "ä", [{}], {1: 2}, -(1 << 70)),
    }
    assert_same(read_torch_file(saved(content, tmp_path / "file", new)), content)


@pytest.mark.parametrize("protocol", [1, 2, 4])
def test_a_pickled_network_gives_its_state_dict(tmp_path: Path, new: bool, protocol: int) -> None:
    network = Network()
    path = tmp_path / "network.pt"
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": new}
    torch.save({"model": network, "args": argparse.Namespace(lr=0.1)}, path, **options)
    content = read_torch_file(path)
    assert isinstance(content["model"], Record) and str(content["model"].made_by).endswith("test_reading.Network")
    assert attribute(content["args"], "lr") == 0.1 and attribute(content["model"], "training") is True
    assert isinstance(attribute(content["model"], "conv"), Record) and attribute(content["model"], "other") is None
    assert_same(module_tensors(content["model"]), dict(network.state_dict()))
    torch.save(nn.DataParallel(network), path, **options)
    assert list(read_state_dict(path)) == [f"module.{name}" for name in network.state_dict()]


class _Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(("function", "said"), [(os.mkdir, "posix.mkdir"), (eval, "__builtin__.eval")])
def test_what_runs_code_is_named_and_not_called(tmp_path: Path, new: bool, function: Any, said: str) -> None:
    target = tmp_path / "made"
    argument = str(target) if function is os.mkdir else f"__import__('os').mkdir({str(target)!r})"
    path = saved({"w": torch.ones(2), "evil": _Call(function, argument)}, tmp_path / "file.pt", new)
    with pytest.raises(UserError, match=rf"Cannot read .*file.pt as a state dict: it wants {said} to be called"):
        read_state_dict(path)
    assert not target.exists()


class _Hooked(nn.Module):
    """A network that was saved with one of its methods as a hook, which pickles as a call of `getattr`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.conv.register_forward_hook(self.look)

    def look(self, *_: Any) -> None: ...


def test_a_network_with_hooks_gives_its_state_dict(tmp_path: Path, new: bool) -> None:
    network = _Hooked()
    assert_same(read_state_dict(saved(network, tmp_path / "file.pt", new)), dict(network.state_dict()))


class _Trap:
    """What is made of this would do something at every turn."""

    touched: list[str] = []  # noqa: RUF012

    def __new__(cls, *_: Any) -> Any:
        cls.touched.append("new")
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        self.touched.append("setstate")

    def __setitem__(self, *_: Any) -> None:
        self.touched.append("setitem")

    def append(self, _: Any) -> None:
        self.touched.append("append")

    def __reduce__(self) -> Any:
        return _Trap, (1,), {"a": 1}, iter([2, 3]), iter([("key", torch.ones(1))])


def test_an_object_that_is_made_and_filled_is_a_record(tmp_path: Path, new: bool) -> None:
    path = saved({"w": torch.ones(2), "object": _Trap()}, tmp_path / "file.pt", new)
    _Trap.touched.clear()
    made = read_torch_file(path)["object"]
    assert (
        isinstance(made, Record) and made.arguments == (1,) and made.state == {"a": 1} and list(made.entries) == ["key"]
    )
    assert not _Trap.touched
    assert list(read_state_dict(path)) == ["w"]


def zipped(pickled: bytes, path: Path, **storages: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        for key, content in storages.items():
            archive.writestr(f"x/data/{key}", content)
    return path


def tensor_pickle(offset: int, size: tuple[int, ...], stride: tuple[int, ...], count: int = 4) -> bytes:
    """A pickle of one tensor over the storage `a`."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            return ("storage", torch.FloatStorage, "a", "cpu", count) if thing == "STORAGE" else None

    stream = io.BytesIO()
    rebuild = torch._utils._rebuild_tensor_v2
    Pickler(stream, 2).dump({"w": _Call(rebuild, "STORAGE", offset, size, stride, False, {})})
    return stream.getvalue()


OUTSIDE = [(0, (5,), (1,)), (1, (4,), (1,)), (0, (2, 2), (1, 3)), (0, (1 << 40,), (0,)), (0, (1 << 62,) * 2, (0, 0))]
NO_SHAPES = [
    (-1, (2,), (1,)),
    (0, (-2,), (1,)),
    (0, (2,), (-1,)),
    (0, (2, 2), (1,)),
    (0, (2.0,), (1,)),
    (0, "ab", "cd"),
    (0, (1 << 63, 0), (1, 1)),
    (0, (1,) * 65, (1,) * 65),
]


@pytest.mark.parametrize(("offset", "size", "stride"), OUTSIDE + NO_SHAPES)
def test_sizes_that_lie_are_refused(tmp_path: Path, offset: int, size: Any, stride: Any) -> None:
    path = zipped(tensor_pickle(offset, size, stride), tmp_path / "file.pt", a=struct.pack("<4f", 1, 2, 3, 4))
    with pytest.raises(DamagedFile, match="a tensor"):
        read_torch_file(path)


def test_the_same_tensor_with_sizes_that_are_right_is_read(tmp_path: Path) -> None:
    path = zipped(tensor_pickle(1, (2,), (2,), 1 << 50), tmp_path / "file.pt", a=struct.pack("<4f", 1, 2, 3, 4))
    assert read_torch_file(path)["w"].tolist() == [2, 4]


def test_many_tensors_over_one_storage_take_no_more_memory_than_the_file_allows(tmp_path: Path) -> None:
    whole = torch.zeros(1 << 20)
    path = saved({f"w{number}": whole.view(1, -1) for number in range(40)}, tmp_path / "file.pt", True)
    with pytest.raises(UserError, match="far more memory than the file"):
        read_state_dict(path)


HOSTILE = {
    "a tuple in a tuple as a key": b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.",
    "lists in lists": b"\x80\x02]" * 1 + b"]" * 200_000 + b"a" * 200_000 + b".",
    "a place in the memo beyond memory": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a text of terabytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 42) + b"abc.",
    "bytes of terabytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 42) + b"abc.",
    "a frame of terabytes": b"\x80\x04\x95" + struct.pack("<Q", 1 << 42) + b"}.",
    "registered extensions": b"\x80\x02\x82\x01.",
    "a number of many digits": b"I" + b"9" * 100_000 + b"\n.",
    "nothing on the stack": b"\x80\x020000R.",
    "what is called is a text": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "a storage of another kind": b"\x80\x02}Q.",
}


@pytest.mark.parametrize("content", HOSTILE)
def test_hostile_pickles_end_in_a_message(tmp_path: Path, content: str) -> None:
    path = zipped(HOSTILE[content], tmp_path / "file.pt")
    with pytest.raises(UserError, match=r"file\.pt"):
        read_state_dict(path)


def test_dictionaries_that_hold_each_other_many_times_are_counted_once(tmp_path: Path, new: bool) -> None:
    endless: dict[str, Any] = {}
    endless |= {f"key {number}": endless for number in range(1000)}
    with pytest.raises(UserError, match="holds no state dict"):
        read_state_dict(saved(endless, tmp_path / "file.pt", new))


def test_modules_without_end_are_refused(tmp_path: Path, new: bool) -> None:
    network = nn.Sequential(nn.Linear(1, 1))
    network._modules["again"] = network
    with pytest.raises(UserError, match="without end"):
        read_state_dict(saved({"model": network}, tmp_path / "file.pt", new))


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "program.pt"
    torch.jit.script(nn.Linear(1, 1)).save(path)  # type: ignore[no-untyped-call]
    with pytest.raises(UserError, match="TorchScript"):
        read_state_dict(path)
    path.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(UserError, match=r"no file of torch\.save: it begins with dict"):
        read_state_dict(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}." + bytes(1 << 24), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="its pickle has more than"):
        read_state_dict(path)
