"""Addresses are shown without what may be secret."""

import pytest

from saga_fast.runtime.address import public_address, redact

ADDRESSES = {
    "https://h/a/b.tar": "https://h/a/b.tar",
    "https://h:8080/a@b.tar": "https://h:8080/a@b.tar",
    "http://[::1]:80/a.tar": "http://[::1]:80/a.tar",
    "https://user:SECRET@h/a.tar?sig=SECRET#SECRET": "https://h/a.tar",
    "https://h/a.tar?name='x'&sig=SECRET": "https://h/a.tar",
    "https://h/a.tar?q=a b&sig=SECRET": "https://h/a.tar",
    "https://user:pa'SECRET@h/a.tar": "https://h/a.tar",
    "https://user:pa SECRET@h/a.tar": "https://h/a.tar",
    "https://user:SEC/RET@h/a.tar": "https://h/a.tar",
    "https://user:SEC?RET@h/a.tar": "https://...",
    "s3://key:SECRET@bucket/part-?.tar": "s3://bucket/part-?.tar",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_one_address(address: str) -> None:
    assert public_address(address) == ADDRESSES[address]
    assert public_address(ADDRESSES[address]) == ADDRESSES[address]


def test_paths_stay_as_they_are() -> None:
    assert public_address("data/a?b@c#d") == "data/a?b@c#d"


@pytest.mark.parametrize("address", [address for address in ADDRESSES if " " not in address])
@pytest.mark.parametrize("text", ["{}", "cannot read {}: gone?", "url='{}', status=404", "got [{}]", "<{}>", "{}, {}."])
def test_addresses_in_a_text(text: str, address: str) -> None:
    assert redact(text.replace("{}", address)) == text.replace("{}", ADDRESSES[address])


def test_texts_with_several_addresses() -> None:
    assert redact("s3://b/a,https://h/c?sig=SECRET x") == "s3://b/a,https://h/c x"
    shown = redact('{"a":"https://h/a","b":"https://u:SECRET@h/b","c":"https://h/c?t=SECRET"}')
    assert shown == '{"a":"https://h/a","b":"https://h/b","c":"https://h/c"}'
    assert redact("https://h/a|https://u:SECRET@h/b") == "https://h/a|https://h/b"


def test_texts_without_an_address() -> None:
    for text in ("", "nothing", "a: b", "://", "1://x y", "a://", " :// "):
        assert redact(text) == text


def test_long_texts() -> None:
    text = "a://" + 100_000 * "." + "x" + 100_000 * "." + "y z" + 100_000 * "b"
    assert redact(text) == text
