"""Numba's cache of compiled kernels, where a missing folder or a damaged file costs time and nothing else."""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba.core import caching

log = logging.getLogger(__name__)
DIGEST_BYTES = 32
_said: set[str] = set()


def cache_of(function: Callable[..., Any]) -> Any:
    """The cache of a function; one that keeps nothing if no folder can be written, with one warning."""
    try:
        return _FunctionCache(function)
    except (RuntimeError, OSError) as error:  # Numba's "no locator available"
        _say_once(f"kernels are compiled in each process, their cache cannot be written: {error}")
        return caching.NullCache()


class _CheckedFile(caching.IndexDataCacheFile):
    """Cache files with a checksum: damaged machine code would end the process, or compute something else."""

    def _save_data(self, name: str, data: Any) -> None:
        content = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(content + hashlib.sha256(content).digest())

    def _load_data(self, name: str) -> Any:
        data = Path(self._data_path(name)).read_bytes()
        if hashlib.sha256(data[:-DIGEST_BYTES]).digest() != data[-DIGEST_BYTES:]:
            raise ValueError(f"{name} is damaged")
        return super()._load_data(name)  # which ignores what follows its content


class _HomeLocator(caching.UserWideCacheLocator):
    """The user's cache folder; without a home folder Numba would make a folder named "~" where the command runs."""

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        return super().from_function(py_func, py_file) if Path("~").expanduser().is_absolute() else None


class _TemporaryLocator(caching.UserProvidedCacheLocator):
    """A folder of this user alone in the temporary folder: cache files are pickles, which run what others put there."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        self._py_file, self._lineno = py_file, py_func.__code__.co_firstlineno
        self._cache_path = str(_temporary_folder() / self.get_suitable_cache_subpath(py_file))

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        try:
            self = cls(py_func, py_file)
            self.ensure_cache_path()
        except OSError:
            return None
        _say_once(f"compiled kernels are kept in {_temporary_folder()}: the package and the home are not writable")
        return self


class _CacheImpl(caching.CompileResultCacheImpl):
    _locator_classes: list[type[object]] = [  # noqa: RUF012 - as Numba declares it
        caching.UserProvidedCacheLocator,
        caching.InTreeCacheLocator,
        _HomeLocator,
        _TemporaryLocator,
    ]


class _FunctionCache(caching.FunctionCache):
    """A function's cache: what cannot be read is compiled anew, and what cannot be written is not kept."""

    _impl_class = _CacheImpl

    def __init__(self, py_func: Any) -> None:
        super().__init__(py_func)
        impl = self._impl
        self._cache_file = _CheckedFile(
            impl.locator.get_cache_path(), impl.filename_base, impl.locator.get_source_stamp()
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except MemoryError:
            raise
        except Exception as error:  # damaged bytes make pickle raise anything
            folder = Path(self.cache_path).parent
            _say_once(f"compiled kernels in {folder} cannot be read ({error}): compiling them")
            try:
                self.flush()
            except OSError:
                self.disable()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            self.disable()
            _say_once(f"compiled kernels cannot be kept in {self.cache_path}: {error.strerror}")


def _temporary_folder() -> Path:
    """
    Raises:
        OSError: it cannot be made, or somebody else can write to it.
    """
    folder = Path(tempfile.gettempdir()) / f"saga-fast-numba-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise OSError(f"{folder} is not this user's alone")
    return folder


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        log.warning("%s", message)
