"""Streaming attention: a view of the whole image gives the pass's boxes; maps of crops lie where the crops were."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from test_attention import SCORES, SIZE, SMALL_RESNET, open_images
from torch import Tensor, nn

from saga_fast.attention import boxes_of_batch, build_box_table
from saga_fast.attention_config import AttentionConfig
from saga_fast.channel_weights import Score
from saga_fast.encoder import EncoderConfig
from saga_fast.errors import SagaError
from saga_fast.loaders import Batch, BoxTable
from saga_fast.methods import METHODS, Method, build_method
from saga_fast.precision import normalized
from saga_fast.streaming import StreamedMaps, _Place

COUNT = 24
GRID = 5  # of SMALL_RESNET at SIZE


@pytest.fixture(scope="module")
def batch(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """24 images of 40 px, whole."""
    root = make_images(tmp_path_factory.mktemp("streamed"), per_class=12, size=(SIZE, SIZE), ending=".png", seed=1)
    return next(iter(open_images(root)))


def make_model(method: str = "simclr") -> Method:
    """A random network in eval mode, whose batch-norm statistics are not the initial zeros and ones."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"negatives": 4} if method in ("insdis", "pirl", "cmc") else {}
    if method == "pirl":
        small |= {"jigsaw_size": 24, "jigsaw_patch": 8}
    if method.startswith("moco"):
        small |= {"queue_size": 16}
    model = build_method(METHODS[method].Config(name=method, **small), EncoderConfig(**SMALL_RESNET), num_images=COUNT)
    for module in model.projector.modules():
        if isinstance(module, nn.Linear):
            nn.init.uniform_(module.weight, -0.5, 1.0)
    with torch.no_grad():
        for _ in range(3):
            model.encoder(torch.rand(16, 3, 32, 32))
    return model.eval()


def stream_of(model: Method, score: Score = "activation", *, decay: float = 0.5) -> StreamedMaps:
    attention = AttentionConfig(renew="streaming", score=score, decay=decay, delta=0.5)
    stream = StreamedMaps(model, COUNT, size=SIZE, attention=attention)
    stream.sizes[:] = SIZE
    return stream


def whole_windows(views: int, count: int = COUNT) -> npt.NDArray[np.int32]:
    return np.tile(np.array([0, 0, SIZE, SIZE], np.int32), (count, views, 1))


def step(model: Method, stream: StreamedMaps, images: Tensor, index: Tensor, windows: Any, flips: Any = None) -> None:
    """A training step without its update: images (B, V, 3, S, S)."""
    more = [torch.rand(len(images), group.count, 3, group.size, group.size) for group in model.more_views]
    stream.watch()
    model(images, index, *more)
    stream.add(index, windows, torch.zeros(images.shape[:2], dtype=torch.bool) if flips is None else flips)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("method", sorted(name for name in METHODS if METHODS[name].trainable))
def test_whole_views_give_the_boxes_of_the_pass(batch: Batch, method: str, score: Score) -> None:
    """Every method, every score, the network in the mode of the pass: eval."""
    model, cpu = make_model(method), torch.device("cpu")
    stream = stream_of(model, score)
    images = normalized(batch.views, model.encoder, cpu).expand(-1, model.num_views, -1, -1, -1)
    step(model, stream, images, batch.index, whole_windows(model.num_views))
    options: dict[str, Any] = {"normalize": "minmax", "mirror": False, "precision": "fp32", "channels_last": False}
    boxes, found, label, value = boxes_of_batch(model, batch, delta=0.5, size=SIZE, score=score, **options)
    table = stream.table({"of": "maps"}, others=None)
    assert found.float().mean() > 0.5
    np.testing.assert_array_equal(table.found, found)
    np.testing.assert_array_equal(table.pseudo_label, label)
    np.testing.assert_allclose(table.score, value, rtol=1e-5)
    # A pixel may lie on the threshold to the last bit; the images here have none that do.
    np.testing.assert_allclose(table.boxes, boxes, atol=1e-6)
    assert table.metadata == {"of": "maps"}


@pytest.mark.parametrize("score", SCORES)
def test_mirrored_views_are_put_back(batch: Batch, score: Score) -> None:
    """The encoder sees the mirror images, and the boxes are those of mirroring its maps back."""
    model = make_model()
    images = normalized(batch.views, model.encoder, torch.device("cpu")).expand(-1, 2, -1, -1, -1)
    stream, other = stream_of(model, score), stream_of(model, score)
    flips = torch.ones(COUNT, 2, dtype=torch.bool)
    step(model, stream, images, batch.index, whole_windows(2), flips)
    step(model, other, images, batch.index, whole_windows(2))
    mirrored, straight = stream.table({}, others=None).boxes, other.table({}, others=None).boxes
    np.testing.assert_allclose(mirrored[:, 0], 1.0 - straight[:, 0] - straight[:, 2], atol=1e-6)
    np.testing.assert_allclose(mirrored[:, 1:], straight[:, 1:], atol=1e-6)
    assert np.abs(mirrored - straight).max() > 0.1


def painted(window: tuple[int, int, int, int], cells: Tensor, *, flip: bool) -> tuple[Tensor, Tensor]:
    """A view's map painted pixel by pixel into a 40 px image, and where: the slow way. The window's sides are multiples
    of the map's."""
    top, left, height, width = window
    picture, mask = torch.zeros(SIZE, SIZE), torch.zeros(SIZE, SIZE)
    for y in range(height):
        for x in range(width):
            seen_at = width - 1 - x if flip else x
            cell = cells[y * cells.shape[0] // height, seen_at * cells.shape[1] // width]
            picture[top + y, left + x], mask[top + y, left + x] = cell, 1.0
    return picture, mask


def test_maps_lie_where_the_views_were() -> None:
    """Sums and weights of a 5 x 5 grid against painting pixels, for windows of all kinds, flipped and not."""
    rng = np.random.default_rng(0)
    windows, flips, maps = [], [], []
    for _ in range(30):
        height, width = 3 * rng.integers(1, 14, 2)
        windows.append((rng.integers(0, SIZE - height + 1), rng.integers(0, SIZE - width + 1), height, width))
        flips.append(bool(rng.integers(2)))
        maps.append(torch.from_numpy(rng.random((3, 3))).float())
    place = _Place(
        np.array(windows, np.int32)[:, None],
        np.full((30, 2), SIZE, np.int32),
        torch.tensor(flips)[:, None],
        grid=(GRID, GRID),
        cells=(3, 3),
        device=torch.device("cpu"),
    )
    placed = torch.einsum("bvgi,bvij,bvhj->bgh", place.rows, torch.stack(maps)[:, None], place.columns)
    covered = torch.einsum("bvg,bvh->bgh", place.rows.sum(3), place.columns.sum(3))
    side = SIZE // GRID
    for n, (window, flip) in enumerate(zip(windows, flips, strict=True)):
        picture, mask = painted(window, maps[n], flip=flip)
        for total, pixels in ((placed[n], picture), (covered[n], mask)):
            expected = pixels.view(GRID, side, GRID, side).mean((1, 3))
            torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)


def test_border_cells() -> None:
    """Cells whose centre is in the grid's outermost rows and columns; a view of the middle has none."""
    windows = np.array([[[0, 0, 40, 40], [10, 10, 20, 20], [0, 20, 20, 20]]], np.int32)
    flips = torch.tensor([[False, False, True]])
    place = _Place(windows, np.full((1, 2), SIZE), flips, grid=(5, 5), cells=(5, 5), device=torch.device("cpu"))
    ring = torch.ones(5, 5, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    assert torch.equal(place.border[0, 0], ring)
    assert not place.border[0, 1].any()
    corner = torch.zeros(5, 5, dtype=torch.bool)  # top right, seen mirrored: its right columns come first
    corner[:2], corner[:, :2] = True, True
    assert torch.equal(place.border[0, 2], corner)


def test_background_needs_the_border(batch: Batch) -> None:
    """An image of which no view shows the border leaves nothing behind; its earlier map stays."""
    model = make_model()
    stream = stream_of(model, "background")
    images = normalized(batch.views, model.encoder, torch.device("cpu")).expand(-1, 2, -1, -1, -1)
    windows = whole_windows(2)
    windows[:12] = [10, 10, 20, 20]
    step(model, stream, images, batch.index, windows)
    np.testing.assert_array_equal(stream.seen, np.arange(COUNT) >= 12)
    before = stream.table({}, others=None)
    windows[:] = [10, 10, 20, 20]
    step(model, stream, images, batch.index, windows)
    np.testing.assert_array_equal(stream.table({}, others=None).boxes, before.boxes)


def test_decay_and_what_was_never_covered(batch: Batch) -> None:
    """S and W keep ``decay`` at each visit of their own image; uncovered cells count as the least of the others."""
    model = make_model()
    stream = stream_of(model, decay=0.25)
    images = normalized(batch.views, model.encoder, torch.device("cpu")).expand(-1, 2, -1, -1, -1)
    first, both = torch.arange(12), torch.arange(COUNT)
    step(model, stream, images[:12], first, whole_windows(2, 12))
    once = {name: rows.clone() for name, rows in stream.state().items()}
    step(model, stream, images, both, whole_windows(2))
    twice = stream.state()
    torch.testing.assert_close(twice["sums"][:12], 1.25 * once["sums"][:12])
    assert torch.equal(twice["weights"][:12], torch.full((12, GRID, GRID), 2.0 * 1.25))
    assert torch.equal(twice["weights"][12:], torch.full((12, GRID, GRID), 2.0))

    left = stream_of(model)
    windows = whole_windows(2)
    windows[..., 3] = SIZE // 2  # the left half
    step(model, left, images, both, windows)
    boxes = left.table({}, others=None).boxes
    assert ((boxes[:, 0] + boxes[:, 2]) < 0.75).all()  # bicubic interpolation reaches half a cell beyond


def test_a_map_that_is_not_finite_leaves_nothing(batch: Batch) -> None:
    """One such step, which a loss scaler skips and nobody else notices, must not spoil the image for good."""
    model = make_model()
    stream = stream_of(model)
    images = normalized(batch.views, model.encoder, torch.device("cpu")).expand(-1, 2, -1, -1, -1).clone()
    step(model, stream, images, batch.index, whole_windows(2))
    before = stream.table({}, others=None)
    images[3] = torch.inf
    images[4, 1] = torch.nan
    step(model, stream, images, batch.index, whole_windows(2))
    after = stream.table({}, others=None)
    np.testing.assert_allclose(after.boxes, before.boxes, atol=1e-6)
    assert all(bool(rows.isfinite().all()) for name, rows in stream.state().items() if name in ("sums", "weights"))


def test_cells_that_have_faded_are_not_covered(batch: Batch) -> None:
    """After some 200 visits elsewhere a cell's weight is no number to divide by."""
    model = make_model()
    stream, left = stream_of(model), stream_of(model)
    images = normalized(batch.views, model.encoder, torch.device("cpu")).expand(-1, 2, -1, -1, -1)
    windows = whole_windows(2)
    windows[..., 3] = SIZE // 2
    step(model, stream, images, batch.index, whole_windows(2))
    for _ in range(110):
        stream.watch()
        with torch.no_grad():
            model.encoder(images.flatten(0, 1))
        stream.add(batch.index, windows, torch.zeros(COUNT, 2, dtype=torch.bool))
    step(model, left, images, batch.index, windows)
    faded = stream.state()["weights"][:, :, -1]
    assert ((faded > 0.0) & (faded < 1e-30)).all()
    np.testing.assert_allclose(stream.table({}, others=None).boxes, left.table({}, others=None).boxes, atol=1e-6)


def test_images_that_were_not_seen_keep_their_rows(batch: Batch) -> None:
    model = make_model()
    stream = stream_of(model)
    images = normalized(batch.views, model.encoder, torch.device("cpu")).expand(-1, 2, -1, -1, -1)
    step(model, stream, images[:5], batch.index[:5], whole_windows(2, 5))
    table = stream.table({}, others=None)
    assert not table.found[5:].any()
    assert (table.pseudo_label[5:] == -1).all()
    earlier = BoxTable(
        np.tile(np.array([0.25, 0.25, 0.5, 0.5], np.float32), (COUNT, 1)),
        np.ones(COUNT, np.bool_),
        np.full(COUNT, 7, np.int32),
        np.ones(COUNT, np.float32),
    )
    kept = stream.table({}, others=earlier)
    np.testing.assert_array_equal(kept.boxes[5:], earlier.boxes[5:])
    np.testing.assert_array_equal(kept.boxes[:5], table.boxes[:5])
    np.testing.assert_array_equal(earlier.pseudo_label, 7)  # not written to


def test_state(batch: Batch) -> None:
    model = make_model()
    images = normalized(batch.views, model.encoder, torch.device("cpu")).expand(-1, 2, -1, -1, -1)
    stream, other = stream_of(model), stream_of(model)
    step(model, stream, images, batch.index, whole_windows(2))
    other.load_state(stream.state())
    np.testing.assert_array_equal(other.table({}, others=None).boxes, stream.table({}, others=None).boxes)
    with pytest.raises(SagaError, match="attention maps have shapes"):
        other.load_state({"sums": torch.zeros(1)})


def test_nothing_is_kept_after_a_step(batch: Batch) -> None:
    """Evaluation and the attention pass use the same encoder, and would fill the memory."""
    model = make_model()
    stream = stream_of(model)
    images = normalized(batch.views, model.encoder, torch.device("cpu")).expand(-1, 2, -1, -1, -1)
    step(model, stream, images, batch.index, whole_windows(2))
    assert model.encoder.seen is None
    stream.watch()
    model(images, batch.index)
    assert len(model.encoder.seen or []) == 1
    stream.drop()
    assert model.encoder.seen is None


def test_projector_in_train_mode_is_left_as_it_is() -> None:
    """Its batch-norm statistics are training's own, and its mode comes back."""
    model = make_model()
    norm = nn.BatchNorm1d(8)
    model.projector = nn.Sequential(nn.Linear(model.encoder.dim, 8), norm, nn.ReLU(), nn.Linear(8, 8))
    model.train()
    stream = stream_of(model, "pseudo_label")
    stream.watch()
    model(torch.rand(COUNT, 2, 3, SIZE, SIZE), torch.arange(COUNT))
    before = copy.deepcopy(norm.state_dict())
    stream.add(torch.arange(COUNT), whole_windows(2), torch.zeros(COUNT, 2, dtype=torch.bool))
    assert all(torch.equal(norm.state_dict()[name], value) for name, value in before.items())
    assert model.projector.training and model.projector[1].training


def test_compiled_encoders_are_watched_too(batch: Batch) -> None:
    """torch.compile keeps the side effect, whichever came first, the compilation or the stream."""
    model, plain = make_model(), make_model()
    for module in model.modules():
        if module is model.encoder:
            module.compile(backend="aot_eager")
    images = normalized(batch.views, model.encoder, torch.device("cpu")).expand(-1, 2, -1, -1, -1)
    model(images, batch.index)
    stream, other = stream_of(model), stream_of(plain)
    for each, network in ((stream, model), (other, plain)):
        step(network, each, images, batch.index, whole_windows(2))
        step(network, each, images, batch.index, whole_windows(2))
    torch.testing.assert_close(stream.state()["sums"], other.state()["sums"])


def test_boxes_like_the_pass_in_a_table(batch: Batch, make_images: Callable[..., Path], tmp_path: Path) -> None:
    """Both tables of one data set can be compared row by row: build_box_table's order is the index."""
    root = make_images(tmp_path / "images", per_class=12, size=(SIZE, SIZE), ending=".png", seed=1)
    model = make_model()
    stream = stream_of(model)
    images = normalized(batch.views, model.encoder, torch.device("cpu")).expand(-1, 2, -1, -1, -1)
    order = torch.randperm(COUNT)
    step(model, stream, images[order], batch.index[order], whole_windows(2))
    table = build_box_table(model, open_images(root), delta=0.5, score="activation")
    np.testing.assert_allclose(stream.table({}, others=None).boxes, table.boxes, atol=1e-6)
