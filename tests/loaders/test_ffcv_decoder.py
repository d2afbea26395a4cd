"""The compiled decoder: pixels of every JPEG as simplejpeg decodes them, however few rows the windows need."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from PIL import Image

from saga_fast.loaders.engines import require_engine

NDArray = npt.NDArray[Any]


@pytest.fixture(scope="module", autouse=True)
def _ffcv() -> None:
    require_engine("ffcv")


def photograph(height: int, width: int) -> NDArray:
    """Coarse colours with grain: chroma that differs between neighbours, which upsampling blends."""
    rng = np.random.default_rng(height)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return (pixels + rng.integers(-20, 20, pixels.shape)).clip(0, 255).astype(np.uint8)


def by_pillow(pixels: NDArray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


PIXELS = photograph(131, 77)
FILES = {
    **{kind: simplejpeg.encode_jpeg(PIXELS, 85, "RGB", kind) for kind in ("444", "422", "420", "440", "411", "Gray")},
    "progressive": by_pillow(PIXELS, progressive=True),
    "restart markers": by_pillow(PIXELS, restart_marker_blocks=3),
    "restart rows": by_pillow(PIXELS, restart_marker_rows=1),
    "comment": by_pillow(PIXELS, comment=b"\xff\xc0\x00\x11\x08" * 40, exif=b"Exif\0\0" + b"\xff\xc0" * 99),
}


def decode_and_crop(data: bytes, windows: NDArray, size: int) -> NDArray | None:
    from saga_fast.loaders.ffcv import decoder

    content = np.frombuffer(data, np.uint8)
    height, width = simplejpeg.decode_jpeg_header(data)[:2]
    sides, good = np.full(len(windows), size), np.zeros(1, np.bool_)
    views = np.zeros((1, 3 * size * size * len(windows)), np.uint8)
    scratch = np.full(3 * height * width + len(data), 77, np.uint8)
    lengths, modes = np.array([len(data)]), np.array([decoder.JPEG], np.uint8)
    decoder.decode_and_crop(
        content.ctypes.data,
        decoder.Stored(np.zeros(1, np.int64), lengths, modes, np.array([[height, width]])),
        windows[None].astype(np.int32),
        sides,
        scratch,
        views,
        good,
    )
    return views.reshape(len(windows), size, size, 3) if good[0] else None


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_rows_that_are_not_needed_change_nothing(data: bytes) -> None:
    expected = simplejpeg.decode_jpeg(data, "RGB")
    size = 77
    for bottom in range(size, 132):
        # A window of the view's own size: its pixels as they are, down to the last row that is needed.
        views = decode_and_crop(data, np.array([[0, 0, size, size], [bottom - size, 0, size, size]]), size)
        assert views is not None
        np.testing.assert_array_equal(views[0], expected[:size])
        np.testing.assert_array_equal(views[1], expected[bottom - size : bottom])
    for bottom in (1, 2, 7, 8, 9, 15, 16, 17, 30):
        views = decode_and_crop(data, np.array([[bottom - 1, column, 1, 1] for column in range(77)]), 1)
        assert views is not None
        np.testing.assert_array_equal(views[:, 0, 0], expected[bottom - 1])


def test_rows_below_the_windows_are_not_decoded() -> None:
    # Damage down there does no harm.
    data = FILES["420"]
    cut = data[: len(data) * 3 // 4] + b"\xff\xd9"
    assert decode_and_crop(cut, np.array([[0, 0, 40, 77]]), 8) is not None
    assert decode_and_crop(cut, np.array([[0, 0, 131, 77]]), 8) is None


@pytest.mark.parametrize("bottom", [40, 131])
def test_damage_above_is_found(bottom: int) -> None:
    data = FILES["420"]
    for kept in (len(data) // 8, len(data) // 5):
        damaged = data[:kept] + b"\xff\xd9"
        assert decode_and_crop(damaged, np.array([[0, 0, bottom, 77]]), 8) is None


@pytest.mark.parametrize("data", [b"\xff\xd8", b"\xff\xd8" + b"\xff" * 50, b"\xff\xd8\xff\xe0\0\0" * 5, b"\0" * 40])
def test_what_is_no_jpeg_is_found(data: bytes) -> None:
    from saga_fast.loaders.ffcv.decoder import decodes

    assert not decodes(data, 20, 20)
