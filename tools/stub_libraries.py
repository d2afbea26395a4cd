"""Replace DALI's libraries for clouds, video and sound by stubs: decoding JPEGs never calls them.

Usage: python tools/stub_libraries.py DIR

DIR is the package ``nvidia/dali``; its libraries lie in ``DIR/.libs``. A stub has the name, the versions and those
symbols of a library that the package links to. Libraries that it does not link to directly are removed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

KEPT = ("libz-", "libgoogle", "libzstd")
"""Prefixes of the libraries that run code when they are loaded, or that decoding needs."""
FUNCTIONS = "TtWi"
"""Kinds of symbols, as nm names them, that are code; the others are data."""


class Symbol(NamedTuple):
    """A dynamic symbol; ``size`` in bytes, 8 where it is not given."""

    name: str
    version: str
    kind: str
    size: int


@dataclass
class Stub:
    """The symbols of a stub, and the version of each, "" for none."""

    functions: list[str] = field(default_factory=list)
    variables: dict[str, int] = field(default_factory=dict)
    versions: dict[str, list[str]] = field(default_factory=dict)

    def assembly(self) -> str:
        """Functions that end the process, and variables of zeros."""
        text = [f'.globl "{name}"\n.type "{name}",@function\n"{name}": ud2\n' for name in self.functions]
        data = [
            f'.globl "{name}"\n.type "{name}",@object\n.size "{name}",{size}\n.balign 16\n"{name}": .zero {size}\n'
            for name, size in self.variables.items()
        ]
        return "".join([".text\n", *text, ".data\n", *data, '.section .note.GNU-stack,"",@progbits\n'])

    def version_script(self) -> str:
        """The linker's map of versions."""
        nodes = []
        for version, names in self.versions.items():
            symbols = "global: " + "".join(f"{name}; " for name in names) if names else ""
            nodes.append(f"{version} {{ {symbols}}};\n")
        return "".join(nodes)


def output_of(*command: str | Path) -> str:
    """A command's output."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def symbols_of(library: Path, which: str) -> list[Symbol]:
    """The dynamic symbols; ``which`` is an option of nm, --defined-only or --undefined-only."""
    symbols = []
    for line in output_of("nm", "-D", "-S", which, library).splitlines():
        *numbers, kind, full = line.split()
        name, _, version = full.partition("@")
        symbols.append(Symbol(name, version.lstrip("@"), kind, int(numbers[1], 16) if len(numbers) == 2 else 8))
    return symbols


def versions_of(library: Path) -> list[str]:
    """The versions that a library defines, without its own name."""
    versions: list[str] = []
    for section in output_of("readelf", "-VW", library).split("Version definition section")[1:]:
        defined = section.split("Version needs section")[0]
        versions += re.findall(r"Flags: (?!BASE).*?Name: (\S+)", defined)
    return versions


def needed_by(library: Path) -> list[str]:
    """The names of the libraries that one links to."""
    return re.findall(r"NEEDED.*\[(.*?)\]", output_of("readelf", "-d", library))


def stub_of(library: Path, wanted: set[str]) -> Stub:
    """The stub of a library; its symbols are removed from ``wanted``."""
    stub = Stub(versions={version: [] for version in versions_of(library)})
    for symbol in symbols_of(library, "--defined-only"):
        if symbol.name not in wanted:
            continue
        wanted.discard(symbol.name)
        if symbol.version:
            stub.versions.setdefault(symbol.version, []).append(symbol.name)
        if symbol.kind in FUNCTIONS:
            stub.functions.append(symbol.name)
        else:
            stub.variables[symbol.name] = max(symbol.size, 8)
    return stub


def build(stub: Stub, library: Path) -> None:
    """Assemble a stub in the library's place."""
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder) / "stub.s", Path(folder) / "stub.map"
        source.write_text(stub.assembly())
        script.write_text(stub.version_script())
        options = [f"-Wl,-soname,{library.name}"] + ([f"-Wl,--version-script={script}"] if stub.versions else [])
        library.unlink()
        subprocess.run(["gcc", "-shared", "-nostdlib", "-o", library, source, *options], check=True)
        subprocess.run(["strip", "--strip-unneeded", library], check=True)


def replace_libraries(package: Path, kept: Sequence[str] = KEPT) -> None:
    """Replace or remove the libraries of a package, except for those whose names begin with one of ``kept``."""
    libraries = sorted((package / ".libs").iterdir())
    users = [*package.glob("*.so"), *(each for each in libraries if each.name.startswith(tuple(kept)))]
    wanted = {symbol.name for user in users for symbol in symbols_of(user, "--undefined-only")}
    needed = {name for user in users for name in needed_by(user)}
    for library in libraries:
        if library.name.startswith(tuple(kept)):
            continue
        if library.name not in needed:
            library.unlink()
            continue
        stub = stub_of(library, wanted)
        build(stub, library)
        print(f"{library.name}: a stub of {len(stub.functions)} functions and {len(stub.variables)} variables")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, metavar="DIR")
    replace_libraries(parser.parse_args().package)


if __name__ == "__main__":
    main()
