"""Files that compiled code reads have the bytes that Python reads, and what it does not read is read by Python."""

import os
import resource
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from saga_fast.loaders import ImageFolder
from saga_fast.loaders.encoded import FIRST_GUESS, EncodedImages, in_local_files, read_images
from saga_fast.loaders.shards import Shards
from saga_fast.loaders.source import Source


def folder_of(root: Path, files: dict[str, bytes]) -> ImageFolder:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return ImageFolder(root)


def noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def assert_read(source: Source, indices: npt.NDArray[np.int64]) -> EncodedImages:
    """All images are read, in any order and more than once."""
    images = read_images(source, indices)
    assert len(images) == len(indices) and not images.errors
    assert [images[n].tobytes() for n in range(len(images))] == [source.read(int(index)) for index in indices]
    return images


@pytest.mark.parametrize("size", [1, FIRST_GUESS - 1, 3 * FIRST_GUESS, 11 * FIRST_GUESS])
def test_files_of_any_lengths(tmp_path: Path, size: int) -> None:
    files = {f"{n}/{'ü' * n}.jpg": noise(n, size + n) for n in range(1, 5)}
    source = folder_of(tmp_path / "a folder", files | {"5/long.jpg": noise(9, 40 * FIRST_GUESS)})
    assert in_local_files(source)
    assert_read(source, np.array([2, 0, 4, 1, 3, 4]))
    assert len(read_images(source, np.empty(0, np.int64))) == 0


def test_images_in_tar_files(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", {f"c/{n:02}.jpg": noise(n, 1000 * n + 1) for n in range(12)})
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for n in range(6 * number, 6 * number + 6):
                tar.add(tmp_path / f"images/c/{n:02}.jpg", f"c/{n:02}.jpg")
    (tmp_path / "images").rename(tmp_path.parent / f"{tmp_path.name} elsewhere")
    source = Shards(tmp_path)
    assert in_local_files(source)
    images = assert_read(source, np.arange(12)[::-1])
    with (tmp_path / "1.tar").open("r+b") as tar_file:
        tar_file.truncate(1024)
    cut = read_images(source, np.array([0, 11, 1]))
    assert list(cut.errors) == [1] and "1.tar ends within c/11.jpg" in cut.errors[1]
    assert cut.lengths[1] == 0 and cut[2].tobytes() == images[10].tobytes()


def test_a_tar_that_claims_terabytes_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "images", {f"{n}.jpg": noise(n, 1000) for n in range(2)})
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for n in range(2):
            tar.add(tmp_path / f"images/{n}.jpg", f"{n}.jpg")
    source = Shards(tmp_path / "0.tar")
    file_range = Shards.file_range
    monkeypatch.setattr(
        Shards,
        "file_range",
        lambda source, n: file_range(source, n)._replace(size=2**60) if n else file_range(source, n),
    )
    images = read_images(source, np.arange(2))
    assert images[0].tobytes() == noise(0, 1000)
    assert list(images.errors) == [1] and f"{2**60} bytes are more than" in images.errors[1]


def test_what_is_no_file_has_an_error_and_spoils_no_other_image(tmp_path: Path) -> None:
    names = [f"{n}.jpg" for n in range(7)]
    source = folder_of(tmp_path, {name: noise(n, 5000) for n, name in enumerate(names)})
    expected = [source.read(n) for n in range(7)]
    for name in names[1:6]:
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / names[2])
    (tmp_path / names[3]).mkdir()
    (tmp_path / names[4]).symlink_to("/dev/zero")
    (tmp_path / names[5]).write_bytes(b"")
    images = read_images(source, np.arange(7))
    assert list(images.errors) == [1, 2, 3, 4]
    assert "No such file" in images.errors[1]
    assert all("not a regular file" in images.errors[n] for n in (2, 3, 4))
    assert images.lengths.tolist() == [5000, 0, 0, 0, 0, 0, 5000]
    assert [images[0].tobytes(), images[6].tobytes()] == [expected[0], expected[6]]


def test_exhausted_descriptors_say_nothing_of_an_image(tmp_path: Path) -> None:
    source = folder_of(tmp_path, {f"{n}.jpg": noise(n, 100) for n in range(3)})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    held = [os.open(tmp_path, os.O_RDONLY) for _ in range(3)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, hard))
        with pytest.raises(OSError, match="Too many open files"):
            read_images(source, np.arange(3))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for handle in held:
            os.close(handle)
    assert_read(source, np.arange(3))
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


def test_a_source_without_local_files_is_read_image_by_image(tmp_path: Path) -> None:
    class InMemory:
        def __init__(self, folder: ImageFolder) -> None:
            self.paths, self.labels, self.classes = folder.paths, folder.labels, folder.classes
            self.root, self.fingerprint = folder.root, folder.fingerprint
            self._files = [folder.read(n) for n in range(len(folder))]

        def __len__(self) -> int:
            return len(self._files)

        def read(self, index: int) -> bytes:
            return self._files[index]

    source = InMemory(folder_of(tmp_path, {f"{n}.jpg": noise(n, 300 * n + 1) for n in range(4)}))
    assert not in_local_files(source)
    assert_read(source, np.array([3, 1, 1]))


def test_a_subclass_that_reads_otherwise_is_read_by_its_own_method(tmp_path: Path) -> None:
    class Reversed(ImageFolder):
        def read(self, index: int) -> bytes:
            return super().read(index)[::-1]

    class Relabelled(ImageFolder):
        pass

    folder_of(tmp_path, {f"{n}.jpg": noise(n, 300) for n in range(2)})
    assert not in_local_files(Reversed(tmp_path)) and in_local_files(Relabelled(tmp_path))
    assert assert_read(Reversed(tmp_path), np.arange(2))[1].tobytes() == noise(1, 300)[::-1]


def test_images_read_one_by_one_are_copied_once(tmp_path: Path) -> None:
    class Fresh(ImageFolder):
        def read(self, index: int) -> bytes:
            return noise(index, 2**20)

    source = Fresh(folder_of(tmp_path, {f"{n}.jpg": b"" for n in range(4)}).root)
    tracemalloc.start()
    images = read_images(source, np.arange(4))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert images.memory.flags.writeable  # torch warns of tensors that may not be written to
    assert peak < 2.5 * images.lengths.sum()
