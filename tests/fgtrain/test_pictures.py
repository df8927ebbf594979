"""Picture files: the check that decodes nothing, and the decoder."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fgtrain.decoding import decode
from fgtrain.errors import Corrupt
from fgtrain.pictures import find_bad, flaw, jpeg_ends
from tests.picture_files import encoded, gradient, write_picture

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
GRADIENT = np.asarray(gradient())


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "图 片.jpg"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("format_", (*FORMATS, "GIF"))
def test_whole_pictures_of_every_format_pass_whatever_their_suffix(tmp_path: Path, format_: str) -> None:
    assert flaw(written(tmp_path, encoded(gradient(), format_))) is None


@pytest.mark.parametrize("kept", (0.3, 0.6, 0.95))
@pytest.mark.parametrize("format_", FORMATS)
def test_a_picture_cut_short_is_found(tmp_path: Path, format_: str, kept: float) -> None:
    data = encoded(gradient(), format_)
    assert "truncated" in str(flaw(written(tmp_path, data[: int(len(data) * kept)])))


@pytest.mark.parametrize("options", ({"compression": "tiff_lzw"}, {"big_tiff": True}, {"strip_size": 200}))
def test_tiffs_of_other_kinds_pass(tmp_path: Path, options: dict[str, object]) -> None:
    assert flaw(written(tmp_path, encoded(gradient(), "TIFF", **options))) is None


def test_a_big_endian_tiff_passes_and_is_found_when_cut(tmp_path: Path) -> None:
    entry = struct.Struct(">HHII").pack
    directory = struct.pack(">H", 2) + entry(273, 4, 1, 8) + entry(279, 4, 1, 30)
    whole = b"MM\0*" + struct.pack(">I", 38) + bytes(30) + directory
    assert flaw(written(tmp_path, whole)) is None
    assert "truncated TIFF" in str(flaw(written(tmp_path, whole[:-1])))
    longer = whole.replace(entry(279, 4, 1, 30), entry(279, 4, 1, 300))
    assert "truncated TIFF" in str(flaw(written(tmp_path, longer)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html>", "not a picture"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "not a picture"),
        (b"\xff\xd8\xff", "truncated JPEG"),
        (b"BM", "truncated BMP"),
        (b"II*\0", "truncated TIFF"),
        (b"\x89PNG\r\n\x1a\n", "truncated PNG"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    assert reason in str(flaw(written(tmp_path, data)))


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    assert flaw(tmp_path / "nothing.jpg") == "missing"
    assert flaw(tmp_path) == "a folder, not a file"


@pytest.mark.parametrize("format_", ("JPEG", "PNG"))
def test_a_long_trailer_is_no_fault(tmp_path: Path, format_: str) -> None:
    data = encoded(gradient(), format_) + b"motion photo" * 5000
    assert flaw(written(tmp_path, data)) is None


def test_the_end_marker_of_a_thumbnail_is_not_the_pictures(tmp_path: Path) -> None:
    thumbnail = encoded(gradient(8, 8), "JPEG")
    app1 = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    picture = encoded(Image.effect_noise((128, 128), 90), "JPEG", quality=95)
    data = picture[:2] + app1 + picture[2:]
    assert jpeg_ends(data)
    cut = data[:-5000]
    assert thumbnail in cut
    assert not jpeg_ends(cut)
    assert "truncated JPEG" in str(flaw(written(tmp_path, cut)))


@settings(deadline=None)
@given(cut=st.integers(0, 10_000), progressive=st.booleans())
def test_no_strict_beginning_of_a_jpeg_reaches_its_end(cut: int, progressive: bool) -> None:
    data = encoded(gradient(), "JPEG", progressive=progressive, restart_marker_rows=1)
    assert jpeg_ends(data)
    assert not jpeg_ends(data[: cut % len(data)])


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_an_answer(data: bytes) -> None:
    for magic in (b"", b"\xff\xd8\xff"):
        assert jpeg_ends(magic + data) in (True, False)


@settings(deadline=None)
@given(
    magic=st.sampled_from(
        [b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0+", b"RIFF1234WEBP", b"\xff\xd8\xff", b"GIF89a"]
    ),
    rest=st.binary(max_size=80),
)
def test_hostile_headers_never_raise(tmp_path_factory: pytest.TempPathFactory, magic: bytes, rest: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile"
    path.write_bytes(magic + rest)
    assert flaw(path) is None or isinstance(flaw(path), str)


def test_bad_pictures_are_reported_in_the_order_given(tmp_path: Path) -> None:
    good = write_picture(tmp_path / "good.jpg")
    files = [(f"{i:04d}", good if i % 7 else tmp_path / "none") for i in range(1000)]
    assert [bad.name for bad in find_bad(files)] == [f"{i:04d}" for i in range(0, 1000, 7)]


@pytest.mark.parametrize("format_", ("PNG", "BMP", "TIFF"))
def test_lossless_formats_come_back_exactly(format_: str) -> None:
    pixels = decode(encoded(gradient(), format_), "x")
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, GRADIENT)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo(GRADIENT)))
    np.testing.assert_array_equal(decode(encoded(stored, "PNG", exif=exif), "x"), GRADIENT)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_does_not_cost_the_picture() -> None:
    data = encoded(gradient(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert decode(data, "x").shape == GRADIENT.shape


@pytest.mark.parametrize("format_", ("PNG", "TIFF"))
def test_16_bit_grey_is_scaled_not_clipped(format_: str) -> None:
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    pixels = decode(encoded(Image.fromarray(ramp * 257), format_), "x")
    np.testing.assert_array_equal(pixels, np.repeat(ramp[:, :, None], 3, axis=2))


@pytest.mark.parametrize("mode", ("L", "1", "P", "CMYK", "LA", "RGBA", "YCbCr"))
def test_every_mode_becomes_rgb(mode: str) -> None:
    format_ = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    pixels = decode(encoded(gradient().convert(mode), format_), "x")
    assert pixels.shape == GRADIENT.shape


def test_cmyk_jpeg_keeps_its_colours() -> None:
    white = Image.new("RGB", (16, 16), "white").convert("CMYK")
    assert decode(encoded(white, "JPEG"), "x").min() > 250


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert decode(encoded(clear, "PNG"), "x")[0, 0].tolist() == [255, 255, 255]
    assert decode(encoded(half, "PNG"), "x")[0, 0].tolist() == [255, 127, 127]


@pytest.mark.parametrize("mode", ("P", "L", "RGB"))
def test_a_transparent_colour_becomes_white(mode: str) -> None:
    image = Image.new(mode, (4, 4), 0)
    pixels = decode(encoded(image, "PNG", transparency=(0, 0, 0) if mode == "RGB" else 0), "x")
    assert pixels[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("format_", FORMATS)
def test_a_truncated_picture_is_corrupt_and_named(format_: str) -> None:
    data = encoded(gradient(64, 64), format_)
    with pytest.raises(Corrupt, match=r"^鸟/1\.jpg: "):
        decode(data[: len(data) // 2], "鸟/1.jpg")


def test_floating_point_pixels_are_refused_with_a_reason() -> None:
    with pytest.raises(Corrupt, match="8 or 16 bits"):
        decode(encoded(Image.new("F", (4, 4)), "TIFF"), "x")


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_decode_or_are_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt):
        decode(data, "x")


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning", "ignore::UserWarning")
@settings(deadline=None)
@given(
    at=st.integers(0, 10_000),
    value=st.integers(0, 255),
    format_=st.sampled_from(("PNG", "JPEG", "TIFF", "BMP")),
)
def test_one_changed_byte_gives_a_picture_or_corrupt(at: int, value: int, format_: str) -> None:
    data = bytearray(encoded(gradient(8, 8), format_))
    data[at % len(data)] = value
    try:
        assert decode(bytes(data), "x").ndim == 3
    except Corrupt as error:
        assert "\n" not in str(error)


def test_data_sets_import_no_numerical_library() -> None:
    code = (
        "import importlib, pkgutil, sys, fgtrain.data, fgtrain.dataindex\n"
        "names = [m.name for m in pkgutil.iter_modules(fgtrain.data.__path__)]\n"
        "for name in names: importlib.import_module('fgtrain.data.' + name)\n"
        "fgtrain.data.digits.Digits().index()\n"
        "heavy = {'torch', 'numpy', 'PIL', 'sklearn', 'torchvision', 'cv2'} & set(sys.modules)\n"
        "assert names and not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=240)
