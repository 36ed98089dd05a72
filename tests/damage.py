"""Damage to files, and what reading them must come to: each is read or refused with a message.

Bits flip, files are cut, pieces are missing or doubled, sizes lie, and JSON says something else than it should. Each
file is whole otherwise, so damage reaches what lies behind the first check as well. The seed of each damage is its
number.
"""

import copy
import io
import json
import re
import resource
import struct
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ksm_hw.errors import UserError

MEMORY = 600 << 20  # Bytes that reading may take beyond what the process holds; no file here is larger than 1 MB.

Damage = Callable[[bytes, np.random.Generator], bytes]


def damaged_bytes(content: bytes, generator: np.random.Generator) -> bytes:
    """Flipped bits, a cut, a piece that is missing, doubled or noise, or a number that is far too large."""
    changed = bytearray(content)
    # Headers come first and are small: half of the damage is to them.
    end = len(content) if generator.random() < 0.5 else min(len(content), 256)
    place = int(generator.integers(end))
    length = int(generator.integers(1, 64))
    match int(generator.integers(6)):
        case 0:
            for bit in generator.integers(8 * end, size=generator.integers(1, 16)).tolist():
                changed[bit // 8] ^= 1 << bit % 8
        case 1:
            del changed[place:]
        case 2:
            del changed[place : place + length]
        case 3:
            changed[place:place] = changed[place : place + length]
        case 4:
            changed[place : place + length] = generator.bytes(length)
        case 5:
            number = struct.pack(*[("<I", 0x7FFFFFF0), (">I", 0x7FFFFFF0), ("<Q", 1 << 62), (">H", 0xFFF0)][place % 4])
            changed[place : place + len(number)] = number
    return bytes(changed)


def unsealed(content: bytes | str) -> dict[str, Any]:
    """A JSON document as an older ksm-hw wrote it, without hashes of itself, so that it can be changed."""
    document: dict[str, Any] = json.loads(content)
    return {name: value for name, value in document.items() if name not in ("sha256", "tensors_sha256")}


def damaged_json(content: bytes, generator: np.random.Generator) -> bytes:
    """One value is another, is missing or has another name; or the text itself is damaged."""
    if generator.random() < 0.2:
        return damaged_bytes(content, generator)
    document = unsealed(content)
    places = list(containers(document))
    container = places[int(generator.integers(len(places)))]
    keys = list(container) if isinstance(container, dict) else list(range(len(container)))
    key = keys[int(generator.integers(len(keys)))]
    if generator.random() < 0.2:
        value = container.pop(key)
        if isinstance(container, dict) and generator.random() < 0.5:
            container["another"] = value
    else:
        container[key] = copy.deepcopy(ODD_VALUES[int(generator.integers(len(ODD_VALUES)))])
    return json.dumps(document).encode()


# fmt: off
ODD_VALUES: list[Any] = [
    None, True, "", "x", "../../x", "/etc/passwd", "a\0b", "\ud800", 0, -1, 3, 1 << 31, 1 << 63, 1 << 200, 0.5, 1e308,
    float("nan"), float("inf"), [], [[]], {}, [-1], [1 << 40, 1 << 40], [0.0, float("nan"), 1e300], ["x", 1, None],
    {"x": {}}, [{}],
]
# fmt: on


def containers(document: Any) -> Any:
    """All objects and lists of a JSON document that hold something."""
    if isinstance(document, (dict, list)) and document:
        yield document
        for value in document.values() if isinstance(document, dict) else document:
            yield from containers(value)


def damaged_safetensors(content: bytes, generator: np.random.Generator) -> bytes:
    """The bytes are damaged, or the header, or the JSON that the header's metadata holds as a text."""
    kind = generator.random()
    if kind < 0.3:
        return damaged_bytes(content, generator)
    start = 8 + int.from_bytes(content[:8], "little")
    header = content[8:start]
    if kind < 0.6:
        header = damaged_json(header, generator)
    else:
        document = json.loads(header)
        ours = document["__metadata__"]["ksm-hw"].encode()
        document["__metadata__"]["ksm-hw"] = damaged_json(ours, generator).decode(errors="replace")
        header = json.dumps(document).encode()
    return struct.pack("<Q", len(header)) + header + content[start:]


def damaged_toml(content: bytes, generator: np.random.Generator) -> bytes:
    """One value is another, or the text itself is damaged."""
    if generator.random() < 0.3:
        return damaged_bytes(content, generator)
    values = list(re.finditer(rb"= (.*)", content))
    start, end = values[int(generator.integers(len(values)))].span(1)
    odd = json.dumps(ODD_VALUES[int(generator.integers(1, len(ODD_VALUES)))]).encode()
    return content[:start] + odd.replace(b"NaN", b"nan").replace(b"Infinity", b"inf") + content[end:]


def read_damaged(file: Path, damage: Damage, read: Callable[[], None], numbers: range) -> None:
    """Damages a file in one way after another, and reads what it belongs to; at last the file is whole again."""
    whole = file.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes: Counter[str] = Counter()
    try:
        for number in numbers:
            file.write_bytes(damage(whole, np.random.default_rng(number)))
            try:
                read()
                outcomes["read"] += 1
            except UserError as error:
                assert len(str(error)) < 2000, f"number {number}: a message of {len(str(error))} characters"
                outcomes["refused"] += 1
            except Exception as error:
                outcomes[f"{type(error).__name__}: {error} (such as number {number})"[:300]] += 1
    finally:
        file.write_bytes(whole)
    print(dict(outcomes))  # So that `-s` shows that the damage was some.
    assert outcomes.keys() <= {"read", "refused"}, "\n".join(f"{n} × {what}" for what, n in outcomes.most_common())
    assert outcomes["refused"] > len(numbers) // 10, "hardly any damage was seen"
    taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert taken < MEMORY, f"reading took {taken >> 20} MiB"


# Instructions of pickles that make, call, nest and refer: what a hostile file is made of.
_INSTRUCTIONS = (
    *(b"cposix\nsystem\n(X\x04\x00\x00\x00trueltR", b"cbuiltins\neval\n(X\x03\x00\x00\x001+1ltR", b"(lp9\n", b"h\x00a"),
    *(b"]", b"}", b")", b"(", b"0", b"2", b"t", b"\x85", b"\x81", b"R", b"b", b"s", b"u", b"e", b"Q", b"h\x01", b"N"),
    *(b"j\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f", b"\x8d\xff\xff\xff\xff\xff\x00\x00\x00", b"\x8b\xff\xff\xff\x7f"),
    *(b"M\xff\xff", b"J\xff\xff\xff\x7f", b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"G\x7f\xf0" + bytes(6)),
)


def damaged_torch_file(content: bytes, generator: np.random.Generator) -> bytes:
    """A file of `torch.save` whose bytes are damaged, or a zip archive that is whole around a pickle that is not."""
    if content[:2] != b"PK" or generator.random() < 0.3:
        return damaged_bytes(content, generator)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in files if name.endswith("data.pkl"))
    pickled = files[name]
    for _ in range(int(generator.integers(1, 4))):
        if generator.random() < 0.5:
            pickled = damaged_bytes(pickled, generator)
        else:
            place = int(generator.integers(len(pickled) or 1))
            what = _INSTRUCTIONS[int(generator.integers(len(_INSTRUCTIONS)))]
            pickled = pickled[:place] + what * int(generator.choice([1, 1, 2, 1000])) + pickled[place:]
    files[name] = pickled
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for other, inner in files.items():
            archive.writestr(other, inner)
    return made.getvalue()
