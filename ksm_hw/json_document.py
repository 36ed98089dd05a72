"""JSON documents that other programs or a faulty disk may have written, read as dataclasses."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec

Form = TypeVar("Form")

# Values that are counted or measured: sizes in bytes, extents, numbers of things.
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class OtherVersion(Exception):
    """A document is of another format version than this ksm-hw reads: `found`."""

    def __init__(self, found: int) -> None:
        super().__init__(f"format version {found}")
        self.found = found


@dataclass(frozen=True)
class _Version:
    """What a document of whichever form has."""

    format_version: int


def read_json(text: str | bytes, form: type[Form]) -> Form:
    """A document whose values all have the types, and the ranges, that a dataclass gives its fields.

    Args:
        text: of the document.
        form: a dataclass, or any type that msgspec knows; fields that the document has beside are left out.

    Raises:
        ValueError: it is no JSON, or a value is missing or is another than `form` says; the message tells which.
    """
    try:
        return msgspec.json.decode(text, type=form)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def read_version(text: str | bytes, *versions: int) -> int:
    """The `format_version` of a document, which says which form it has: one of those given.

    Raises:
        ValueError: as `read_json`.
        OtherVersion: the document is of none of them; no more of it is looked at.
    """
    found = read_json(text, _Version).format_version
    if found not in versions:
        raise OtherVersion(found)
    return found


def read_versioned_json(text: str | bytes, form: type[Form], *versions: int) -> Form:
    """As `read_json`, of a document of one of the versions; raises as `read_version` too."""
    read_version(text, *versions)
    return read_json(text, form)


SEAL = "sha256"  # The last value of a sealed document.


@dataclass(frozen=True)
class _Seal:
    """What a document has that says its own hash; one of an older ksm-hw has none."""

    sha256: str | None = None


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document with the SHA-256 of its other values, by which `check_seal` finds each that was changed."""
    return {**document, SEAL: _sha256_of(document)}


def check_seal(text: str | bytes) -> None:
    """Checks that the values of a document are those that it was sealed with; one without a seal passes.

    Raises:
        ValueError: a value was changed, or it is no JSON object.
    """
    stated = read_json(text, _Seal).sha256
    if stated is None:
        return
    found = _sha256_of({name: value for name, value in json.loads(text).items() if name != SEAL})
    if found != stated:
        raise ValueError(f"its values have SHA-256 {found}, and it says {stated}")


def _sha256_of(document: Mapping[str, Any]) -> str:
    """SHA-256 of a document's values, however they are spaced and in whichever order."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
