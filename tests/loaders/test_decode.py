"""decode_image: every file becomes RGB, JPEGs bit for bit as Pillow's, and what is no image says so."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from saga_fast.loaders.decode import DecodeError, decode_image
from saga_fast.loaders.encoded import EncodedImages
from saga_fast.loaders.jpeg import jpeg_sizes

NDArray = npt.NDArray[Any]
HEIGHT, WIDTH = 37, 45  # odd, and no multiple of a JPEG's blocks


def picture() -> NDArray:
    """Smooth colours with noise on top, (HEIGHT, WIDTH, 3) uint8."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).resize((WIDTH, HEIGHT))
    return (np.asarray(coarse) * 0.8 + rng.integers(0, 50, (HEIGHT, WIDTH, 3))).astype(np.uint8)


RGB = picture()
GREY = RGB[..., 1]
ALPHA = np.arange(HEIGHT * WIDTH, dtype=np.uint32).reshape(HEIGHT, WIDTH).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(data: bytes) -> NDArray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def png(width: int, height: int, bits: int, colour: int, rows: bytes = b"") -> bytes:
    """A PNG made by hand, for what Pillow cannot write: ``rows`` are big-endian samples without filter bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    stride = len(rows) // height
    filtered = b"".join(b"\0" + rows[row * stride : (row + 1) * stride] for row in range(height)) if rows else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND", b"")


def assert_pixels(pixels: NDArray, expected: NDArray) -> None:
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous and pixels.flags.writeable
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [30, 95])
def test_jpeg_is_pillows(progressive: bool, subsampling: str, quality: int) -> None:
    data = encode(Image.fromarray(RGB), "JPEG", progressive=progressive, subsampling=subsampling, quality=quality)
    assert_pixels(decode_image(data), by_pillow(data))


def test_grey_jpeg_is_pillows() -> None:
    data = encode(Image.fromarray(GREY), "JPEG")
    pixels = decode_image(data)
    assert_pixels(pixels, by_pillow(data))
    assert (pixels == pixels[..., :1]).all()


def test_cmyk_jpeg_is_pillows_to_rounding() -> None:
    data = encode(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "CMYK"
    difference = np.abs(decode_image(data).astype(np.int64) - by_pillow(data))
    # The two libraries round c * k / 255 differently.
    assert difference.max() <= 1


@pytest.mark.parametrize("corner", [(0, 0), (5, 3)])
def test_jpeg_with_stray_bytes_is_pillows(corner: tuple[int, int]) -> None:
    # libjpeg warns of bytes between two segments and decodes; cameras and editors do write such files.
    data = encode(Image.fromarray(RGB[corner[0] :, corner[1] :]), "JPEG")
    at = data.index(b"\xff\xdb")
    stray = data[:at] + b"\0\0\0\0" + data[at:]
    assert_pixels(decode_image(stray), by_pillow(data))


def palette_image() -> Image.Image:
    return Image.fromarray(RGB).quantize(17)


def expected_of_palette() -> NDArray:
    image = palette_image()
    palette = image.getpalette()
    assert palette is not None
    colours: NDArray = np.array(palette, np.uint8).reshape(-1, 3)
    return np.take(colours, np.asarray(image), axis=0)


LOSSLESS: dict[str, tuple[bytes, NDArray]] = {
    "RGB PNG": (encode(Image.fromarray(RGB), "PNG"), RGB),
    "RGB PNG with a transparent colour": (encode(Image.fromarray(RGB), "PNG", transparency=(1, 2, 3)), RGB),
    "RGBA PNG": (encode(Image.fromarray(np.dstack([RGB, ALPHA])), "PNG"), RGB),
    "LA PNG": (encode(Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), "PNG"), np.dstack([GREY] * 3)),
    "L PNG": (encode(Image.fromarray(GREY), "PNG"), np.dstack([GREY] * 3)),
    "1 PNG": (encode(Image.fromarray(GREY > 99), "PNG"), np.dstack([np.where(GREY > 99, 255, 0)] * 3)),
    "P PNG": (encode(palette_image(), "PNG"), expected_of_palette()),
    "P PNG, a transparent index": (encode(palette_image(), "PNG", transparency=3), expected_of_palette()),
    "P PNG, alpha table": (encode(palette_image(), "PNG", transparency=bytes(range(17))), expected_of_palette()),
    "RGB WebP": (encode(Image.fromarray(RGB), "WEBP", lossless=True), RGB),
    "RGBA WebP": (encode(Image.fromarray(np.dstack([RGB, ALPHA])), "WEBP", lossless=True, exact=True), RGB),
    "RGB BMP": (encode(Image.fromarray(RGB), "BMP"), RGB),
    "RGB TIFF": (encode(Image.fromarray(RGB), "TIFF"), RGB),
    "RGB PPM": (encode(Image.fromarray(RGB), "PPM"), RGB),
    "L PGM": (encode(Image.fromarray(GREY), "PPM"), np.dstack([GREY] * 3)),
    "one pixel": (encode(Image.fromarray(RGB[:1, :1]), "PNG"), RGB[:1, :1]),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_every_mode_becomes_rgb(name: str) -> None:
    data, expected = LOSSLESS[name]
    assert_pixels(decode_image(data), expected.astype(np.uint8))


def test_lossy_webp_is_pillows() -> None:
    data = encode(Image.fromarray(RGB), "WEBP", quality=60)
    assert_pixels(decode_image(data), by_pillow(data))


@pytest.mark.parametrize(("channels", "colour"), [(1, 0), (2, 4), (3, 2), (4, 6)], ids=["L", "LA", "RGB", "RGBA"])
def test_16_bit_png_keeps_the_upper_8_bits(channels: int, colour: int) -> None:
    levels = np.random.default_rng(1).integers(0, 2**16, (HEIGHT, WIDTH, channels), np.uint16)
    levels[0, 0], levels[0, 1] = 65535, 255
    data = png(WIDTH, HEIGHT, 16, colour, levels.astype(">u2").tobytes())
    upper = (levels >> 8).astype(np.uint8)
    assert_pixels(decode_image(data), upper[..., :3] if channels > 2 else np.dstack([upper[..., 0]] * 3))


def test_16_bit_pgm_keeps_the_upper_8_bits() -> None:
    levels = np.random.default_rng(2).integers(0, 2**16, (HEIGHT, WIDTH), np.uint16)
    data = f"P5 {WIDTH} {HEIGHT} 65535\n".encode() + levels.astype(">u2").tobytes()
    assert_pixels(decode_image(data), np.dstack([(levels >> 8).astype(np.uint8)] * 3))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_ignored(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn by 90 degrees
    image = Image.fromarray(RGB)
    turned = encode(image, kind, exif=exif)
    with Image.open(io.BytesIO(turned)) as opened:
        assert opened.getexif()[0x0112] == 6
    assert_pixels(decode_image(turned), decode_image(encode(image, kind)))


def assert_refused(data: bytes, **options: int) -> str:
    with pytest.raises(DecodeError) as error:
        decode_image(data, **options)
    reason = str(error.value)
    assert reason and "\n" not in reason
    return reason


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "WEBP", "BMP", "PPM"])
def test_cut_files_are_refused(kind: str, part: float) -> None:
    options: dict[str, Any] = {"progressive": True} if kind == "progressive" else {}
    data = encode(Image.fromarray(RGB), "JPEG" if options else kind, **options)
    decode_image(data)
    assert_refused(data[: int(part * len(data))])


GARBAGE = {
    "empty": b"",
    "one byte": b"\xff",
    "zeros": bytes(1000),
    "noise": np.random.default_rng(3).bytes(1000),
    "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "JPEG's first bytes, then noise": b"\xff\xd8\xff\xe0" + np.random.default_rng(4).bytes(1000),
    "JPEG's first and last bytes": b"\xff\xd8\xff\xd9",
    "PNG's signature, then noise": b"\x89PNG\r\n\x1a\n" + np.random.default_rng(5).bytes(1000),
    "PNG without pixels": png(9, 9, 8, 2),
    "PNG of no width": png(0, 9, 8, 2),
    "WebP's signature, then noise": b"RIFF\x64\0\0\0WEBPVP8 " + np.random.default_rng(6).bytes(100),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_no_image_is_refused(name: str) -> None:
    assert_refused(GARBAGE[name])


def test_the_reason_holds_no_address() -> None:
    # It tells the reader nothing, and two runs' lists of bad images would differ.
    assert "0x" not in assert_refused(GARBAGE["html"])


def test_too_many_pixels_are_refused_by_the_header() -> None:
    jpeg = encode(Image.fromarray(RGB), "JPEG")
    header = jpeg[: jpeg.index(b"\xff\xda") + 14]  # up to the first pixel's data
    for data in (jpeg, header, encode(Image.fromarray(RGB), "PNG"), png(WIDTH, HEIGHT, 8, 2)):
        assert f"{WIDTH} x {HEIGHT} pixels" in assert_refused(data, max_pixels=HEIGHT * WIDTH - 1)
    assert_pixels(decode_image(jpeg, max_pixels=HEIGHT * WIDTH), by_pillow(jpeg))


def test_a_decompression_bomb_is_refused() -> None:
    # 10 GB of pixels each, announced by files of less than 2 kB.
    jpeg = encode(Image.fromarray(RGB[:8, :8]), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    for data in (png(60000, 60000, 8, 2), jpeg[:at] + struct.pack(">HH", 60000, 60000) + jpeg[at + 4 :]):
        assert "pixels" in assert_refused(data)


def test_a_progressive_jpeg_of_thousands_of_scans_is_refused_at_once() -> None:
    # Libjpeg would pass over all pixels 5,000 times: 15 s here, hours for a large image.
    jpeg = encode(Image.new("RGB", (1500, 1500)), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    assert 5 < jpeg.count(b"\xff\xda") < 20
    assert decode_image(jpeg).shape == (1500, 1500, 3)
    assert jpeg_sizes(EncodedImages.of([jpeg])).tolist() == [[1500, 1500]]
    bomb = jpeg[:last] + jpeg[last:-2] * 5000 + jpeg[-2:]
    assert "scans are more than 100" in assert_refused(bomb)
    assert not jpeg_sizes(EncodedImages.of([bomb])).any()


def test_decoders_that_may_not_know_rgb_jpegs_do_not_get_them() -> None:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "JPEG", quality=95, keep_rgb=True)
    data = buffer.getvalue()
    np.testing.assert_allclose(decode_image(data).astype(int), RGB, atol=12)
    assert not jpeg_sizes(EncodedImages.of([data])).any()
    start = data.index(b"\xff\xc0")
    assert data[start + 10 : start + 19 : 3] == b"RGB"
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "JPEG")
    ycc = buffer.getvalue()
    marker = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
    no_pixels = ycc[: ycc.index(b"\xff\xda")] + b"\xff\xda\xff\xff" + bytes(9) + b"\xff\xd9"
    frame = ycc.index(b"\xff\xc0")
    two_frames = ycc[:frame] + ycc[frame : frame + 19] * 2 + ycc[frame + 19 :]
    filled = ycc[:frame] + b"\xff" + ycc[frame:]
    assert not jpeg_sizes(EncodedImages.of([no_pixels, two_frames, filled, b"", b"\xff\xd8\xff\xd9"])).any()
    marked = [ycc[:2] + marker + transform + ycc[2:] for transform in (b"\x00", b"\x01")]
    assert jpeg_sizes(EncodedImages.of([*marked, ycc])).tolist() == [[0, 0], [HEIGHT, WIDTH], [HEIGHT, WIDTH]]
    buffer = io.BytesIO()
    Image.fromarray(RGB).convert("L").save(buffer, "JPEG")
    grey = buffer.getvalue()
    assert jpeg_sizes(EncodedImages.of([grey[:2] + marker + b"\x00" + grey[2:]])).tolist() == [[HEIGHT, WIDTH]]


def test_a_postscript_file_starts_no_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    assert "known format" in assert_refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
