"""Packages that only some users need: imported late, and named with how to install them."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from saga_fast.errors import SagaError


def require_packages(what: str, packages: Iterable[str], install: str) -> None:
    """Import the packages that something needs.

    Args:
        what: what needs them, as the message begins.
        packages: names of modules.
        install: how to install them.

    Raises:
        SagaError: one cannot be imported.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise SagaError(f"{what} needs {package} ({error}): {install}") from error
