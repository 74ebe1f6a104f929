"""What Pillow's readers are given of a file: its pixels, and of the metadata the orientation alone."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from msmlp.model.errors import UndecodableImageError
from msmlp.model.metadata import FEWEST_PARTS, MOST_TABLES, without_metadata
from msmlp.model.preprocess import decode, open_image

STORED = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
PICTURE = Image.fromarray(STORED)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(150_000)  # as of a printer
XMP = b"<x:xmpmeta>" + b"<rdf:li>a step of the picture's history</rdf:li>" * 1000 + b"</x:xmpmeta>"
TURNED_XMP = b'<x:xmpmeta tiff:Orientation="6"/>'


def encode(kind: str, image: Image.Image = PICTURE, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def turned() -> Image.Exif:
    """As a camera writes it."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0132], exif[0x0112] = "Canon", "EOS 5D", "2026:11:29 12:00:00", 6
    exif.get_ifd(0x8769)[0x927C] = bytes(30_000)  # what only the maker can read
    return exif


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*chunks: bytes, last: bool = False) -> bytes:
    """A PNG with chunks after its header, or before its end."""
    plain, at = encode("PNG"), -12 if last else 33
    return plain[:at] + b"".join(chunks) + plain[at:]


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def jpeg(*segments: bytes) -> bytes:
    plain = encode("JPEG")
    return plain[:2] + b"".join(segments) + plain[2:]


def tiff(entries: int, *first: bytes, order: str = "<") -> bytes:
    """An EXIF block with texts for entries."""
    rest = (struct.pack(order + "HHII", 0x9000, 2, 60_000, 0) for _ in range(entries - len(first)))
    head = struct.pack(order + "HIH", 42, 8, entries)
    return (b"II" if order == "<" else b"MM") + head + b"".join((*first, *rest)) + bytes(60_000)


def turn(order: str = "<") -> bytes:
    return struct.pack(order + "HHIHH", 0x0112, 3, 1, 6, 0)


INFLATES = zlib.compress(bytes(2**20), 9)
WASTE = {
    "profiles": [chunk(b"iCCP", b"a\0\0" + INFLATES)] * 15,
    "texts": [chunk(b"tEXt", b"a\0b")] * 900,
    "compressed texts": [chunk(b"zTXt", b"a\0\0" + INFLATES)] * 15,
    "compressed international texts": [chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + INFLATES)] * 15,
    "unknown": [chunk(b"abCd", b"")] * 1000,
    "EXIF of many entries": [chunk(b"eXIf", tiff(65_535))],
    "EXIF as a text of newlines": [chunk(b"tEXt", b"Raw profile type exif\0" + b"\n" * 10**6)],
    "an animation": [chunk(b"acTL", struct.pack(">II", 9, 0))],
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("chunks", WASTE.values(), ids=WASTE)
def test_pillow_gets_no_metadata_of_a_png(chunks: list[bytes], last: bool) -> None:
    assert without_metadata(png(*chunks, last=last)) == (encode("PNG"), 1, b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_decoding_gives_pillow_that_file(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, opened = [], Image.open
    monkeypatch.setattr(Image, "open", lambda stream, **options: given.append(stream.getvalue()) or opened(stream))
    full, bare = photograph(kind)
    decode(full)
    decode(bare)
    assert given[0] == given[1] == without_metadata(bare).data


def test_pillow_gets_no_metadata_of_a_jpeg_but_how_its_colours_are_stored() -> None:
    exif = [segment(0xE1, b"Exif\0\0" + bytes(60))] * 900
    others = [segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP), segment(0xE2, b"MPF\0"), segment(0xED, b"8BIM")]
    assert without_metadata(jpeg(*exif, *others, segment(0xFE, b"comment"))) == (encode("JPEG"), 1, b"")
    cmyk = encode("JPEG", PICTURE.convert("CMYK"))
    assert b"Adobe" in cmyk
    assert without_metadata(cmyk) == (cmyk, 1, b"")


@pytest.mark.parametrize("content", [b"", b"JFIF", b"JFIF\0\1", b"JFIF\0\1\1\0\0\1\0"])
def test_a_jfif_segment_too_short_to_be_heeded_is_left_out(content: bytes) -> None:
    plain = encode("JPEG")
    short = plain[:2] + segment(0xE0, content) + plain[20:]
    assert np.array_equal(np.asarray(decode(short)), np.asarray(decode(plain)))


def test_an_adobe_segment_too_short_to_be_heeded_is_left_out() -> None:
    assert without_metadata(jpeg(segment(0xEE, b"Adobe\0"))) == (encode("JPEG"), 1, b"")


def test_what_a_jpeg_has_between_its_segments_is_left_out() -> None:
    plain = encode("JPEG")
    assert without_metadata(plain[:20] + b"\0junk\xff\0\xff\xff\xff" + plain[20:]) == (plain, 1, b"")


@pytest.mark.parametrize(
    "data",
    [
        png(chunk(b"abCd", b"") * 21_000),
        png(chunk(b"IDAT", b"") * 21_000),
        jpeg(segment(0xE1, b"Exif\0\0" + bytes(20)) * 20_000),
        jpeg(segment(0xDD, b"\0\0") * 20_000),
        jpeg(b"\xff" * 100_000),
        encode("WEBP") + b"abcd\0\0\0\0" * 20_000,
        encode("GIF")[:781] + b"!\xf9" + b"\1a" * 20_000 + b"\0" + encode("GIF")[781:],
        encode("GIF")[:781] + b"!\xf9\0" + b"\1a" * 20_000 + b"\0" + encode("GIF")[781:],
        encode("GIF")[:781] + b"!\xfe\1a\0" * 20_000 + encode("GIF")[781:],
    ],
    ids=["PNG", "PNG-pixels", "JPEG", "JPEG-tables", "JPEG-filled", "WEBP", "GIF", "GIF-empty", "GIF-comments"],
)
def test_far_more_parts_than_encoders_make_are_refused(data: bytes) -> None:
    most = FEWEST_PARTS + len(data) // (64 if data.startswith(b"GIF") else 256)
    with pytest.raises(UndecodableImageError, match=f"more than {most} parts, the limit for one of {len(data)} bytes"):
        decode(data)


def test_endless_tables_are_refused() -> None:
    with pytest.raises(
        UndecodableImageError, match=f"the JPEG's tables have more bytes than the limit of {MOST_TABLES}"
    ):
        decode(jpeg(segment(0xDB, (b"\0" + bytes([1]) * 64) * 900) * 2))


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (b"\xff\xd9", "ends before its first scan"),
        (b"\xff\xc8\0\2", r"uses an extension that is not supported \(marker 0xc8\)"),
        (b"\xff\xf0\0\2", r"uses an extension that is not supported \(marker 0xf0\)"),
    ],
)
def test_what_ends_a_jpeg_before_its_scan_hides_nothing(end: bytes, said: str) -> None:
    """Pillow's reader goes on, and would join and read all that follows."""
    with pytest.raises(UndecodableImageError, match=f"the JPEG {said}"):
        decode(jpeg(end + segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 9))


def test_a_jpeg_s_scan_is_read_at_once() -> None:
    """libjpeg looks at bytes that fill it again with every block it is given."""
    plain = encode("JPEG", Image.new("RGB", (64, 64)))
    image = open_image(plain[:-8] + b"\xff" * 500_000 + b"\xd9")
    read, sizes = image.fp.read, list[int]()  # type: ignore[union-attr]
    image.fp.read = lambda size: sizes.append(size) or read(size)  # type: ignore[method-assign, union-attr, func-returns-value]
    image.load()
    assert len(sizes) == 1


def test_a_gif_has_no_extensions_but_controls() -> None:
    gif = encode("GIF")
    control, other = b"!\xf9\4\5\0\0\0\0", b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0"
    odd = [other, b"!\xfe\3abc\0", b"!\xf9\5\0\0\0\0\0\0", b"!\xf9\0\3abc\0"]
    assert without_metadata(gif[:781] + control + b"".join(odd) + gif[781:]).data == gif[:781] + (
        control.replace(b"\5", b"\1") + gif[781:]
    )


def test_ordinary_files_of_many_parts_are_read() -> None:
    pixels = encode("PNG", Image.fromarray(np.resize(STORED, (900, 900, 3))), compress_level=0)
    content = pixels[41 : 41 + int.from_bytes(pixels[33:37], "big")]
    rest = pixels[45 + len(content) :]
    while rest[4:8] == b"IDAT":
        length = int.from_bytes(rest[:4], "big")
        content, rest = content + rest[8 : 8 + length], rest[12 + length :]
    short = b"".join(chunk(b"IDAT", content[at : at + 1024]) for at in range(0, len(content), 1024))
    assert np.array_equal(np.asarray(decode(pixels[:33] + short + rest)), np.resize(STORED, (900, 900, 3)))
    xmp = b"!\xff\x0bXMP DataXMP" + b"".join(b"\x40" + bytes(64) for _ in range(1500)) + b"\0"
    gif = encode("GIF")
    assert np.array_equal(np.asarray(decode(gif[:781] + xmp + gif[781:])), np.asarray(decode(gif)))


@pytest.mark.parametrize("disposal", [1, 2, 3])
def test_what_becomes_of_a_gif_s_frame_afterwards_changes_nothing(disposal: int) -> None:
    frames = [PICTURE.convert("P"), Image.fromarray(255 - STORED).convert("P")]
    options = {"save_all": True, "append_images": frames[1:], "transparency": 0}
    data, plain = (encode("GIF", frames[0], disposal=each, **options) for each in (disposal, 0))
    assert data != plain
    assert np.array_equal(np.asarray(decode(data)), np.asarray(decode(plain)))


def photograph(kind: str) -> tuple[bytes, bytes]:
    """With some 200 KB of metadata, and without; turned."""
    if kind == "PNG":
        texts = PngImagePlugin.PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
        texts.add_text("Comment", STORED.tobytes().hex() * 20)
        texts.add_text("Software", "Adobe Photoshop")
        return encode(kind, pnginfo=texts, icc_profile=PROFILE, exif=turned(), dpi=(300, 300)), encode(kind)
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"quality": 95}
    data = encode(kind, icc_profile=PROFILE, exif=turned(), xmp=XMP, **options)
    if kind == "JPEG":
        more = segment(0xED, b"Photoshop 3.0\x008BIM\4\4\0\0\0\0\0\0") + segment(0xFE, b"a comment")
        data = data[:2] + (more + segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(60_000))) + data[2:]
    return data, encode(kind, **options)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_photograph_full_of_metadata_has_the_same_pixels_turned_but_for_a_webp(kind: str) -> None:
    full, bare = photograph(kind)
    assert len(full) > len(bare) + (100_000 if kind == "PNG" else 200_000)
    wanted = np.asarray(decode(bare))
    assert np.array_equal(np.asarray(decode(full)), wanted if kind == "WEBP" else np.rot90(wanted, -1))


RAW_EXIF = b"Raw profile type exif\0"
HEX = b"\nexif\n%8d\n" % 90 + (b"Exif\0\0" + tiff(2, turn())).hex().encode()[:9000] + b"\n"
TOLD = {
    "EXIF": png(chunk(b"eXIf", tiff(2, turn()))),
    "EXIF, most significant byte first": png(chunk(b"eXIf", tiff(2, turn(">"), order=">"))),
    "EXIF of many entries": png(chunk(b"eXIf", tiff(65_535, turn()))),
    "JPEG": jpeg(segment(0xE1, b"Exif\0\0" + tiff(2, turn())[:1000])),
    "JPEG after a comment": jpeg(segment(0xFE, b""), segment(0xE1, b"Exif\0\0" + tiff(2, turn())[:1000])),
}


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what is to be compared
@pytest.mark.parametrize("data", TOLD.values(), ids=TOLD)
def test_the_orientation_is_found(data: bytes) -> None:
    assert without_metadata(data).orientation == 6
    image = Image.open(io.BytesIO(data))
    image.load()
    assert image.getexif()[0x0112] == 6


UNTOLD = {
    "XMP": png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + TURNED_XMP)),
    "XMP, compressed": png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(TURNED_XMP))),
    "EXIF before XMP": png(
        chunk(b"eXIf", tiff(2, struct.pack("<HHIHH", 0x0112, 3, 1, 1, 0))),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + TURNED_XMP),
    ),
    "EXIF, as a long number": png(chunk(b"eXIf", tiff(2, struct.pack("<HHII", 0x0112, 4, 1, 6)))),
    "EXIF, two numbers": png(chunk(b"eXIf", tiff(2, struct.pack("<HHIHH", 0x0112, 3, 2, 6, 6)))),
    "EXIF after the pixels": png(chunk(b"eXIf", tiff(2, turn())), last=True),
    "EXIF with a bad checksum": png(chunk(b"eXIf", tiff(2, turn()))[:-4] + b"sums"),
    "EXIF as in a JPEG": png(chunk(b"eXIf", b"Exif\0\0" + tiff(2, turn()))),
    "EXIF as a text": png(chunk(b"tEXt", RAW_EXIF + HEX)),
    "EXIF as a compressed text": png(chunk(b"zTXt", RAW_EXIF + b"\0" + zlib.compress(HEX))),
    "no number": png(chunk(b"eXIf", tiff(2, struct.pack("<HHII", 0x0112, 2, 1, 6)))),
    "a directory outside": png(chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")),
}


@pytest.mark.parametrize("data", UNTOLD.values(), ids=UNTOLD)
def test_there_is_no_other_orientation(data: bytes) -> None:
    assert without_metadata(data) == (encode("PNG"), 1, b"")


def test_a_webp_keeps_no_exif_once_it_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Exif, "load", lambda self, data: pytest.fail("no block of a caller's is parsed"))
    assert np.array_equal(
        np.asarray(decode(encode("WEBP", lossless=True, exif=b"Exif\0\0" + tiff(5000, turn())))), STORED
    )
