"""Web addresses that are signed: their query is another one each time that they are made, of the same file."""

from __future__ import annotations

from saga_fast.loaders.remote.store import Stat
from saga_fast.runtime.address import scheme_of

_SIGNED = ("algorithm", "credential", "date", "expires", "security-token", "signature", "signedheaders")
_SIGNATURES = {
    ("x-amz-signature", "x-amz-credential"): {f"x-amz-{name}" for name in _SIGNED},
    ("x-goog-signature", "x-goog-credential"): {f"x-goog-{name}" for name in _SIGNED},
    ("signature", "awsaccesskeyid"): {"signature", "awsaccesskeyid", "expires", "x-amz-security-token"},
    ("signature", "googleaccessid"): {"signature", "googleaccessid", "expires"},
    ("signature", "key-pair-id"): {"signature", "key-pair-id", "expires", "policy"},
    ("sig", "sv"): {
        *("sig", "sv", "ss", "srt", "sr", "sp", "st", "se", "sip", "spr"),
        *("skoid", "sktid", "skt", "ske", "sks", "skv"),
    },
}
"""Names that a signature of S3, Google Cloud, CloudFront or Azure has in any case -> all that belong to it."""


def unsigned(address: str) -> str:
    """The address without a known signature; what else is in its query may choose another file, and stays."""
    base, _, query = address.partition("?")
    if not query or scheme_of(address) not in ("http", "https"):
        return address
    parts = query.split("&")
    names = [part.partition("=")[0].lower() for part in parts]
    known = set().union(*(all_names for sure, all_names in _SIGNATURES.items() if set(sure) <= set(names)))
    rest = "&".join(part for part, name in zip(parts, names, strict=True) if name not in known)
    return f"{base}?{rest}" if rest else base


def version_key(address: str, stat: Stat) -> str:
    """What tells one version of a file from other versions and other files; it may hold secrets."""
    return f"{unsigned(address) if stat.version else address}\n{stat.size}\n{stat.version}"
