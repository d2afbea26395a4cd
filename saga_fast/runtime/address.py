"""Addresses of data on other machines, such as ``s3://bucket/train.tar``, and how they are shown without secrets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeGuard

Location = Path | str
"""A path, or an address as text: ``Path`` would make one slash of its two."""

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^\s'\"<>]*)")


def is_address(location: Location) -> TypeGuard[str]:
    """Whether a text is an address: a scheme and ``://``, and not a path of this machine."""
    return isinstance(location, str) and _ADDRESS.match(location) is not None


def as_location(text: Location) -> Location:
    """An address as it is, any other text as a path."""
    return text if is_address(text) else Path(text)


def scheme_of(address: str) -> str:
    """The scheme of an address: ``s3`` of ``s3://bucket/train.tar``."""
    return address.partition("://")[0].lower()


def redact(text: str) -> str:
    """The text with each address in it without what may be secret: ``user:password@``, and the query.

    In an address of s3 or gs a ``?`` is part of a pattern.

    Everything that is printed, listed or written of an address goes through here.
    """
    return _ADDRESS.sub(_public, text)


def _public(address: re.Match[str]) -> str:
    scheme, rest = address[1], address[2]
    if scheme.lower() not in ("s3", "gs"):
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
