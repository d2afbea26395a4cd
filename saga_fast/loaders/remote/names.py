"""The names of shards in one address: ranges and lists in braces, as WebDataset writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import product

from saga_fast.errors import SagaError
from saga_fast.runtime.address import public_address

MAX_SHARDS = 10**6
_GROUP = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,12})\.\.(\d{1,12})")


def expand_braces(pattern: str) -> list[str]:
    """The addresses that a pattern stands for, in order; one without braces stands for itself.

    ``{008..010}`` is 008, 009, 010 and ``{a,b}`` is a, b. Several groups are combined, the last one changes fastest.

    Raises:
        SagaError: braces that hold neither, or more than MAX_SHARDS addresses.
    """
    parts = [_choices(part, pattern) if number % 2 else [part] for number, part in enumerate(_GROUP.split(pattern))]
    count = math.prod(len(part) for part in parts)
    if not 0 < count <= MAX_SHARDS:
        raise SagaError(f"{public_address(pattern)} stands for {count} files: expected 1 to {MAX_SHARDS}")
    return ["".join(each) for each in product(*parts)]


def _choices(group: str, pattern: str) -> Sequence[str]:
    if bounds := _RANGE.fullmatch(group):
        first, last = bounds[1], bounds[2]
        if int(last) - int(first) >= MAX_SHARDS:
            raise SagaError(f"{public_address(pattern)} stands for more than {MAX_SHARDS} files")
        is_padded = any(len(bound) > 1 and bound.startswith("0") for bound in (first, last))
        width = max(len(first), len(last)) if is_padded else 0
        return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    if "," not in group:
        raise SagaError(
            f"{{{group}}} in {public_address(pattern)}: braces hold a range, {{000..099}}, or a list, {{a,b}}"
        )
    return group.split(",")
