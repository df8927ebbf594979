"""The two decoders give the same bits, and scaling does as torchvision does."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fgtrain.decoding import decode, resized, size
from fgtrain.errors import Corrupt
from fgtrain.preparation import Preparation
from tests.picture_files import encoded, gradient, real_data


def busy(height: int = 61, width: int = 83) -> Image.Image:
    """Make a picture with detail everywhere."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def by_pillow(data: bytes) -> Any:
    with Image.open(BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"subsampling": "4:2:0", "quality": 60},
        {"progressive": True},
        {"keep_rgb": True},
        {"restart_marker_rows": 1},
    ],
    ids=str,
)
def test_jpegs_have_the_bits_that_pillow_gives(options: dict[str, Any]) -> None:
    data = encoded(busy(), "JPEG", **options)
    np.testing.assert_array_equal(decode(data, "x"), by_pillow(data))


def test_real_birds_have_the_bits_that_pillow_gives() -> None:
    files = sorted((real_data("cub50") / "images").rglob("*.jpg"))[::100]
    assert files
    for file in files:
        np.testing.assert_array_equal(decode(file.read_bytes(), str(file)), by_pillow(file.read_bytes()))


def test_grey_jpegs_become_rgb() -> None:
    data = encoded(busy().convert("L"), "JPEG")
    np.testing.assert_array_equal(decode(data, "x"), by_pillow(data))


FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": ("JPEG", {}),
    "progressive JPEG": ("JPEG", {"progressive": True}),
    "PNG": ("PNG", {}),
    "WebP": ("WEBP", {}),
    "lossless WebP": ("WEBP", {"lossless": True}),
    "TIFF": ("TIFF", {}),
    "LZW TIFF": ("TIFF", {"compression": "tiff_lzw"}),
    "JPEG in TIFF": ("TIFF", {"compression": "jpeg"}),
    "BMP": ("BMP", {}),
    "GIF": ("GIF", {}),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_is_turned_upright_and_its_size_is_known_before(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    format_, options = FORMATS[kind]
    data = encoded(busy(), format_, exif=exif, **options)
    pixels = decode(data, "x")
    np.testing.assert_array_equal(pixels, by_pillow(data))
    assert size(data, "x") == (pixels.shape[1], pixels.shape[0])
    lies = orientation > 4 and format_ not in ("BMP", "GIF")  # these two have no place for it
    assert size(data, "x") == ((61, 83) if lies else (83, 61))


def xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


@pytest.mark.parametrize("orientation", (1, 3, 6, 8))
@pytest.mark.parametrize(("format_", "options"), [("TIFF", {"tiffinfo": {700: None}}), ("WEBP", {"xmp": None})])
def test_an_orientation_told_by_xmp_counts_in_the_size_too(
    format_: str, options: dict[str, Any], orientation: int
) -> None:
    word = xmp(orientation)
    data = encoded(busy(), format_, **{k: word if v is None else {700: word} for k, v in options.items()})
    pixels = decode(data, "x")
    np.testing.assert_array_equal(pixels, by_pillow(data))
    assert size(data, "x") == (pixels.shape[1], pixels.shape[0]) == ((61, 83) if orientation > 4 else (83, 61))


@pytest.mark.parametrize("orientation", (0, 6, 9, 700))
def test_prepared_tiffs_are_of_the_size_that_their_header_names(orientation: int) -> None:
    data = encoded(busy(), "TIFF", tiffinfo={0x0112: orientation})
    prepare = Preparation(16)
    pixels = decode(data, "x", prepare)
    assert (pixels.shape[1], pixels.shape[0]) == prepare.size(*size(data, "x"))


@pytest.mark.parametrize("kind", ("JPEG", "PNG"))
def test_the_prepared_size_follows_from_the_header(kind: str) -> None:
    prepare = Preparation(16)
    data = encoded(busy(), kind)
    pixels = decode(data, "x", prepare)
    assert (pixels.shape[1], pixels.shape[0]) == prepare.size(*size(data, "x")) == (21, 16)


def test_a_large_jpeg_is_decoded_reduced_and_looks_the_same() -> None:
    data, prepare = encoded(busy(403, 811), "JPEG", quality=95), Preparation(50)
    assert prepare.reduction(811, 403) == 4
    found = decode(data, "x", prepare).astype(int)
    expected = resized(decode(data, "x"), prepare.size(811, 403)).astype(int)
    assert found.shape == expected.shape == (50, 100, 3)
    assert 10 * np.log10(255**2 / ((found - expected) ** 2).mean()) > 35  # dB


@pytest.mark.parametrize("to", ((40, 31), (160, 120), (83, 61)))
def test_scaling_is_pillows_within_one(to: tuple[int, int]) -> None:
    pixels = np.asarray(busy())
    expected = np.asarray(busy().resize(to, Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(resized(pixels, to).astype(int) - expected).max() <= 1


def test_scaling_takes_parts_and_what_cannot_be_written_to() -> None:
    pixels = np.asarray(busy()).copy()
    part = pixels[3:40, 5:60]
    expected = resized(part.copy(), (33, 22))
    pixels.setflags(write=False)
    np.testing.assert_array_equal(resized(pixels[3:40, 5:60], (33, 22)), expected)


def test_16_bit_colour_and_alpha_become_8_bit_rgb() -> None:
    half = Image.merge("LA", (Image.new("L", (4, 4), 0), Image.new("L", (4, 4), 128)))
    assert decode(encoded(half, "PNG"), "x")[0, 0].tolist() == [127, 127, 127]


def test_the_size_of_what_is_no_picture_is_corrupt() -> None:
    with pytest.raises(Corrupt, match=r"^鸟\.jpg: "):
        size(b"\xff\xd8\xff nothing", "鸟.jpg")


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1000), st.booleans())
def test_a_prepared_picture_has_the_short_side_and_about_the_shape(w: int, h: int, side: int, enlarge: bool) -> None:
    width, height = Preparation(side, enlarge).size(w, h)
    if min(w, h) < side and not enlarge:
        assert (width, height) == (w, h)
    else:
        assert min(width, height) == side
        assert abs(max(width, height) - side * max(w, h) / min(w, h)) < 1


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 1000))
def test_a_reduction_leaves_twice_the_pixels_wanted(w: int, h: int, side: int) -> None:
    reduction = Preparation(side).reduction(w, h)
    assert reduction == 1 or min(w, h) / reduction >= 2 * side
    assert reduction == 8 or min(w, h) / (2 * reduction) < 2 * side


@pytest.mark.parametrize("kind", ("PNG", "TIFF"))
def test_broken_contents_are_corrupt_though_the_header_is_read_first(kind: str) -> None:
    options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
    data = bytearray(encoded(busy(), kind, **options))
    at = data.index(b"IDAT") + 4 if kind == "PNG" else 8
    data[at : at + 200] = b"\xff" * 200
    with pytest.raises(Corrupt):
        decode(bytes(data), "x")


def test_gradients_survive() -> None:
    np.testing.assert_array_equal(decode(encoded(gradient(), "PNG"), "x"), np.asarray(gradient()))
