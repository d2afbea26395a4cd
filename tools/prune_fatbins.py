"""Keep one architecture's GPU code in shared libraries, so that they compress to a fraction of their size.

Usage: python tools/prune_fatbins.py --arch 90 LIB.so ...

The section .nv_fatbin of a library holds fat binaries, each with one entry of machine code per architecture. The entry
that a GPU of the given architecture loads moves to the front of its fat binary and grows over the remaining entries,
whose bytes become zeros. No size or offset of the file changes, and a compressor removes the zeros.
"""

from __future__ import annotations

import argparse
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAGIC = 0xBA55ED50
MACHINE_CODE = 2
"""Kind of an entry; the other kind is PTX."""
HEADER, ENTRY = struct.Struct("<IHHQ"), struct.Struct("<HHIQ")
"""Magic, version, header's size and the entries' size; then of an entry kind, version, header's size and size."""
ARCHITECTURE = 28
"""Offset of the architecture in an entry's header."""


class Entry(NamedTuple):
    """An entry of a fat binary: where its header begins, and the sizes of header and content."""

    kind: int
    architecture: int
    begin: int
    header: int
    size: int


def fatbin_section(library: Path) -> tuple[int, int]:
    """The offset and the size of the section .nv_fatbin; (0, 0) without one."""
    sections = subprocess.run(["readelf", "-SW", library], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\.nv_fatbin\s+\S+\s+[0-9a-f]+\s+([0-9a-f]+)\s+([0-9a-f]+)", sections)
    return (int(found[1], 16), int(found[2], 16)) if found else (0, 0)


def entries_of(data: bytearray, begin: int, end: int) -> Iterator[Entry]:
    """The entries between two offsets."""
    while begin < end:
        kind, _, header, size = ENTRY.unpack_from(data, begin)
        (architecture,) = struct.unpack_from("<I", data, begin + ARCHITECTURE)
        yield Entry(kind, architecture, begin, header, size)
        begin += header + size


def prune(data: bytearray, begin: int, end: int, architecture: int) -> tuple[int, int]:
    """Prune the fat binaries between two offsets in place.

    Args:
        data: a library.
        begin, end: of its section .nv_fatbin.
        architecture: 90 for sm_90.

    Returns:
        The numbers of pruned fat binaries, and of those left alone because they have no such entry or several.
    """
    pruned, left = 0, 0
    while begin + HEADER.size <= end:
        magic, _, header, size = HEADER.unpack_from(data, begin)
        if magic != MAGIC:
            begin += 8  # padding
            continue
        first, last = begin + header, begin + header + size
        # A GPU of compute capability 9.0 loads code for 9.x up to 9.0.
        loaded = [
            entry
            for entry in entries_of(data, first, last)
            if entry.kind == MACHINE_CODE
            and entry.architecture // 10 == architecture // 10
            and entry.architecture <= architecture
        ]
        if len(loaded) == 1:
            (kept,) = loaded
            content = data[kept.begin : kept.begin + kept.header + kept.size]
            struct.pack_into("<Q", content, 8, size - kept.header)
            data[first:last] = content + bytes(size - len(content))
            pruned += 1
        else:
            left += 1
        begin = (last + 7) // 8 * 8
    return pruned, left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90, help="default: %(default)s")
    parser.add_argument("libraries", type=Path, nargs="+", metavar="LIB.so")
    options = parser.parse_args()
    for library in options.libraries:
        offset, size = fatbin_section(library)
        if size:
            data = bytearray(library.read_bytes())
            pruned, left = prune(data, offset, offset + size, options.arch)
            library.write_bytes(data)
            print(f"{library.name}: {pruned} fat binaries pruned, {left} left as they are")


if __name__ == "__main__":
    main()
