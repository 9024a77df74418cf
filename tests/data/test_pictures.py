"""Pictures from anywhere: pixel-exact where something has to be undone, one sentence where nothing can be."""

from __future__ import annotations

import importlib.util
import io
import random
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from explainode.data.pictures import load_picture
from explainode.errors import UserError


def save(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photo(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def exact(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def png_of_size(width: int, height: int) -> bytes:
    """A real, tiny PNG of one gray value: 1 bit per pixel, compressed to almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(row * min(256, height - top)) for top in range(0, height, 256)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# ---- read, with pixels held against an independent derivation


def test_plain_pictures_have_no_notes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(save(photo(), "PNG"))
    picture = load_picture(tmp_path / "a.png")
    assert torch.equal(picture.image, exact(photo())) and picture.notes == []
    assert load_picture(save(photo(), "BMP")).notes == load_picture(save(photo(), "JPEG")).notes == []
    assert torch.equal(load_picture(save(photo(), "WEBP", lossless=True)).image, exact(photo()))


def test_gray_and_bilevel() -> None:
    gray = photo().convert("L")
    assert torch.equal(load_picture(save(gray, "PNG")).image, exact(gray.convert("RGB")))
    assert set(load_picture(save(gray.convert("1"), "PNG")).image.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled(format: str) -> None:
    values = np.arange(0, 65536, 65, dtype=np.uint16)[:1008].reshape(28, 36)
    picture = load_picture(save(Image.fromarray(values), format))
    assert torch.equal(picture.image, torch.from_numpy(values.astype(np.float32) / np.float32(65535)).expand(3, -1, -1))
    assert picture.notes == ["16-bit gray scaled to [0, 1]"]


def test_32_bit_integers_are_stretched() -> None:
    values = np.linspace(-(10**6), 3 * 10**6, 600, dtype=np.int32).reshape(20, 30)
    picture = load_picture(save(Image.fromarray(values), "TIFF"))
    torch.testing.assert_close(picture.image[1], torch.from_numpy((values + 1e6) / 4e6).float())
    assert "stretched" in picture.notes[0]


def test_float_tiff() -> None:
    values = np.linspace(0, 0.7, 600, dtype=np.float32).reshape(20, 30)
    picture = load_picture(save(Image.fromarray(values), "TIFF"))
    assert torch.equal(picture.image[2], torch.from_numpy(values)) and "taken as [0, 1]" in picture.notes[0]
    picture = load_picture(save(Image.fromarray(values * 100 - 3), "TIFF"))
    torch.testing.assert_close(picture.image[0], torch.from_numpy(values / np.float32(0.7)))
    assert "stretched from [-3, 67]" in picture.notes[0]
    constant = load_picture(save(Image.fromarray(np.full((4, 4), 7.0, np.float32)), "TIFF"))
    assert torch.equal(constant.image, torch.zeros(3, 4, 4))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation: int) -> None:
    """Against the meaning of the tag in the EXIF standard, written with numpy."""
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }[orientation](np.array(photo()))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = load_picture(save(photo(), "PNG", exif=exif))
    assert torch.equal(picture.image, exact(Image.fromarray(np.ascontiguousarray(upright))))
    assert picture.notes == ([] if orientation == 1 else ["turned as its EXIF data say"])


def on_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return (color * alpha[..., None] + 255 * (1 - alpha[..., None])) / 255


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_shown_on_white(mode: str) -> None:
    rgba = np.array(photo().convert("RGBA"))
    rgba[:, :, 3] = np.linspace(0, 255, 40).round()
    image = Image.fromarray(rgba)
    if mode == "LA":
        image = image.convert("LA")
        rgba = np.array(image.convert("RGBA"))
    if mode == "P":
        image = photo().quantize(16)
        image.info["transparency"] = 3
        rgba = np.array(image.convert("RGBA"))
        data = save(image, "PNG", transparency=3)
    else:
        data = save(image, "PNG")
    picture = load_picture(data)
    expected = on_white(rgba[:, :, :3].astype(float), rgba[:, :, 3] / 255)
    np.testing.assert_allclose(picture.image.permute(1, 2, 0).numpy(), expected, atol=1.01 / 255)  # one step of 8 bits
    assert picture.notes == ["transparent parts shown on white"]


def test_opaque_alpha_needs_no_note() -> None:
    picture = load_picture(save(photo().convert("RGBA"), "PNG"))
    assert torch.equal(picture.image, exact(photo())) and picture.notes == []


def test_cmyk_is_converted() -> None:
    picture = load_picture(save(photo().convert("CMYK"), "JPEG", quality=95))
    assert picture.notes == ["converted from CMYK"] and (picture.image - exact(photo())).abs().mean() < 0.05


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(format: str) -> None:
    frames = [Image.new("RGB", (20, 16), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    picture = load_picture(save(frames[0], format, save_all=True, append_images=frames[1:], **options))
    assert picture.image.mean((1, 2)).tolist() == [1, 0, 0] and "first of several frames" in picture.notes


def test_size_is_the_center_of_the_resized_picture() -> None:
    """The same as resizing the shorter side, then cutting the center (both on a picture whose sides divide evenly)."""
    image = photo(80, 40)
    resized = image.resize((40, 20), Image.Resampling.BILINEAR).crop((10, 0, 30, 20))
    ours = load_picture(save(image, "PNG"), size=20)
    assert ours.image.shape == (3, 20, 20)
    assert (ours.image - exact(resized)).abs().max() <= 1.01 / 255  # one step of 8 bits
    assert load_picture(save(image.convert("L"), "PNG"), size=7).image.shape == (3, 7, 7)
    gray16 = Image.fromarray(np.array(image.convert("L")).astype(np.uint16) * 257)
    difference = (
        load_picture(save(gray16, "PNG"), size=20).image - load_picture(save(image.convert("L"), "PNG"), size=20).image
    )
    assert difference.abs().max() <= 1.01 / 255  # the 8-bit road rounds twice, the 16-bit road not at all


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_torn_exif_costs_a_note_not_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    data = save(photo(), "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert torch.equal(load_picture(data).image, exact(photo()))

    def fail(image: Image.Image) -> Image.Image:
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fail)
    picture = load_picture(PNG)
    assert torch.equal(picture.image, exact(photo())) and picture.notes == ["its EXIF data cannot be read; not turned"]


# ---- refused

JPEG, PNG = save(photo(), "JPEG"), save(photo(), "PNG")


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("cat.jpg", JPEG)
    return buffer.getvalue()


def float_tiff_with_nan() -> bytes:
    return save(Image.fromarray(np.array([[0, np.nan], [1, 2]], dtype=np.float32)), "TIFF")


REFUSED = {
    "empty": (b"", "is empty"),
    "text": (b"just some words, no picture", "not a picture"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "export it as PNG"),
    "zip": (zipped(), "unpack it"),
    "pdf": (b"%PDF-1.7\n%", "PDF"),
    "heic": (
        b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(100),
        "HEIC; export it as JPEG, or pip install" if importlib.util.find_spec("pillow_heif") is None else "HEIC",
    ),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "not a picture"),
    "junk of 12 MB": (random.Random(0).randbytes(12_000_000), "not a picture"),
    "a word with the head of a BMP": (b"BMW", "damaged"),
    "head of a JPEG": (JPEG[:20], "damaged"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "damaged"),
    "head of a PNG": (PNG[:30], "damaged"),
    "half a PNG": (PNG[: len(PNG) // 2], "damaged"),
    "half a GIF": (save(photo(), "GIF")[:300], "damaged"),
    "half a BMP": (save(photo(), "BMP")[:900], "damaged"),
    "half a TIFF": (save(photo(), "TIFF")[:900], "cannot be read"),
    "half a WebP": (save(photo(200, 150), "WEBP")[:80], "damaged"),
    "PNG with a changed byte": (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], "damaged"),
    "one pixel": (png_of_size(1, 1), "1x1 pixels; there is nothing to see"),
    "one line": (png_of_size(15, 1), "nothing to see"),
    "20000x20000": (png_of_size(20_000, 20_000), "more than 40 million"),
    "9000x9000": (png_of_size(9_000, 9_000), "9000x9000 pixels, more than 40 million"),
    "12000x12000": (png_of_size(12_000, 12_000), "more than 40 million"),
    "60000x40": (png_of_size(60_000, 40), "longer than 20 : 1"),
    "40x60000": (png_of_size(40, 60_000), "longer than 20 : 1"),
    "NaN in a float TIFF": (float_tiff_with_nan(), "NaN or infinite"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    data, expected = REFUSED[kind]
    path = tmp_path / "cat.jpg"
    path.write_bytes(data)
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        load_picture(path)
    message = str(caught.value)
    assert expected in message and message.startswith(str(path)) and "\n" not in message
    assert "<_io" not in message and len(message) - len(str(path)) < 200
    assert time.process_time() - start < 1  # nothing huge was decoded


def test_limits_are_inclusive() -> None:
    assert load_picture(png_of_size(800, 40)).image.shape == (3, 40, 800)  # 20 : 1
    assert load_picture(png_of_size(2, 2)).image.shape == (3, 2, 2)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*nowhere.jpg"):
        load_picture(tmp_path / "nowhere.jpg")
    with pytest.raises(UserError, match="is a folder"):
        load_picture(tmp_path)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of torn metadata; whether it does is not our concern
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_mutated_bytes_never_raise_anything_else(format: str) -> None:
    """100 files per format, 600 in all, each with a few bytes changed, cut out or doubled, half of them in the first 200 bytes."""
    original, rng = save(photo(64, 48), format), random.Random(format)
    read = 0
    for _ in range(100):
        data = bytearray(original)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(min(200, len(data))) if rng.random() < 0.5 else rng.randrange(len(data))
            action = rng.random()
            if action < 0.7:
                data[at] = rng.randrange(256)
            elif action < 0.85:
                del data[at : at + rng.randint(1, 20)]
            else:
                data[at:at] = data[at : at + rng.randint(1, 20)]
        try:
            picture = load_picture(bytes(data), size=16)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        read += 1
        assert picture.image.shape == (3, 16, 16) and picture.image.dtype == torch.float32
        assert picture.image.isfinite().all() and picture.image.min() >= 0 and picture.image.max() <= 1
    assert read < 100  # the mutations do bite


# ---- what TIFF can hold, by values written down by hand


def tiff(
    values: np.ndarray, photometric: int = 1, channels: int = 1, order: str = "<", bits: int | None = None
) -> bytes:
    """An uncompressed TIFF of one strip."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    bits = bits or values.dtype.itemsize * 8
    entries = [(256, values.shape[1]), (257, values.shape[0]), (258, bits), (259, 1), (262, photometric), (273, 8), (277, channels),
               (278, values.shape[0]), (279, len(data)), (339, kind)]  # fmt: skip
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    directory = struct.pack(f"{order}H", len(entries))
    directory += b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in entries)
    return head + data + directory + bytes(4)


RAMP = np.linspace(0, 1, 12 * 16).reshape(12, 16)


def test_unsigned_32_bits_keep_their_order() -> None:
    """Pillow reads them as signed: the brighter half would come before the darker one."""
    picture = load_picture(tiff((RAMP * (2**32 - 1)).astype(np.uint32)))
    assert np.allclose(picture.image[0].numpy(), RAMP, atol=1e-6)
    signed = load_picture(tiff(((RAMP - 0.5) * 2**31).astype(np.int32)))
    assert np.allclose(signed.image[0].numpy(), RAMP, atol=1e-6)


def test_white_is_zero_is_turned() -> None:
    picture = load_picture(tiff((RAMP * 65535).round().astype(np.uint16), photometric=0))
    assert np.allclose(picture.image[0].numpy(), 1 - RAMP, atol=1e-5)
    assert any("white is zero" in note for note in picture.notes)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tiff(RAMP.astype(np.float64)), "64-bit floating-point"),
        (tiff(np.repeat(RAMP.astype(np.float32), 3, 1).reshape(12, 16, 3), photometric=2, channels=3), "3 channels of 32-bit floating-point"),
        (tiff(RAMP.astype(np.uint64)), "64-bit integers"),
        (tiff((RAMP * 2**31).astype(np.uint32), order=">"), "32-bit integers (big-endian)"),
        (tiff((RAMP * 65535).astype(np.uint16), photometric=0, order=">"), "16-bit integers (big-endian, white is zero)"),
    ],
)  # fmt: skip
def test_samples_that_are_not_read_are_named(data: bytes, words: str) -> None:
    with pytest.raises(UserError, match="is a TIFF of") as caught:
        load_picture(data)
    assert words in str(caught.value) and "damaged" not in str(caught.value)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(8 << 30)
    start = time.monotonic()
    with pytest.raises(UserError, match="8192 MiB"):
        load_picture(path)
    with pytest.raises(UserError, match="no file of a picture"):
        load_picture("/dev/zero")
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_small_and_looks_the_same(orientation: int) -> None:
    small = photo(300, 240).resize((3600, 2880), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = load_picture(save(small, "JPEG", quality=95, exif=exif), 64)
    turned = small.rotate(-90, expand=True) if orientation == 6 else small
    assert picture.source_size == (turned.height, turned.width)
    assert (picture.image - load_picture(save(turned, "PNG"), 64).image).abs().mean() < 0.01


def test_a_panorama_is_decoded_at_a_fraction_of_its_size():
    """54 million pixels, more than are decoded; a JPEG can be read at an eighth of its size."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((9000, 6000), Image.Resampling.BILINEAR).save(file, "JPEG", quality=60)
    picture = load_picture(file.getvalue(), 64)
    assert picture.source_size == (6000, 9000) and picture.image.shape == (3, 64, 64)
    expected = load_picture(_jpeg(Image.linear_gradient("L").resize((900, 600), Image.Resampling.BILINEAR)), 64)
    assert (picture.image - expected.image).abs().max() < 0.02
    with pytest.raises(UserError, match="more than 40 million"):
        load_picture(file.getvalue())  # whole, as masks need it


def _jpeg(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


def test_heic_is_read_where_pillow_heif_is_installed():
    heif = pytest.importorskip("pillow_heif", reason="HEIC needs pillow-heif")
    file = io.BytesIO()
    try:
        heif.from_pillow(Image.new("RGB", (64, 48), (200, 40, 40))).save(file, quality=90)
    except Exception as error:  # an installation that reads only
        pytest.skip(f"this pillow-heif cannot write: {error}")
    picture = load_picture(file.getvalue(), 16)
    assert (picture.image.mean((1, 2)) * 255 - torch.tensor([200.0, 40.0, 40.0])).abs().max() < 8
