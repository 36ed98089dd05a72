"""Bytes of a mask in fewer, near their entropy, for files that are kept and not read in place.

    huffman    Deflate with nothing but Huffman's codes, of the bytes as they are (RFC 1951)
    gaps       the same, of how many bits stand before each of the rarer ones, and behind the last: the first byte is
               that bit, then for each gap 255 as often as it has 255 bits, and the rest of it

The shortest is taken. A bit is the least that Huffman's codes give a byte, which is why masks with few ones, or
few zeros, are written as gaps; and it is why no file can stand for more than 255 times its own bytes.
"""

import zlib
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
Coding = Literal["plain", "huffman", "gaps"]
CODINGS: tuple[Coding, ...] = get_args(Coding)

_WHOLE = 255  # A byte of so much does not end a gap.


def shortest(values: UInt8Array) -> tuple[Coding, UInt8Array]:
    """The shortest coding of bytes, uint8 [n], and what they are in it."""
    codings: dict[Coding, UInt8Array] = {"plain": values}
    if len(values):
        codings["huffman"] = _huffman(values)
        rarer, gaps = _gaps(values)
        codings["gaps"] = np.concatenate([np.array([rarer], np.uint8), _huffman(gaps)])
    coding = min(codings, key=lambda each: len(codings[each]))
    return coding, codings[coding]


def decoded(coding: Coding, content: UInt8Array, count: int) -> UInt8Array:
    """So many bytes out of what `shortest` made of them.

    Raises:
        ValueError: it is not that.
    """
    if count > _WHOLE * len(content):
        raise ValueError(f"{len(content)} bytes cannot stand for {count}")
    if coding == "plain":
        values = content
    elif coding == "huffman":
        values = _plain(content, count)
    else:
        values = _bits_at(content, count)
    if len(values) != count:
        raise ValueError(f"{len(values)} bytes, expected {count}")
    return values


def _huffman(values: UInt8Array) -> UInt8Array:
    coder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return np.frombuffer(coder.compress(values.tobytes()) + coder.flush(), np.uint8)


def _plain(content: UInt8Array, most: int) -> UInt8Array:
    """What Huffman's codes mean, at most so many bytes and one."""
    most = min(most, 8 * len(content))  # A bit each at least; Deflate could also repeat what it has, a thousandfold.
    try:
        return np.frombuffer(zlib.decompressobj(-zlib.MAX_WBITS).decompress(content.tobytes(), most + 1), np.uint8)
    except zlib.error as error:
        raise ValueError(str(error)) from error


def _gaps(values: UInt8Array) -> tuple[int, UInt8Array]:
    """The rarer bit, and how many of the others stand before each of it, and behind the last."""
    bits = np.unpackbits(values)
    rarer = int(2 * bits.sum(dtype=np.int64) <= len(bits))
    between = np.diff(np.flatnonzero(bits == rarer), prepend=-1, append=len(bits)) - 1
    ends = np.cumsum(between // _WHOLE + 1) - 1
    gaps = np.full(int(ends[-1]) + 1, _WHOLE, np.uint8)
    gaps[ends] = between % _WHOLE
    return rarer, gaps


def _bits_at(content: UInt8Array, count: int) -> UInt8Array:
    """Bytes whose rarer bits lie so far apart."""
    if not len(content) or content[0] > 1:
        raise ValueError("no bit says which is rarer")
    rarer, gaps = content[0], _plain(content[1:], 8 * count)
    ends = np.flatnonzero(gaps < _WHOLE)
    places = np.cumsum(gaps, dtype=np.int64)[ends] + np.arange(len(ends))
    if not len(ends) or ends[-1] != len(gaps) - 1 or places[-1] != 8 * count:
        raise ValueError(f"its gaps do not end behind {8 * count} bits")
    values = np.zeros(count, np.uint8)
    np.bitwise_or.at(values, places[:-1] // 8, (128 >> places[:-1] % 8).astype(np.uint8))
    return values if rarer else ~values
