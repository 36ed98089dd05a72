"""Small files of `torch.save` that would take far more memory or time than they have bytes."""

import pickle
import resource
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from ksm_hw import state_dicts
from ksm_hw.errors import UserError
from ksm_hw.state_dicts import read_state_dict
from ksm_hw.torch_files import records
from ksm_hw.torch_files.reading import read_torch_file
from ksm_hw.torch_files.records import DamagedFile, Record

SPARE = 300 << 20  # Bytes that reading may take beyond what the process has.
LONG = 400 << 20
EMPTY = b"\x80\x02}."


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """Limits this process's memory; a reader that takes more says so, and not what is expected."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture(scope="session", params=["its size", "another size"])
def long_order(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose byte order has hundreds of megabytes, and says so or not."""
    path = tmp_path_factory.mktemp("bomb") / "file.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("x/data.pkl", EMPTY)
        with archive.open("x/byteorder", "w") as stream:
            for _ in range(LONG >> 24):
                stream.write(bytes(1 << 24))
        if request.param == "another size":
            archive.getinfo("x/byteorder").file_size = 20
    return path


@pytest.mark.usefixtures("bounded_memory")
def test_a_byte_order_of_hundreds_of_megabytes(long_order: Path) -> None:
    with pytest.raises(DamagedFile, match=r"the sizes in it add up|highest byte|Bad CRC"):
        read_torch_file(long_order)


def test_compressions_that_unpack_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x/data.pkl", EMPTY)
    with pytest.raises(DamagedFile, match="compressed in a way"):
        read_torch_file(path)


def zipped(pickled: bytes, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
    return path


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize(
    ("first", "call"),
    [
        # A list of a million elements, of which each call makes a set.
        (b"](" + b"N" * 1_000_000 + b"e\x85q\x01c__builtin__\nset\nq\x02", b"h\x02h\x01R"),
        # A tuple of a million elements, of which each call takes all but the first.
        (b"(ca\nb\n" + b"N" * 1_000_000 + b"tq\x01ccopyreg\n__newobj__\nq\x02", b"h\x02h\x01R"),
    ],
    ids=["set", "__newobj__"],
)
def test_calls_that_share_their_arguments(tmp_path: Path, first: bytes, call: bytes) -> None:
    path = zipped(b"\x80\x02" + first + b"](" + call * 100 + b"e.", tmp_path / "file.pt")
    assert len(read_torch_file(path)) == 100


def doubled(times: int) -> bytes:
    """A tuple that holds another twice, and so on."""
    return b"N\x85" + b"".join(b"q%ch%c\x86" % (number, number) for number in range(times))


def test_an_object_as_a_key_is_left_out_and_its_text_is_short(tmp_path: Path) -> None:
    made = b"ca\nb\n" + doubled(18) + b"R"
    path = zipped(b"\x80\x02](}" + made + b"K\x01s" + made + b"e.", tmp_path / "file.pt")
    entries, record = read_torch_file(path)
    assert entries == {} and isinstance(record, Record) and str(record) == "<a.b>"


@pytest.mark.parametrize("keys", [b"](" + doubled(18) + b"e", doubled(18), b"}"], ids=["tuples", "a tuple", "none"])
def test_keys_of_storages_that_are_no_texts(tmp_path: Path, keys: bytes) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(
        pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + EMPTY + EMPTY + b"\x80\x02" + keys + b"."
    )
    with pytest.raises(DamagedFile, match="its list of tensors is none"):
        read_torch_file(path)


def test_a_module_under_many_keys_is_walked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walks = []
    walked = records.module_tensors
    monkeypatch.setattr(records, "module_tensors", lambda module: walks.append(1) or walked(module))
    path = tmp_path / "file.pt"
    torch.save(dict.fromkeys(map(str, range(1000)), nn.Sequential(nn.Identity())), path)
    with pytest.raises(UserError, match="holds no state dict"):
        read_state_dict(path)
    assert len(walks) <= 2 * state_dicts._MOST_WRAPPERS


def test_modules_that_share_what_they_hold(tmp_path: Path) -> None:
    inner = nn.Module()
    inner._parameters = dict.fromkeys(map(str, range(1000)), nn.Parameter(torch.ones(1)))
    outer = nn.Module()
    outer._modules = dict.fromkeys(map(str, range(1000)), inner)
    path = tmp_path / "file.pt"
    torch.save(outer, path)
    with pytest.raises(UserError, match="far more than networks do"):
        read_state_dict(path)
    outer._modules = {"x" * 600: nn.Sequential(nn.Linear(1, 1))}
    torch.save(outer, path)
    with pytest.raises(UserError, match="far more than networks do"):
        read_state_dict(path)
