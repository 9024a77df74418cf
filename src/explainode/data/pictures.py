"""One picture from anywhere: read safely, turned upright, scaled to [0, 1], or refused in one sentence."""

from __future__ import annotations

import io
import stat
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence
from torch import Tensor

from explainode.errors import UserError

MAX_PIXELS = 40_000_000  # checked before decoding: a PNG of 236 kB can unpack to 600 MB
MAX_REDUCED = 400_000_000  # of a JPEG that is decoded at a fraction of its size, such as a telephone's panorama
MAX_BYTES = 400 << 20  # more than 40 million pixels of 16 bits take without compression
DRAFT_PIXELS = 8_000_000  # of a JPEG: above, it is decoded at a half, a quarter or an eighth of its size, at least twice as large as asked for
MAX_ASPECT = 20
# Raster formats that Pillow decodes by itself; among the others are some that start programs (EPS) or hold no pixels.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF", "ICO", "HEIF")
BITS, PHOTOMETRIC, SAMPLES, FORMAT = 258, 262, 277, 339  # tags of a TIFF
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


@dataclass
class Picture:
    """A picture as a network may see it.

    Attributes:
        image: (3, H, W) float32 in [0, 1].
        notes: what was done to it that its owner may not expect.
        source_size: height and width before it was cut and resized.
    """

    image: Tensor
    notes: list[str] = field(default_factory=list)
    source_size: tuple[int, int] = (0, 0)


def load_picture(source: str | Path | bytes, size: int | None = None, upright: bool = True) -> Picture:
    """Reads a file, or its bytes.

    16-bit and floating-point gray is scaled to [0, 1], EXIF rotation is applied, transparency is laid on white, the first frame of an
    animation is taken; notes say so. With `size` the central square is cut out and resized to size x size (the same as resizing the shorter
    side first, without ever building a larger picture). `upright=False` leaves it as it is stored, which is what masks and boxes refer to.

    Raises:
        UserError: if it is no picture or a torn one, has more than 40 million pixels, one pixel, or sides of more than 20 : 1.
    """
    name = "the picture" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else _read(Path(source))
    if not data:
        raise UserError(f"{name} is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
            opened = Image.open(io.BytesIO(data), formats=[f for f in FORMATS if f in _known_formats()])
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} has more than {MAX_PIXELS // 10**6} million pixels; scale it down first") from error
    except Exception as error:  # foreign bytes may break a parser in any way
        raise UserError(f"{name} is not a picture that can be read: {_guess(data)}") from error
    width, height = opened.size
    if size is not None and width * height <= MAX_REDUCED:
        reduce_jpeg(opened, size)
    if opened.width * opened.height > MAX_PIXELS:
        raise UserError(
            f"{name} has {width}x{height} pixels, more than {MAX_PIXELS // 10**6} million; scale it down first"
        )
    if min(width, height) < 2:
        raise UserError(f"{name} has {width}x{height} pixels; there is nothing to see in less than 2x2")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(
            f"{name} has {width}x{height} pixels, longer than {MAX_ASPECT} : 1; cut out the part that matters"
        )
    try:
        with opened:
            return _decode(opened, (width, height), size, upright)
    except UserError as error:
        raise UserError(f"{name} {error}") from error.__cause__
    except Exception as error:  # foreign bytes may break a decoder in any way
        raise UserError(
            f"{name} is damaged and cannot be read ({str(error).strip() or type(error).__name__}); get it anew"
        ) from error


def reduce_jpeg(image: Image.Image, size: int) -> None:
    """Let a large JPEG be decoded at a half, a quarter or an eighth of its size, at least twice as large as asked for; others stay."""
    if image.format in ("JPEG", "MPO") and image.width * image.height > DRAFT_PIXELS:
        image.draft(None, (2 * size * image.width // min(image.size), 2 * size * image.height // min(image.size)))


def _known_formats() -> set[str]:
    Image.init()
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return set(Image.OPEN)
    register_heif_opener()
    return set(Image.OPEN)


def _read(path: Path) -> bytes:
    try:
        about = path.expanduser().stat()
        if stat.S_ISREG(about.st_mode) and about.st_size > MAX_BYTES:
            raise UserError(
                f"{path} has {about.st_size >> 20} MiB, more than {MAX_BYTES >> 20}; it is no picture, or has to be scaled down first"
            )
        if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
            raise UserError(f"{path} is no file of a picture; copy it to one first")
        return path.expanduser().read_bytes()
    except FileNotFoundError:
        raise UserError(f"no file {path}; check the path") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name one picture in it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error


def _guess(data: bytes) -> str:
    """What the bytes look like instead, and what to do."""
    head = data[:512].lstrip().lower()
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        return "it is HEIC; export it as JPEG, or pip install pillow-heif"
    if b"<svg" in head:
        return "it is SVG, a drawing without pixels; export it as PNG"
    if head.startswith((b"<!doctype html", b"<html")):
        return "it is a web page; save the picture itself"
    if data[:4] == b"PK\x03\x04":
        return "it is a zip archive; unpack it first"
    if data[:4] == b"%PDF":
        return "it is a PDF; export the page as PNG"
    if data[:4] in (b"II*\0", b"MM\0*") and (told := _tiff_samples(data)) is not None:
        return f"it is a TIFF of {told}, which is not read; save it as PNG"
    if data.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")):
        return "it begins like one, but is damaged; get it anew"
    return "expected JPEG, PNG, WebP, GIF, TIFF or BMP"


def _tiff_samples(data: bytes) -> str | None:
    """What the samples of a TIFF are that Pillow does not know; None where its first directory is torn."""
    order = "<" if data[:2] == b"II" else ">"
    kinds = {3: ("H", 2), 4: ("I", 4)}  # SHORT and LONG
    found: dict[int, tuple[int, ...]] = {}
    try:
        (at,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, at)
        for entry in range(min(count, 200)):
            tag, kind, number, _ = struct.unpack_from(f"{order}HHII", data, at + 2 + 12 * entry)
            if kind in kinds and number <= 16:
                letter, size = kinds[kind]
                place = at + 10 + 12 * entry
                if number * size > 4:
                    (place,) = struct.unpack_from(f"{order}I", data, place)
                found[tag] = struct.unpack_from(f"{order}{number}{letter}", data, place)
    except struct.error:
        return None
    if BITS not in found:
        return None
    sort = {
        1: "integers",
        2: "signed integers",
        3: "floating-point numbers",
        5: "complex integers",
        6: "complex numbers",
    }
    channels = found.get(SAMPLES, (1,))[0]
    kind = sort.get(found.get(FORMAT, (1,))[0], "samples of an unknown format")
    layout = (
        ("little" if order == "<" else "big")
        + "-endian"
        + (", white is zero" if found.get(PHOTOMETRIC) == (0,) else "")
    )
    return f"{channels} channel{'s' if channels > 1 else ''} of {'/'.join(map(str, dict.fromkeys(found[BITS])))}-bit {kind} ({layout})"


def _decode(image: Image.Image, upright_size: tuple[int, int], size: int | None, upright: bool) -> Picture:
    """Pixels in [0, 1] of a picture that was `upright_size` before anything reduced it: upright, cut and resized before anything is
    converted, as conversions of the whole picture cost memory."""
    notes: list[str] = []
    if image.format in ("GIF", "WEBP", "PNG", "TIFF", "AVIF") and _has_second_frame(image):
        notes.append("first of several frames")
    tags = dict(getattr(image, "tag_v2", {}))  # before anything makes another picture of it
    image.load()
    if upright:
        image = _upright(image, notes)
    if upright_size[0] != upright_size[1] and (image.width > image.height) != (upright_size[0] > upright_size[1]):
        upright_size = upright_size[::-1]  # turned
    source_size = (upright_size[1], upright_size[0])
    if image.mode.startswith(("I", "F")):
        gray = resize_square(Image.fromarray(_scale_gray(image, notes, tags)), size)
        return Picture(torch.from_numpy(np.array(gray)).clamp_(0, 1).expand(3, -1, -1).contiguous(), notes, source_size)
    if image.mode == "CMYK":
        notes.append("converted from CMYK")
    if image.has_transparency_data:
        layered = resize_square(image.convert("RGBA"), size)
        if layered.getchannel("A").getextrema() != (255, 255):
            notes.append("transparent parts shown on white")
        rgb = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    else:
        rgb = resize_square(image if image.mode == "RGB" else image.convert("RGB"), size)
    return Picture(torch.from_numpy(np.array(rgb)).permute(2, 0, 1).to(torch.float32).div_(255), notes, source_size)


def central_square(height: int, width: int) -> tuple[float, float, int]:
    """Top, left and side of the square that is cut out; top and left are halves of pixels where a side is odd and the other even."""
    side = min(height, width)
    return (height - side) / 2, (width - side) / 2, side


def resize_square(image: Image.Image, size: int | None) -> Image.Image:
    """The central square as size x size; the whole picture without a size."""
    if size is None:
        return image
    top, left, side = central_square(image.height, image.width)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        orientation = image.getexif().get(0x0112, 1)
        upright = ImageOps.exif_transpose(image)
    except Exception:  # torn metadata in any way; the pixels are not worse for it
        notes.append("its EXIF data cannot be read; not turned")
        return image
    if orientation in range(2, 9):
        notes.append("turned as its EXIF data say")
    return upright


def _has_second_frame(image: Image.Image) -> bool:
    """Looks one frame ahead only: counting them would decode a whole film."""
    try:
        frames = ImageSequence.Iterator(image)
        frames[1]
    except (IndexError, EOFError):
        return False
    finally:
        image.seek(0)
    return True


def _scale_gray(image: Image.Image, notes: list[str], tags: Mapping[int, Any]) -> np.ndarray:
    """Gray of 12, 16 or 32 bits or floats -> float32 in [0, 1].

    Integers up to 65535 are taken as 16-bit, floats in [0, 1] as they are; anything else is stretched from its least to its largest value.

    Args:
        tags: of a TIFF: unsigned 32-bit values, which Pillow reads as signed ones, 12 bits, and whether white is zero, which it does not look at.
    """
    values = np.asarray(image)
    bits = tags.get(BITS, (16,))[0]
    if bits == 32 and values.dtype == np.int32 and tags.get(FORMAT, (1,))[0] == 1:
        values = values.view(np.uint32)
    scaled = _to_unit(values, 4095 if bits == 12 else 65535, notes)
    if tags.get(PHOTOMETRIC) == 0:
        notes.append("white is zero: turned")
        return 1 - scaled
    return scaled


def _to_unit(values: np.ndarray, full: int, notes: list[str]) -> np.ndarray:
    """Values as float32 in [0, 1]; `full` is white of integers."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise UserError("holds NaN or infinite values; replace them first")
    if values.dtype.kind in "iu" and low >= 0 and high <= full:
        notes.append(f"{full.bit_length()}-bit gray scaled to [0, 1]")
        return values.astype(np.float32) / np.float32(full)
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        notes.append("floating-point gray taken as [0, 1]")
        return values.astype(np.float32)
    notes.append(f"gray stretched from [{low:g}, {high:g}] to [0, 1]")
    span = high - low if high > low else 1.0
    return ((values.astype(np.float64) - low) / span).astype(np.float32)
