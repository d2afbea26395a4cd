"""Memory in which the threads of the CPU decode."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from saga_fast.loaders import cpu_crops
from saga_fast.loaders.cpu_crops import TaskMemory


def test_a_thread_decodes_into_the_same_memory_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_crops, "KEPT", 2000)
    memory = TaskMemory()
    first, smaller, grown = (memory.of_this_thread(size) for size in (1000, 0, 1200))
    assert [len(block) for block in (first, smaller, grown)] == [1000, 0, 1200]
    assert first.data_ptr() == grown.data_ptr()
    with ThreadPoolExecutor(1) as pool:
        other: torch.Tensor = pool.submit(memory.of_this_thread, 1000).result()
    assert other.data_ptr() != first.data_ptr()
    assert len(memory.of_this_thread(2000)) == 2000


def test_memory_for_large_images_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_crops, "KEPT", 2000)
    memory = TaskMemory()
    kept = memory.of_this_thread(1000)
    large = memory.of_this_thread(2001)
    assert len(large) == 2001 and large.data_ptr() != kept.data_ptr()
    assert memory.of_this_thread(1000).data_ptr() == kept.data_ptr()
