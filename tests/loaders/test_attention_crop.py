"""AttentionCropFolder: D^att as a data set that a torch DataLoader and lightly take."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from lightly.loss import NTXentLoss
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from saga_fast.errors import SagaError
from saga_fast.loaders import AttentionCrop, AttentionCropFolder, BoxTable, ImageFolder

HEIGHT, WIDTH = 20, 24
HALF = (0.25, 0.5, 0.5, 0.5)


def table_of(source: ImageFolder, box: tuple[float, float, float, float], **columns: Any) -> BoxTable:
    n = len(source)
    metadata = {"dataset": columns.get("dataset", source.fingerprint)}
    boxes = np.tile(np.array(box, np.float32), (n, 1))
    return BoxTable(boxes, np.ones(n, np.bool_), np.zeros(n, np.int32), np.zeros(n, np.float32), metadata)


def pixels(image: Any) -> npt.NDArray[np.uint8]:
    return np.asarray(image)


@pytest.fixture(scope="module")
def source(images: Path) -> ImageFolder:
    return ImageFolder(images / "train")


@pytest.fixture(scope="module")
def folder(source: ImageFolder) -> AttentionCropFolder:
    return AttentionCropFolder(source.root, table_of(source, HALF))


# ---------------------------------------------------------------- the crop


@pytest.mark.parametrize(
    ("box", "min_side", "expected"),
    [
        ((0, 0, 1, 1), 0.0, (0, 0, 20, 24)),
        (HALF, 0.0, (10, 6, 20, 18)),
        ((0.3, 0.26, 0.1, 0.1), 0.0, (5, 7, 8, 10)),  # 7.2 to 9.6 and 5.2 to 7.2: floor and ceil
        ((0.5, 0.5, 1e-6, 1e-6), 0.0, (10, 12, 11, 13)),
        (HALF, 0.75, (5, 3, 20, 21)),  # moved up, to stay in the image
        ((0.5, 0.5, 0.1, 0.1), 0.5, (6, 7, 16, 20)),  # 0.3 to 0.8: 7.2 to 19.2
    ],
)
def test_attention_crop(box: tuple[float, ...], min_side: float, expected: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    top, left, bottom, right = expected
    crop = AttentionCrop(min_side=min_side)
    np.testing.assert_array_equal(pixels(crop(Image.fromarray(values), box)), values[top:bottom, left:right])
    tensor = torch.from_numpy(values).permute(2, 0, 1)
    assert torch.equal(crop(tensor, box), tensor[:, top:bottom, left:right])


@pytest.mark.parametrize("min_side", [-0.1, float("nan"), 1.1])
def test_attention_crop_refuses(min_side: float) -> None:
    with pytest.raises(ValueError, match=f"min_side .* {min_side}"):
        AttentionCrop(min_side=min_side)


# ---------------------------------------------------------------- the data set


def test_items_are_the_folders_images_cropped(folder: AttentionCropFolder, source: ImageFolder) -> None:
    assert len(folder) == len(source) == 41
    for index in (0, 17, 40, -1):
        image, label = folder[index]
        with Image.open(source.root / source.paths[index]) as stored:
            whole = pixels(stored.convert("RGB"))
        assert np.abs(pixels(image).astype(int) - whole[10:20, 6:18]).max() <= 1  # two builds of libjpeg
        assert label == source.labels[index]
    with pytest.raises(IndexError, match="41"):
        folder[41]


def test_views(source: ImageFolder) -> None:
    def two(image: Image.Image) -> list[tuple[int, int]]:
        return [image.size, image.size]

    table, whole, half = table_of(source, HALF), (24, 20), (12, 10)
    assert AttentionCropFolder(source.root, table, two)[0][0] == [half, half]
    assert AttentionCropFolder(source.root, table, two, views="mixed")[0][0] == [whole, half]
    torch.manual_seed(0)
    union = AttentionCropFolder(source.root, table, two, views="union", share=0.25)
    drawn = [tuple(union[index][0]) for index in range(41) for _ in range(10)]
    assert set(drawn) == {(whole, whole), (half, half)}
    assert 0.17 < drawn.count((half, half)) / len(drawn) < 0.33  # 4 standard deviations
    with pytest.raises(ValueError, match="at least two views, got Image"):
        AttentionCropFolder(source.root, table, views="mixed")[0]
    for options in ({"views": "none"}, {"views": "union", "share": 1.5}):
        with pytest.raises(ValueError, match=r"none|1\.5"):
            AttentionCropFolder(source.root, table, **options)


def test_target_transform(source: ImageFolder) -> None:
    dataset = AttentionCropFolder(source.root, table_of(source, HALF), target_transform=lambda label: f"class {label}")
    assert [dataset[index][1] for index in (0, 40)] == ["class 0", "class 1"]


def test_table_file_and_foreign_table(source: ImageFolder, tmp_path: Path) -> None:
    table_of(source, HALF).save(tmp_path / "att.safetensors")
    assert AttentionCropFolder(source.root, tmp_path / "att.safetensors")[0][0].size == (12, 10)
    with pytest.raises(SagaError, match=f"other.*{source.fingerprint}"):
        AttentionCropFolder(source.root, table_of(source, HALF, dataset="other"))


def test_unreadable_images_are_named(make_images: Callable[..., Path], tmp_path: Path) -> None:
    root = make_images(tmp_path / "images")
    dataset = AttentionCropFolder(root, BoxTable.whole(16))
    (root / "cat/003.jpg").write_bytes(b"\xff\xd8 not a JPEG")
    (root / "cat/004.jpg").unlink()
    for index in (3, 4):
        with pytest.raises(SagaError, match=f"cannot read .*cat/00{index}.jpg: "):
            dataset[index]


def side(image: Image.Image) -> torch.Tensor:
    return torch.tensor(image.size)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_set_table_reaches_persistent_workers(source: ImageFolder, context: str) -> None:
    """Boxes that a data set carried along would stay as they were in workers that live on (REFERENCE 5)."""
    dataset = AttentionCropFolder(source.root, table_of(source, HALF), side)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=41, num_workers=1, persistent_workers=True, multiprocessing_context=context
    )
    for box, expected in ((HALF, [12, 10]), ((0, 0, 1, 1), [24, 20]), ((0, 0, 0.5, 0.25), [12, 5])):
        dataset.set_table(table_of(source, box))
        ((sides, labels),) = loader
        assert sides.tolist() == [expected] * 41
        assert labels.tolist() == source.labels.tolist()


def test_lightly_trains_on_it(source: ImageFolder) -> None:
    """README's three lines, and what lightly does with them."""
    dataset = AttentionCropFolder(source.root, table_of(source, HALF), SimCLRTransform(input_size=16), views="mixed")
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=8, shuffle=True, drop_last=True)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 8))
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.05), NTXentLoss()
    losses = []
    for _ in range(4):
        for (view0, view1), _label in loader:
            assert view0.shape == view1.shape == (8, 3, 16, 16)
            loss = criterion(model(view0), model(view1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_torchvision_transforms_take_it(source: ImageFolder) -> None:
    transform = v2.Compose([v2.RandomResizedCrop(16), v2.PILToTensor()])
    view, _ = AttentionCropFolder(source.root, table_of(source, HALF), transform)[3]
    assert view.shape == (3, 16, 16) and view.dtype == torch.uint8


def test_too_little_shared_memory_is_said_in_one_line(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with the usual 64 MB of /dev/shm, or less."""

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)\nat a line of C++")

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    source = ImageFolder(images / "train")
    with pytest.raises(SagaError, match=r"need 0.0 MB of shared memory: enlarge /dev/shm.*No space left") as caught:
        AttentionCropFolder(source.root, BoxTable.whole(len(source)))
    assert "\n" not in str(caught.value)
