"""Faults that gave a result without a word: each gives the right result now, a warning with its number, or an error."""

import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from saga_fast.attention.build import build_box_table
from saga_fast.config_file import config_from_dict, config_to_dict, load_config
from saga_fast.errors import SagaError
from saga_fast.evaluate.features import FrozenModel
from saga_fast.evaluate.knn import knn_accuracy
from saga_fast.evaluate.linear import ProbeLoaders, linear_probe
from saga_fast.evaluate.pairs import pair_similarities
from saga_fast.evaluate.protocols import choose_protocol
from saga_fast.kernels import PhotometricRecipe
from saga_fast.loaders import BadImages, CropPlan, ImageFolder, Loader, LoaderOptions, WholePlan, open_loader
from saga_fast.loaders.decode import DecodeError, decode_image
from saga_fast.methods import Method, build_method

NDArray = npt.NDArray[Any]
LEVELS = np.random.default_rng(0).integers(0, 256, (9, 11))
LEVELS[0, :2] = 0, 255
FRACTIONS = (LEVELS / 255.0).astype(np.float32)

# ---------------------------------------------------------------- numbers of 16 and 32 bits


def tiff(values: NDArray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    return buffer.getvalue()


GREYS: dict[str, tuple[bytes, NDArray]] = {
    "16-bit integers": (tiff((LEVELS * 257).astype(np.uint16)), LEVELS),
    "16-bit integers to 255": (tiff(LEVELS.astype(np.uint16)), LEVELS),
    "32-bit integers to 255": (tiff(LEVELS.astype(np.int32)), LEVELS),
    "32-bit integers to 65535": (tiff((LEVELS * 257).astype(np.int32)), LEVELS),
    "floats to 1": (tiff(FRACTIONS), LEVELS),
    "floats to 255": (tiff(LEVELS.astype(np.float32)), LEVELS),
    "black floats": (tiff(np.zeros((3, 3), np.float32)), np.zeros((3, 3))),
    "16-bit PGM": (b"P5 11 9 65535\n" + LEVELS.astype(">u2").tobytes(), np.zeros((9, 11))),
}
BAD_GREYS = {
    "negative integers": tiff(-LEVELS.astype(np.int32)),
    "larger integers": tiff((LEVELS * 1000).astype(np.int32)),
    "negative floats": tiff(FRACTIONS - 0.5),
    "larger floats": tiff(FRACTIONS * 1000),
    "not a number": tiff(np.where(LEVELS == 0, np.nan, FRACTIONS).astype(np.float32)),
    "infinity": tiff(np.where(LEVELS == 0, np.inf, FRACTIONS).astype(np.float32)),
}


@pytest.mark.parametrize("name", GREYS)
def test_grey_numbers_keep_their_levels(name: str) -> None:
    data, expected = GREYS[name]
    pixels = decode_image(data)
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous and pixels.flags.writeable
    np.testing.assert_array_equal(pixels, np.dstack([expected] * 3))


@pytest.mark.parametrize("name", BAD_GREYS)
def test_numbers_of_an_unknown_range_are_bad_images(name: str) -> None:
    with pytest.raises(DecodeError, match=r"expected .*0.*1|expected 0 to 255"):
        decode_image(BAD_GREYS[name])


@pytest.mark.parametrize("engine", ["folder", "dali"])
def test_engines_agree_on_grey_numbers(tmp_path: Path, engine: str) -> None:
    (tmp_path / "a").mkdir()
    contents = [*(data for data, _ in GREYS.values()), *BAD_GREYS.values()]
    for number, data in enumerate(contents):
        (tmp_path / "a" / f"{number:02}.tif").write_bytes(data)
    source = ImageFolder(tmp_path)
    bad = BadImages(source, max_fraction=0.9)
    batches = list(open_loader(engine, source, WholePlan(size=9), batch_size=4, bad=bad))
    assert bad.indices.tolist() == list(range(len(GREYS), len(contents)))
    views = np.concatenate([batch.views.numpy() for batch in batches])
    first = views[0, 0]  # whole images squashed alike: equal levels stay equal
    for name, view in zip(GREYS, views[:, 0], strict=True):
        if "PGM" not in name and "black" not in name:
            np.testing.assert_array_equal(view, first, err_msg=name)


# ---------------------------------------------------------------- --set


@pytest.mark.parametrize("path", ["/x/my photos #1", "#1", "/x/a #b #c", "my photos ", "two\nlines", "5 #"])
def test_a_path_in_set_is_taken_whole(tiny_yaml: Path, path: str) -> None:
    assert load_config(tiny_yaml, [f"data.train={path}"]).data.train == path


@pytest.mark.parametrize("value", ["[5] # 20", "{every: 2} #", "every: 2 # all", "[5,\n# six\n7]", "'5' #x"])
def test_a_comment_in_set_is_refused(tiny_yaml: Path, value: str) -> None:
    with pytest.raises(SagaError, match="comment"):
        load_config(tiny_yaml, [f"evaluate={value}"])


def test_yaml_in_set_is_read_as_before(tiny_yaml: Path) -> None:
    sets = ["evaluate={every: 2, k: [3, 7]}", "seed= 5", "attention=null", 'data.train="a #1"', "data.val=", "out='#'"]
    config = load_config(tiny_yaml, sets)
    assert config.evaluate is not None and config.evaluate.k == (3, 7)
    assert (config.seed, config.attention, config.data.train, config.data.val) == (5, None, "a #1", None)
    assert config.out == "#"


# ---------------------------------------------------------------- folders


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_images_beside_class_folders_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = touch(tmp_path, *(f"{number}.jpg" for number in range(10)), "old/1.jpg", "old/2.jpg")
    assert len(ImageFolder(root)) == 2
    assert f"10 images next to the class folders of {root} are left out" in caplog.text
    caplog.clear()
    assert len(ImageFolder(touch(tmp_path / "flat", "1.jpg", "2.jpg", "texts/notes.txt"))) == 2
    assert caplog.text == ""


@pytest.mark.parametrize("folder", ["", "a/"])
def test_files_of_other_image_endings_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, folder: str
) -> None:
    names = ("1.jpg", "2.JFIF", "3.jpe", "4.gif", "5.avif", "6.HEIC", "7.heic", "IMG8", ".hidden", "notes.txt")
    images = ImageFolder(touch(tmp_path, *(folder + name for name in names)))
    assert images.paths == [folder + name for name in names[:4]]
    assert "4 files of" in caplog.text
    assert "(1 .avif, 2 .heic, 1 without an ending)" in caplog.text


def test_new_endings_are_decoded(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    for name, kind in (("1.jfif", "JPEG"), ("2.jpe", "JPEG"), ("3.gif", "GIF")):
        Image.fromarray(pixels).save(tmp_path / "a" / name, kind)
    source = ImageFolder(tmp_path)
    assert [decode_image(source.read(index)).shape for index in range(3)] == [(8, 8, 3)] * 3


# ---------------------------------------------------------------- configs

OUT_OF_RANGE = [
    ("evaluate.temperature", 0.0),
    ("evaluate.temperature", -1.0),
    ("evaluate.temperature", math.inf),
    ("evaluate.k", [2**40]),
    ("method.temperature", math.inf),
    ("method.projection_dim", 10**12),
    ("method.hidden_dim", 2**21),
    ("method.projection_layers", 10**6),
    ("data.max_bad_fraction", 1.5),
    ("data.max_bad_fraction", -0.1),
    ("data.threads", 0),
    ("data.threads", 5000),
    ("data.prefetch", -1),
    ("data.prefetch", 10**6),
    ("data.generate", {"side": 10**6}),
    ("data.generate", {"num_train": 10**9}),
    ("crop.size", 10**7),
    ("crop.ratio", [1.0, math.inf]),
    ("attention.input_size", 10**7),
    ("batch_size", 2**25),
    ("plain.epochs", 10**9),
    ("saga.epochs", 2**70),
]


@pytest.mark.parametrize(("key", "value"), OUT_OF_RANGE)
def test_numbers_out_of_range_are_refused(tiny_values: Callable[[], dict[str, Any]], key: str, value: Any) -> None:
    values = tiny_values()
    section, _, name = key.rpartition(".")
    (values.setdefault(section, {}) if section else values)[name] = value
    with pytest.raises(
        SagaError, match=key.rpartition(".")[2] if key != "data.generate" else "side|num_train"
    ) as error:
        config_from_dict(values, where="c")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "moco", "queue_size": 2**40},
        {"name": "insdis", "negatives": 2**40},
        {"name": "pirl", "jigsaw_size": 10**6},
        {"name": "supervised", "num_classes": 2**40},
        {"name": "invspread", "projection_dim": 2**40},
    ],
)
def test_methods_of_any_size_are_refused(tiny_values: Callable[[], dict[str, Any]], method: dict[str, Any]) -> None:
    with pytest.raises(SagaError, match=list(method)[1]):
        config_from_dict({**tiny_values(), "method": method}, where="c")


def floats(values: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys of all numbers with a fraction, and of pairs of them."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from floats(value, (*prefix, key))
        elif isinstance(value, float) or (isinstance(value, list) and value and isinstance(value[0], float)):
            yield (*prefix, key)


def test_no_config_holds_a_nan(tiny_values: Callable[[], dict[str, Any]]) -> None:
    full = config_to_dict(config_from_dict({**tiny_values(), "method": {"name": "pirl"}}, where="c"))
    keys = list(floats(full))
    assert len(keys) > 30
    for *sections, key in keys:
        values = config_to_dict(config_from_dict(full, where="c"))
        section = values
        for name in sections:
            section = section[name]
        section[key] = [math.nan] * len(section[key]) if isinstance(section[key], list) else math.nan
        with pytest.raises(SagaError, match=key):
            config_from_dict(values, where="c")


# ---------------------------------------------------------------- features that are not finite


@pytest.fixture
def broken(tiny_yaml: Path) -> Method:
    config = load_config(tiny_yaml)
    model = build_method(config.method, config.encoder, num_images=1)
    with torch.no_grad():
        next(model.encoder.parameters()).fill_(math.nan)
    return model.eval()


def loader(folder: Path, plan: WholePlan | CropPlan, **options: Any) -> Loader:
    return open_loader("folder", folder, plan, LoaderOptions(batch_size=8, threads=1, **options))


def test_knn_of_features_that_are_not_finite() -> None:
    good, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    for bank, queries in ((good * math.nan, good), (good, good * math.nan), (good, good / 0.0)):
        with pytest.raises(SagaError, match="features of 4 of 4 images are not finite"):
            knn_accuracy(bank, labels, queries, labels, ks=(1,))


def test_pairs_and_probe_of_a_broken_model(broken: Method, images: Path) -> None:
    frozen = FrozenModel(model=broken)
    with pytest.raises(SagaError, match="not finite"):
        pair_similarities(frozen, loader(images / "val", CropPlan(size=16, seed=0)), PhotometricRecipe())
    whole = WholePlan(size=16)
    loaders = ProbeLoaders(train=loader(images / "train", whole, shuffle=True), val=loader(images / "val", whole))
    with pytest.raises(SagaError, match=r"features of .* are not finite"):
        linear_probe(frozen, loaders, choose_protocol("moco", epochs=1, batch_size=8))


def test_a_table_without_a_box_is_warned_about(broken: Method, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = build_box_table(broken, loader(images / "val", WholePlan(size=16)))
    assert not table.found.any()
    assert "no box was found in any of 16 images" in caplog.text


def test_set_reaches_the_command_whole(tiny_yaml: Path, tmp_path: Path, refuses: Callable[..., None]) -> None:
    missing = tmp_path / "my photos #1"
    missing.parent.joinpath("my photos").mkdir()
    out = tmp_path / "run"
    refuses(["train", "--config", tiny_yaml, "--out", out, "--set", f"data.train={missing}"], missing)
