"""Opening what is at an address."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saga_fast.errors import SagaError
from saga_fast.loaders.packages import require_packages
from saga_fast.loaders.remote.names import expand_braces
from saga_fast.loaders.shards import COMPRESSED, Shards
from saga_fast.loaders.source import Source
from saga_fast.runtime.address import public_address, scheme_of

if TYPE_CHECKING:
    from saga_fast.loaders.remote.store import Store

PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}
"""Schemes of addresses -> the package that reads them, besides fsspec."""


def open_remote(address: str, *, cache: Path | None = None) -> Source:
    """The images of the tar or parquet files at an address.

    Args:
        address: of one file; of several with braces, ``{000..099}`` or ``{a,b}``; for s3 and gs also a pattern with
            ``*``, ``?`` or ``[]``.
        cache: a folder of this machine that the files are copied to; None: tar files are read over the network.

    Raises:
        SagaError: another scheme, a package that is not installed, a file that cannot be read, parquet without
            ``cache``, or what :class:`Shards` or :class:`HuggingFaceImages` refuses.
    """
    scheme, root = scheme_of(address), public_address(address)
    if scheme not in PACKAGES:
        raise SagaError(f"{root}: addresses begin with {', '.join(f'{name}://' for name in PACKAGES)}")
    require_packages(f"{scheme}://", ("fsspec", "aiohttp", PACKAGES[scheme]), "pip install 'saga-fast[remote]'")
    from saga_fast.loaders.remote.download import downloaded
    from saga_fast.loaders.remote.shards import RemoteShards
    from saga_fast.loaders.remote.store import store_of

    store = store_of(address)
    try:
        addresses = store.run(_addresses(address, store))
        is_parquet = _are_parquet(addresses)
        if is_parquet and cache is None:
            raise SagaError(f"{root} is parquet, which is read from a copy: name its folder, data.cache or --cache")
        stats = store.run(store.stats(addresses))
    except OSError as error:
        raise SagaError(f"cannot read {error}") from error
    if cache is None:
        return RemoteShards(root, addresses, stats)
    files = downloaded(addresses, stats, cache)
    if not is_parquet:
        return Shards(root, files=files)
    from saga_fast.loaders.hugging_face import HuggingFaceImages

    return HuggingFaceImages(root, files=files, cache=cache)


async def _addresses(address: str, store: Store) -> list[str]:
    """The addresses of the files.

    Raises:
        SagaError: braces that stand for nothing, a pattern that matches nothing, or one where there is no listing.
        OSError: the files cannot be listed.
    """
    found: list[str] = []
    for pattern in expand_braces(address):
        is_web = scheme_of(pattern) in ("http", "https")
        if is_web and "*" in public_address(pattern):
            raise SagaError(
                f"{public_address(pattern)}: web servers have no listing, name the files as {{000..099}} or {{a,b}}"
            )
        if is_web or not any(sign in pattern for sign in "*?["):
            found.append(pattern)
            continue
        matching = await store.find(pattern)
        if not matching:
            raise SagaError(f"no file matches {public_address(pattern)}")
        found += matching
    return found


def _are_parquet(addresses: Sequence[str]) -> bool:
    """
    Raises:
        SagaError: a compressed tar, or files of both kinds.
    """
    names = [public_address(address) for address in addresses]
    for name in names:
        if name.lower().endswith(COMPRESSED):
            raise SagaError(f"{name} is compressed, and images are read from tar files where they lie: decompress it")
    are_parquet = {name.lower().endswith(".parquet") for name in names}
    if len(are_parquet) > 1:
        raise SagaError(f"{names[0]} and {names[-1]}: name tar files, or parquet files")
    return are_parquet.pop()
