"""tools/prune_fatbins.py keeps the machine code of one architecture, and no offset of the file changes."""

import struct

from tools.prune_fatbins import ENTRY, HEADER, MACHINE_CODE, MAGIC, entries_of, prune

PTX = 1


def entry(kind: int, architecture: int, content: bytes) -> bytes:
    header = bytearray(64)
    ENTRY.pack_into(header, 0, kind, 0x101, len(header), len(content))
    struct.pack_into("<I", header, 28, architecture)
    return bytes(header) + content


def fat_binary(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return HEADER.pack(MAGIC, 1, HEADER.size, len(body)) + body


def test_one_entry_is_kept_at_its_fat_binarys_size() -> None:
    codes = [entry(MACHINE_CODE, 80, b"a" * 24), entry(MACHINE_CODE, 90, b"b" * 40), entry(PTX, 90, b"c" * 16)]
    several = fat_binary(entry(MACHINE_CODE, 80, b"d" * 8), entry(PTX, 80, b"e" * 8))
    before = b"x" * 8 + fat_binary(*codes) + bytes(8) + several
    data = bytearray(before)
    assert prune(data, 8, len(data), 90) == (1, 1)
    assert len(data) == len(before)
    assert data.endswith(several)  # without code for sm_90 it stays
    begin, end = 8 + HEADER.size, len(data) - 8 - len(several)
    (kept,) = entries_of(data, begin, end)
    assert (kept.kind, kept.architecture, kept.begin + kept.header + kept.size) == (MACHINE_CODE, 90, end)
    content = data[kept.begin + kept.header : end]
    assert content == b"b" * 40 + bytes(len(content) - 40)
