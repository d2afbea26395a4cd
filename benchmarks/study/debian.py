"""Pictures from Debian packages: fetched by name with ``apt-get download`` and unpacked, without root.

They are never shipped: some are GPL, and all are large.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from saga_fast.errors import SagaError

FASHION, BACKGROUNDS, STAMPS = "dataset-fashion-mnist", "mate-backgrounds", "tuxpaint-stamps-default"


def unpacked(package: str, cache: Path) -> Path:
    """The folder of a package's files, ``cache/package``; the first call fetches it.

    Raises:
        SagaError: the package cannot be had: no apt-get or dpkg-deb, no network, or no such package.
    """
    folder = cache.resolve() / package
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        _run(["apt-get", "download", package], package, folder, Path(scratch))
        (archive,) = Path(scratch).glob("*.deb")
        _run(["dpkg-deb", "--extract", archive.name, "files"], package, folder, Path(scratch))
        try:
            (Path(scratch) / "files").rename(folder)
        except OSError:
            if not folder.is_dir():  # another process may have fetched it in the meantime
                raise
    return folder


def _run(command: list[str], package: str, folder: Path, work: Path) -> None:
    """Run a command, whose failure is one line that says what to do."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        result = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        reason = f"{command[0]}: {error.strerror}"
    else:
        if result.returncode == 0:
            return
        reason = (result.stderr.strip().splitlines() or [f"{command[0]} failed"])[-1]
    raise SagaError(
        f"the Debian package {package} cannot be had ({reason}): "
        f"download it yourself and unpack it with dpkg-deb --extract FILE.deb {folder}"
    )
