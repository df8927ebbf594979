"""From a picture file's bytes to RGB pixels, upright, and scaled as a `Preparation` says.

JPEGs go through simplejpeg, whose pixels are those of Pillow, bit for bit, at half to three quarters of the cost;
whatever it does not know or complains of, and all other formats, go through Pillow (docs/decisions/015). Scaling is
torch's antialiased bilinear, in integers: the same bits with and without vector instructions.

Shapes: H, W height and width in pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING

from fgtrain.errors import Corrupt
from fgtrain.preparation import Preparation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image
    from torch import Tensor

    Pixels = npt.NDArray[np.uint8]

AS_IT_IS = Preparation(None)

_ORIENTATION = 0x0112  # Source: EXIF 2.32, 4.6.4, Table 4
_TURNED = ("TIFF",)  # formats that Pillow itself turns upright as it loads; before 10.1 it does not say that it has
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257  # Source: TIFF 6.0, section 3
_LYING = frozenset({5, 6, 7, 8})  # orientations that swap width and height
_PLAIN = ("RGB", "L")  # modes of a JPEG that need nothing but decoding


def decode(data: bytes, where: str, prepare: Preparation = AS_IT_IS) -> Pixels:
    """Decode a picture to RGB uint8, shape (H, W, 3), writable, and prepare it.

    The EXIF orientation is applied; transparency is laid over white; 16-bit grey is scaled down to 8 bits; of
    an animation the first frame is taken. It works on bytes, so what the file is called does not matter.

    Raises:
        Corrupt: the message begins with `where` and says what is wrong.
    """
    with _complaining(where), _opened(data) as image:
        pixels = _jpeg(data, prepare.reduction(*image.size)) if _is_plain_jpeg(image) else None
        if pixels is None:
            image.load()  # before the orientation, whose search loads a PNG and would hide that it is broken
            pixels = _array(_rgb(image))
        orientation = 1 if image.format in _TURNED else _orientation(image)
        width, height = _upright(image.size, orientation)
        return resized(_turned(pixels, orientation), prepare.size(width, height))


def size(data: bytes, where: str) -> tuple[int, int]:
    """Return a picture's (width, height), upright, without decoding it.

    Raises:
        Corrupt: the message begins with `where` and says what is wrong.
    """
    with _complaining(where), _opened(data) as image:
        return _upright(_stored_size(image), _orientation(image))


def resized(pixels: Pixels, to: tuple[int, int]) -> Pixels:
    """Scale (H, W, 3) to `to`, (width, height): bilinear, antialiased where it shrinks."""
    if (pixels.shape[1], pixels.shape[0]) == to:
        return pixels
    import torch.nn.functional as F

    # A leading axis before the channels move: so the tensor counts as channels-last, and the result is laid out as it.
    batch_NCHW = to_tensor(pixels)[None].permute(0, 3, 1, 2)
    scaled_NCHW = F.interpolate(batch_NCHW, size=(to[1], to[0]), mode="bilinear", antialias=True)
    scaled: Pixels = scaled_NCHW.permute(0, 2, 3, 1)[0].numpy()
    return scaled


def to_tensor(pixels: Pixels) -> Tensor:
    """Wrap an array; a part of one, or one that is mapped from a file, is copied first."""
    import torch

    return torch.from_numpy(pixels if pixels.flags.writeable and pixels.flags.c_contiguous else pixels.copy())


@contextlib.contextmanager
def _complaining(where: str) -> Iterator[None]:
    """Name the picture in whatever goes wrong."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers let out whatever broken bytes lead to, of many types
        raise Corrupt(f"{where}: cannot be decoded: {error}".replace("\n", " ")) from error


def _opened(data: bytes) -> Image:
    """Read a picture's header."""
    from PIL import Image as pil

    return pil.open(BytesIO(data))


def _orientation(image: Image) -> int:
    """Return the EXIF orientation, 1 to 8; damaged EXIF data does not make the picture useless."""
    with contextlib.suppress(Exception):  # as in `_complaining`, any type of error may come
        found = image.getexif().get(_ORIENTATION, 1)
        return int(found) if found in range(1, 9) else 1
    return 1


def _stored_size(image: Image) -> tuple[int, int]:
    """Return the (width, height) of the pixels of an opened picture as its file has them, before any turning.

    Of a TIFF, the file's own words count: as of 11.0, Pillow gives the size upright once the file is opened if a tag
    tells of the orientation, but not if XMP does; before, only once it is loaded.
    """
    if image.format in _TURNED:
        tags = image.tag_v2  # type: ignore[attr-defined]
        return int(tags[_TIFF_WIDTH]), int(tags[_TIFF_HEIGHT])
    return image.size


def _upright(size_: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return the size of a picture as displayed."""
    return (size_[1], size_[0]) if orientation in _LYING else size_


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation to (H, W, 3)."""
    import numpy as np

    if orientation == 1:
        return pixels
    if orientation in _LYING:
        pixels = pixels.transpose(1, 0, 2)
    mirrored = orientation in (2, 3, 6, 7)
    flipped = orientation in (3, 4, 7, 8)
    return np.ascontiguousarray(pixels[:: -1 if flipped else 1, :: -1 if mirrored else 1])


def _is_plain_jpeg(image: Image) -> bool:
    """Tell whether a picture is a JPEG in colour or grey; the first one of several counts as that."""
    return image.format in ("JPEG", "MPO") and image.mode in _PLAIN


def _jpeg(data: bytes, reduction: int) -> Pixels | None:
    """Decode a JPEG, at 1 / `reduction` of its size; None if there is anything unusual about it."""
    import simplejpeg

    least = {}
    with contextlib.suppress(ValueError):  # Pillow will say what is wrong, or bear it
        if reduction > 1:
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
            least = {"min_height": height // reduction, "min_width": width // reduction, "min_factor": reduction}
        pixels: Pixels = simplejpeg.decode_jpeg(data, **least)
        return pixels
    return None


def _array(image: Image) -> Pixels:
    import numpy as np

    return np.array(image)


def _rgb(image: Image) -> Image:
    """Convert any mode to RGB.

    Raises:
        ValueError: the mode has no agreed mapping to 8 bits (floating point, Lab).
    """
    from PIL import Image as pil

    if image.mode == "I" or image.mode.startswith("I;16"):
        # `convert("L")` clips at 255, which would turn a 16-bit picture white.
        return image.convert("I").point(lambda v: v * (1 / 257), "L").convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels; save the picture with 8 or 16 bits a channel")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        over = image.convert("RGBA")
        return pil.alpha_composite(pil.new("RGBA", over.size, "white"), over).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
