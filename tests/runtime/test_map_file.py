"""Files as memory."""

from pathlib import Path

import numpy as np
import pytest

from saga_fast.runtime.files import map_file


def test_a_map_that_is_written_to_leaves_the_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    values = np.frombuffer(map_file(tmp_path / "x", writable=True), np.uint8)
    values[1] = 0
    assert bytes(values) == b"a\0c"
    assert bytes(map_file(tmp_path / "x")) == b"abc"
    assert not np.frombuffer(map_file(tmp_path / "x"), np.uint8).flags.writeable


@pytest.mark.parametrize("writable", [False, True])
def test_a_map_may_be_larger_than_the_memory(tmp_path: Path, writable: bool) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(2**42)  # takes no room on the disk
    memory = map_file(tmp_path / "x", writable=writable)
    assert (len(memory), memory[2**42 - 1]) == (2**42, 0)
