"""Damage as by disks, networks and attackers, drawn from a generator so that a case can be repeated."""

from __future__ import annotations

import struct
import zlib

import numpy as np

INTERESTING = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x80\0\0\0",
    b"\0\1",
    b"\1\0",
)
"""Values for lengths and counts."""


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """``data`` with one to eight faults: bits flipped, bytes overwritten, parts cut, repeated, moved or zeroed."""
    content = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        if not content:
            break
        # Headers are at the beginning and are more fragile: a third of all faults.
        reach = min(len(content), 200) if rng.random() < 0.33 else len(content)
        at, length = int(rng.integers(reach)), int(rng.integers(1, 65))
        kind = int(rng.integers(7))
        if kind == 0:
            content[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            content[at : at + length] = rng.bytes(length)
        elif kind == 2:
            del content[at : at + length]
        elif kind == 3:
            content[at:at] = content[at : at + length]
        elif kind == 4:
            value = INTERESTING[int(rng.integers(len(INTERESTING)))]
            content[at : at + len(value)] = value
        elif kind == 5:
            content[at : at + length] = bytes(length)
        elif rng.random() < 0.3:
            del content[at:]
    return bytes(content)


def with_png_checksums(data: bytes) -> bytes:
    """A PNG file whose chunks have valid checksums, so that readers get to see the damage."""
    content, at = bytearray(data), 8
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        if at + 12 + length > len(content):
            break
        struct.pack_into(">I", content, at + 8 + length, zlib.crc32(content[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(content)
