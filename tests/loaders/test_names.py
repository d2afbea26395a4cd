"""Names: a list of strings in one block of text."""

import hashlib

import pytest

from saga_fast.loaders.names import NAMES_AT_ONCE, Names
from saga_fast.loaders.source import fingerprint

STRINGS = ["a/1.jpg", "a/b c.jpg", "ü/ß.jpg", "not utf-8 \udcff.jpg", "", "z.jpg"]


def test_names_are_the_strings() -> None:
    names = Names.of(STRINGS)
    assert len(names) == len(STRINGS)
    assert list(names) == STRINGS
    assert [names[index] for index in range(-6, 6)] == [*STRINGS, *STRINGS]
    assert names[1:5:2] == STRINGS[1:5:2]
    assert names == STRINGS
    assert names == Names.of(STRINGS)
    assert names != Names.of(STRINGS[:-1])
    assert "ü/ß.jpg" in names
    assert names.index("z.jpg") == 5
    with pytest.raises(IndexError):
        names[6]


def test_more_names_than_are_decoded_at_a_time() -> None:
    strings = [f"{number}.jpg" for number in range(NAMES_AT_ONCE + 10)]
    assert list(Names.of(strings)) == strings


def test_a_fingerprint_is_that_of_the_strings() -> None:
    digest = hashlib.sha256(b"".join(name.encode("utf-8", "surrogateescape") + b"\0" for name in STRINGS))
    assert fingerprint(STRINGS) == fingerprint(Names.of(STRINGS)) == f"6-{digest.hexdigest()[:16]}"
    assert fingerprint([]) == fingerprint(Names.of([])) == f"0-{hashlib.sha256().hexdigest()[:16]}"


def test_a_zero_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="zero byte"):
        Names.of(["a\0b"])
