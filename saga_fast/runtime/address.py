"""Addresses of data on other machines, such as ``s3://bucket/train.tar``, and how they are shown without secrets."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import TypeGuard

Location = Path | str
"""A path, or an address as text: ``Path`` would make one slash of its two."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SPACE = re.compile(r"([\s<>])")
_SCHEME_CHARACTERS = f"{string.ascii_letters}{string.digits}+.-"


def is_address(location: Location) -> TypeGuard[str]:
    """Whether a text is an address: a scheme and ``://``, and not a path of this machine."""
    return isinstance(location, str) and _SCHEME.match(location) is not None


def as_location(text: Location) -> Location:
    """An address as it is, any other text as a path."""
    return text if is_address(text) else Path(text)


def scheme_of(address: str) -> str:
    """The scheme of an address: ``s3`` of ``s3://bucket/train.tar``."""
    return address.partition("://")[0].lower()


def public_address(location: Location) -> str:
    """An address without what may be secret, ``user:password@`` and the query; a path as it is.

    In an address of s3 or gs a ``?`` is part of a pattern.
    """
    text = str(location)
    if not _SCHEME.match(text):
        return text
    scheme, _, rest = text.partition("://")
    if scheme.lower() not in ("s3", "gs"):
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    host = host.rpartition("@")[2]
    if re.fullmatch(r"[^:]*(:\d*)?|\[.*", host):
        return f"{scheme}://{host}{slash}{path}"
    # What follows the colon is no port: a password with a "/" or "?" in it, which ends at an "@" if at all.
    return f"{scheme}://{rest.rpartition('@')[2]}" if "@" in rest else f"{scheme}://..."


def redact(text: str) -> str:
    """The text with each address in it as :func:`public_address` has it, as far as the next space or the next address.

    All text that is printed, listed or written goes through here, for the addresses that libraries put into messages;
    what is known to be one address goes through :func:`public_address`.
    """
    first, *rests = text.split("://")
    if not rests:
        return text
    before, scheme = _split_scheme(first)
    result = [before]
    for number, rest in enumerate(rests):
        body, next_scheme = _split_scheme(rest) if number < len(rests) - 1 else (rest, "")
        address, space, behind = _SPACE.split(body, 1) if _SPACE.search(body) else (body, "", "")
        bare = address.rstrip("'\"),.;:]}")
        shown = public_address(f"{scheme}://{bare}")
        result += [shown, address[len(bare) :], space, behind]
        scheme = next_scheme
    return "".join(result)


def _split_scheme(text: str) -> tuple[str, str]:
    """The text, and the scheme at its end."""
    rest = text.rstrip(_SCHEME_CHARACTERS)
    return rest, text[len(rest) :]
