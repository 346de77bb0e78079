"""One picture in many forms of file: whatever the format, depth, orientation or compression, it is the same picture to the
network, or it is refused by name."""

import struct
import sys
import warnings
import zlib

import numpy as np
import pydicom
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from deepchest_utils import TrainConfig, train
from deepchest_utils.datasets import DataError, DataWarning, load_dataset
from deepchest_utils.datasets.decode import decode, has_few_levels, to_bytes
from deepchest_utils.explain.predict import load_trained, predict_image

y, x = np.mgrid[:256, :200] / 256
PICTURE = 0.75 - 0.55 * (np.exp(-(((x - 0.22) / 0.1) ** 2) - ((y - 0.5) / 0.3) ** 2))  # dark lungs
PICTURE -= 0.55 * np.exp(-(((x - 0.56) / 0.1) ** 2) - ((y - 0.5) / 0.3) ** 2)
PICTURE += 0.3 * np.exp(-(((x - 0.46) / 0.1) ** 2) - ((y - 0.65) / 0.1) ** 2)  # a heart on the right of the picture
PICTURE[10:30, 10:30] = 1  # a marker on top, on the left
PICTURE = PICTURE.clip(0, 1)
GREY = np.rint(PICTURE * 255).astype(np.uint8)
IMAGE = Image.fromarray(GREY)
TWELVE, SIXTEEN = (np.rint(PICTURE * (2**bits - 1)).astype(np.uint16) for bits in (12, 16))


def write_png(path, values, sbit=None):
    """16 bits a channel, as Pillow writes no colour."""
    channels = 1 if values.ndim == 2 else values.shape[2]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = values.astype(">u2").reshape(len(values), -1).view(np.uint8)
    header = struct.pack(">IIBBBBB", values.shape[1], len(values), 16, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *([(b"sBIT", bytes([sbit] * channels))] if sbit else [])]
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))), (b"IEND", b"")]
    packed = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def write_strips(path, values, planes=False):
    """16-bit colour in TIFF, as OpenCV writes it: a strip a 16 rows; planes: each colour for itself."""
    height, width, channels = values.shape
    parts = [block.tobytes() for block in np.split(values.astype("<u2"), height // 16)]
    if planes:
        parts = [np.ascontiguousarray(values[..., c], "<u2").tobytes() for c in range(channels)]
    places = 8 + np.cumsum([0, *map(len, parts)])
    lists = {258: ("H", [16] * channels), 273: ("I", places[:-1]), 279: ("I", [*map(len, parts)])}
    tags, after = {256: width, 257: height, 259: 1, 262: 2, 277: channels, 278: 16, 284: 1 + planes}, b""
    entries = [(tag, struct.pack("<HHII", tag, 4, 1, value)) for tag, value in tags.items()]
    if planes:
        entries = [e for e in entries if e[0] != 278] + [(278, struct.pack("<HHII", 278, 4, 1, height))]
    for tag, (form, numbers) in lists.items():
        entries.append((tag, struct.pack("<HHII", tag, {"H": 3, "I": 4}[form], len(numbers), places[-1] + len(after))))
        after += struct.pack(f"<{len(numbers)}{form}", *map(int, numbers)) + bytes(2 * (len(numbers) * 2 % 4 > 0))
    directory = struct.pack("<H", len(entries)) + b"".join(entry for _, entry in sorted(entries)) + bytes(4)
    head = b"II*\0" + struct.pack("<I", int(places[-1]) + len(after))
    path.write_bytes(head + b"".join(parts) + after + directory)


def write_odd_exif(path):
    """A photograph that lies on its side, with a tag of a type that it should not have: Make as 16-bit numbers."""
    IMAGE.transpose(Image.Transpose.ROTATE_90).save(path, quality=95)
    entries = struct.pack("<HHI4s", 0x10F, 3, 1, b"17\0\0") + struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + entries + bytes(4)
    jpeg = path.read_bytes()
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])


def write_tiff(path, pixels, bits, kind=1, photometric=1, channels=1, order="<", shape=GREY.shape):
    """One uncompressed strip with these tags."""
    per_channel = struct.pack(f"{order}{channels}H", *[bits] * channels)
    pixels = bytes(pixels) + bytes(len(pixels) % 2)
    place = 8 + len(pixels)
    tags = {256: shape[1], 257: shape[0], 259: 1, 262: photometric, 273: 8, 277: channels, 278: shape[0], 339: kind}
    tags |= {258: bits if channels == 1 else place, 279: len(pixels)}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    if channels > 1:
        entries = entries.replace(
            struct.pack(f"{order}HHII", 258, 4, 1, place), struct.pack(f"{order}HHII", 258, 3, channels, place)
        )
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(
        f"{order}I", place + len(per_channel) + len(per_channel) % 2
    )
    path.write_bytes(head + pixels + per_channel + bytes(len(per_channel) % 2) + directory)


def dicom(values, bits=12, kind="MONOCHROME2", signed=False, syntax=ExplicitVRLittleEndian, **tags) -> Dataset:
    """A digital radiograph with these pixels."""
    data, size = Dataset(), 8 if bits == 8 else 16
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = values.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, kind
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = size, bits, bits - 1, int(signed)
    data.PixelData = values.astype(f"<{'i' if signed else 'u'}{size // 8}").tobytes()
    data["PixelData"].VR = "OB" if size == 8 else "OW"
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def write_dicom(path, values, **options):
    dicom(values, **options).save_as(path, enforce_file_format=True)


def lut(entries, first, bits) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = [int(entry) for entry in entries]
    item["LUTData"].VR = "US"
    return [item]


def write_compressed(path, values, syntax, **options):
    """Through GDCM, which names transfer syntaxes in its own way."""
    import gdcm

    write_dicom(path, values, **options)
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def transparent_margin(path):
    image = IMAGE.convert("RGBA")
    image.putalpha(Image.fromarray(np.where(x < 0.2, 0, 255).astype(np.uint8)))
    image.save(path)


# orientation -> how the pixels of a file that says it lie, of a picture that is upright when shown
LYING = {
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def write_lying(path, orientation, image=IMAGE, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = image if orientation == 1 else image.transpose(LYING[orientation])
    lying.save(path, exif=exif, **options)


def many(values, channels):
    return np.repeat(values[..., None], channels, 2)


def packed_twelve():
    pairs = TWELVE.reshape(-1, 2).astype(int)
    return (
        np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
        .astype(np.uint8)
        .tobytes()
    )


def scaled(bits):
    return np.rint(PICTURE * (2**bits - 1))


def signed_bit(values):
    depth = PngInfo()
    depth.add(b"sBIT", bytes([values]))
    return depth


FORMS = {
    # eight bits
    "grey.png": IMAGE.save, "rgb.png": IMAGE.convert("RGB").save, "rgba.png": IMAGE.convert("RGBA").save,
    "margin.png": transparent_margin, "la.png": IMAGE.convert("LA").save, "palette.png": IMAGE.convert("P").save,
    "grey.tif": IMAGE.save, "lzw.tif": lambda p: IMAGE.save(p, compression="tiff_lzw"), "grey.bmp": IMAGE.save,
    "grey.gif": IMAGE.save, "grey.pgm": IMAGE.save, "rgb.ppm": IMAGE.convert("RGB").save,
    "grey.webp": lambda p: IMAGE.save(p, lossless=True), "png_named.jpg": lambda p: IMAGE.save(p, format="PNG"),
    "min_is_white.tif": lambda p: write_tiff(p, (~GREY).tobytes(), 8, photometric=0),
    # lossy
    "grey.jpg": lambda p: IMAGE.save(p, quality=95), "jpeg_named.png": lambda p: IMAGE.save(p, format="JPEG", quality=95),
    "progressive.jpg": lambda p: IMAGE.save(p, quality=95, progressive=True),
    "cmyk.jpg": lambda p: IMAGE.convert("RGB").convert("CMYK").save(p, quality=95),
    # 16 bits and fewer of them, in PNG
    **{f"{bits}_in_16.png": lambda p, bits=bits: write_png(p, scaled(bits)) for bits in (8, 10, 12, 14, 16)},
    "12_in_16_pillow.png": lambda p: Image.fromarray(TWELVE).save(p),
    "sbit_12.png": lambda p: write_png(p, TWELVE, sbit=12),
    "sbit_12_scaled.png": lambda p: write_png(p, SIXTEEN >> 4 << 4, sbit=12),
    "sbit_16.png": lambda p: write_png(p, SIXTEEN, sbit=16),
    "rgb48.png": lambda p: write_png(p, many(SIXTEEN, 3)), "rgb48_12.png": lambda p: write_png(p, many(TWELVE, 3)),
    "rgba64_12.png": lambda p: write_png(p, many(TWELVE, 4)), "la32_12.png": lambda p: write_png(p, many(TWELVE, 2)),
    # in TIFF
    "16.tif": lambda p: Image.fromarray(SIXTEEN).save(p), "12_in_16.tif": lambda p: Image.fromarray(TWELVE).save(p),
    "12_in_16_lzw.tif": lambda p: Image.fromarray(TWELVE).save(p, compression="tiff_lzw"),
    "12_in_16_big_endian.tif": lambda p: write_tiff(p, TWELVE.astype(">u2").tobytes(), 16, order=">"),
    "12_packed.tif": lambda p: write_tiff(p, packed_twelve(), 12),
    "min_is_white_16.tif": lambda p: write_tiff(p, (~SIXTEEN).tobytes(), 16, photometric=0),
    "min_is_white_12.tif": lambda p: write_tiff(p, (4095 - TWELVE).tobytes(), 16, photometric=0),
    "12_in_int16.tif": lambda p: write_tiff(p, TWELVE.tobytes(), 16, kind=2),
    "12_in_int32.tif": lambda p: Image.fromarray(TWELVE.astype(np.int32)).save(p),
    "uint32.tif": lambda p: write_tiff(p, (PICTURE * (2**32 - 1)).astype("<u4").tobytes(), 32),
    "rgb48_12_strips.tif": lambda p: write_strips(p, many(TWELVE, 3)), "odd_exif.jpg": write_odd_exif,
    "rgb48_12.tif": lambda p: write_tiff(p, many(TWELVE, 3).tobytes(), 16, photometric=2, channels=3),
    "float_1.tif": lambda p: Image.fromarray(PICTURE.astype(np.float32)).save(p),
    "float_255.tif": lambda p: Image.fromarray((PICTURE * 255).astype(np.float32)).save(p),
    "float_4095.tif": lambda p: Image.fromarray((PICTURE * 4095).astype(np.float32)).save(p),
    "float_overshoot.tif": lambda p: Image.fromarray((PICTURE * 1.02).astype(np.float32)).save(p),
    # and in PGM and PFM
    "4095.pgm": lambda p: p.write_bytes(b"P5\n200 256\n4095\n" + TWELVE.astype(">u2").tobytes()),
    "65535.pgm": lambda p: p.write_bytes(b"P5\n200 256\n65535\n" + SIXTEEN.astype(">u2").tobytes()),
    "4095_of_65535.pgm": lambda p: p.write_bytes(b"P5\n200 256\n65535\n" + TWELVE.astype(">u2").tobytes()),
    "4095_text.pgm": lambda p: p.write_text("P2\n200 256\n4095\n" + " ".join(map(str, TWELVE.ravel()))),
    "1.pfm": lambda p: p.write_bytes(b"Pf\n200 256\n-1.0\n" + PICTURE[::-1].astype("<f4").tobytes()),
    # orientation
    **{f"exif_{o}.jpg": lambda p, o=o: write_lying(p, o, quality=95) for o in LYING},
    **{f"exif_{o}.png": lambda p, o=o: write_lying(p, o) for o in LYING},
    "exif_6.webp": lambda p: write_lying(p, 6, lossless=True), "exif_5.tif": lambda p: write_lying(p, 5),
    "exif_6_12_in_16.png": lambda p: write_lying(p, 6, Image.fromarray(TWELVE)),
    # DICOM
    "8.dcm": lambda p: write_dicom(p, GREY, bits=8), "12.dcm": lambda p: write_dicom(p, TWELVE), "dicom_named.png": lambda p: write_dicom(p, TWELVE),
    "dicom": lambda p: write_dicom(p, TWELVE), "16.dcm": lambda p: write_dicom(p, SIXTEEN, bits=16),
    "12_in_16.dcm": lambda p: write_dicom(p, TWELVE, bits=16),
    "monochrome1.dcm": lambda p: write_dicom(p, 4095 - TWELVE, kind="MONOCHROME1", PresentationLUTShape="INVERSE"),
    "rescale.dcm": lambda p: write_dicom(p, TWELVE, RescaleSlope=2.5, RescaleIntercept=-1024),
    "empty_slope.dcm": lambda p: write_dicom(p, TWELVE, RescaleSlope=None),
    "falling_rescale.dcm": lambda p: write_dicom(p, 4095 - TWELVE, RescaleSlope=-1, RescaleIntercept=4095),
    "window.dcm": lambda p: write_dicom(p, TWELVE // 4 + 1000, WindowCenter=1512, WindowWidth=1024),
    "window_12.dcm": lambda p: write_dicom(p, TWELVE, WindowCenter=[2048, 600], WindowWidth=[4096, 300]),
    "window_of_rescaled.dcm": lambda p: write_dicom(p, TWELVE, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=3096, WindowWidth=8191),
    "window_of_falling.dcm": lambda p: write_dicom(p, 4095 - TWELVE, RescaleSlope=-1, RescaleIntercept=4095, WindowCenter=2048, WindowWidth=4096),
    "window_monochrome1.dcm": lambda p: write_dicom(p, 4095 - TWELVE, kind="MONOCHROME1", WindowCenter=2048, WindowWidth=4096),
    "window_exact.dcm": lambda p: write_dicom(p, TWELVE, WindowCenter=2047.5, WindowWidth=4095, VOILUTFunction="LINEAR_EXACT"),
    "window_signed.dcm": lambda p: write_dicom(p, TWELVE.astype(int) - 2048, signed=True, WindowCenter=0, WindowWidth=4096),
    "voi_lut.dcm": lambda p: write_dicom(p, 4095 - TWELVE, VOILUTSequence=lut(np.arange(4095, -1, -1), 0, 12)),
    "voi_lut_to_8.dcm": lambda p: write_dicom(p, 4095 - TWELVE, VOILUTSequence=lut(np.arange(4095, -1, -1) >> 4, 0, 8)),
    "voi_lut_of_rescaled.dcm": lambda p: write_dicom(
        p, TWELVE, RescaleSlope=1, RescaleIntercept=500, VOILUTSequence=lut(np.arange(4096) * 16, 500, 16)
    ),
    "modality_lut.dcm": lambda p: write_dicom(p, 4095 - TWELVE, ModalityLUTSequence=lut(np.arange(4095, -1, -1), 0, 16)),
    "rle.dcm": lambda p: write_compressed(p, TWELVE, "RLELossless"),
    "jpeg.dcm": lambda p: write_compressed(p, GREY, "JPEGBaselineProcess1", bits=8),
    "jpeg_lossless.dcm": lambda p: write_compressed(p, TWELVE, "JPEGLosslessProcess14_1"),
    "jpeg_lossless_monochrome1.dcm": lambda p: write_compressed(p, 4095 - TWELVE, "JPEGLosslessProcess14", kind="MONOCHROME1"),
    "jpeg_ls.dcm": lambda p: write_compressed(p, TWELVE, "JPEGLSLossless"),
    "jpeg_2000.dcm": lambda p: write_compressed(p, TWELVE, "JPEG2000Lossless"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_one_picture_is_the_same_picture(name, tmp_path):
    FORMS[name](tmp_path / name)
    IMAGE.save(tmp_path / "reference.png")
    found, expected = (decode(tmp_path / file, 64).astype(int) for file in (name, "reference.png"))
    assert (expected.min(), expected.max()) == (52, 255)
    assert np.abs(found - expected).max() <= 2


@pytest.mark.parametrize("name", FORMS)
def test_a_file_that_was_cut_short_is_refused(name, tmp_path):
    FORMS[name](tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for kept in (len(content) * 9 // 10, len(content) // 2):
        (tmp_path / name).write_bytes(content[:kept])
        with pytest.raises(DataError, match=f"{name}: not a readable image"):
            decode(tmp_path / name, 32)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FORMS if "exif" not in name and "window" not in name])
def test_a_file_with_errors_is_a_picture_or_one_line(name, tmp_path):
    FORMS[name](tmp_path / name)
    content, rng = (tmp_path / name).read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        spoilt = bytearray(content)
        for place in rng.integers(0, min(len(content), rng.choice([400, 1500, len(content)])), rng.choice([1, 3, 20])):
            spoilt[place] ^= 1 << rng.integers(8)
        (tmp_path / name).write_bytes(spoilt)
        try:
            said = str(decode(tmp_path / name, 32).shape)
        except DataError as error:
            said = str(error)
        assert "\n" not in said


# --- the rule


@pytest.mark.parametrize(
    ("values", "bits", "expected"),
    [
        (np.uint16([0, 256, 65535]), None, [0, 1, 255]),
        (np.uint16([0, 16384, 511]), None, [0, 64, 1]),  # 15 bits are 16
        (np.uint16([0, 5000, 64]), None, [0, 78, 1]),
        (np.uint16([0, 300, 4]), None, [0, 75, 1]),  # 9 bits are 10
        (np.uint16([0, 255, 4]), None, [0, 255, 4]),
        (np.uint16([0, 255, 4]), 12, [0, 15, 0]),  # a dark picture that says it has 12
        (np.uint16([0, 8192, 255]), 12, [0, 32, 0]),  # which more than 12 bits contradict
        (np.int32([-100, 0, 155]), None, [0, 100, 255]),
        (np.int32([-1000, -1000, -1000]), None, [0, 0, 0]),
        (np.float32([0, 0.5, 1]), None, [0, 128, 255]),
        (np.float32([0, 0.2, 0.5]), None, [0, 51, 128]),
        (np.float32([0, 1, 2]), None, [0, 128, 255]),
        (np.float32([0, 100.4, 255.7]), None, [0, 100, 255]),
        (np.float32([-1, 0, 1]), None, [0, 128, 255]),
    ],
)
def test_depth_is_what_is_declared_or_used(values, bits, expected):
    np.testing.assert_array_equal(to_bytes(values[None], bits)[0], expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_refused(value, tmp_path):
    values = PICTURE.astype(np.float32)
    values[3, 3] = value
    Image.fromarray(values).save(tmp_path / "film.tif")
    with pytest.raises(DataError, match=r"film\.tif: not a readable image \(ValueError: pixels should be finite"):
        decode(tmp_path / "film.tif", 64)


def test_a_file_of_several_pictures_or_of_planes_is_refused(tmp_path):
    """The first of them might be the lateral film; a camera's preview (MPO) is none."""
    for name in ("film.tif", "film.gif"):
        IMAGE.save(tmp_path / name, save_all=True, append_images=[Image.fromarray(~GREY)])
        with pytest.raises(DataError, match=rf"{name}: an image should be one picture\. Found 2"):
            decode(tmp_path / name, 64)
    write_strips(tmp_path / "planes.tif", many(TWELVE, 3), planes=True)
    with pytest.raises(DataError, match=r"planes\.tif: colour of 16 bits should be stored pixel by pixel"):
        decode(tmp_path / "planes.tif", 64)


@pytest.mark.parametrize("orientation", LYING)
def test_orientation_is_that_of_every_viewer(orientation, tmp_path):
    """The corner that a file's orientation puts on top and on the left, by EXIF's own table of row 0 and column 0."""
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (-1, 0), 7: (-1, -1), 8: (0, -1)}
    swapped = orientation > 4
    pixels = np.tile(np.linspace(0, 100, 16).astype(np.uint8), (16, 1))
    pixels[corner[orientation]] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "film.png", exif=exif)
    found = decode(tmp_path / "film.png", 16).astype(int)
    assert found[0, 0] == 255
    rows, columns = np.abs(np.diff(found[1:, 1:], axis=0)).sum(), np.abs(np.diff(found[1:, 1:], axis=1)).sum()
    assert (rows > columns) == swapped


@pytest.mark.parametrize("size", [16, 64, 224])
def test_few_levels(size):
    image = np.zeros((size, size), np.uint8)
    assert has_few_levels(image)
    image[-1, -16:] = np.arange(100, 116)
    assert has_few_levels(image)
    image[0, -16:] = np.arange(150, 166)
    assert not has_few_levels(image)


def test_no_radiograph_of_the_sample_has_few_levels(nih_sample):
    paths = sorted((nih_sample / "images").glob("*.png"))
    assert not [path for path in paths if has_few_levels(decode(path, 32))]


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (65535, {"bits": 16}),
        (-2000, {"bits": 16, "signed": True}),
        (-2000, {"bits": 16, "signed": True, "WindowCenter": 2048, "WindowWidth": 4096}),
        (0, {"kind": "MONOCHROME1", "PixelPaddingRangeLimit": None}),
        (60000, {"bits": 16, "PixelPaddingRangeLimit": 65535}),
        (65535, {"bits": 16, "PixelPaddingRangeLimit": 60000, "syntax": ImplicitVRLittleEndian}),
    ],
)
def test_padding_is_black_and_no_part_of_the_scale(value, options, tmp_path):
    film = TWELVE.astype(np.int32).clip(1) if "kind" in options else TWELVE.astype(np.int32)
    padded, quarter = film.copy(), film.shape[1] // 4
    padded[:, :quarter] = value
    padded[0, 0] = options.get("PixelPaddingRangeLimit") or value
    write_dicom(tmp_path / "film.dcm", film, **options | {"PixelPaddingRangeLimit": None})
    write_dicom(tmp_path / "padded.dcm", padded, PixelPaddingValue=value, **options)
    whole, found = (decode(tmp_path / name, 64) for name in ("film.dcm", "padded.dcm"))
    assert not found[:, :14].any()
    np.testing.assert_array_equal(found[:, 18:], whole[:, 18:])


# --- DICOM that is refused


def no_pixels(data):
    del data.PixelData


def second_frame(data):
    data.NumberOfFrames, data.PixelData = 2, data.PixelData * 2


def colour(data):
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelData = 3, "RGB", data.PixelData * 3


def high_bits(data):
    data.HighBit = 15


def cut_short(data):
    data.PixelData = data.PixelData[:1000]


def bad_window(data):
    data.WindowCenter, data.WindowWidth = 100, 0


def deflated(data):
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian


def gigantic(data):
    data.Rows = data.Columns = 60_000


def unknown_syntax(data):
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
    data.PixelData = encapsulate([bytes(100)])
    data["PixelData"].is_undefined_length = True


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (no_pixels, "should hold one frame, .*Found no pixels"),
        (second_frame, "should hold one frame, .*Found 2 frames of MONOCHROME2"),
        (colour, "Found 1 frames of RGB"),
        (high_bits, r"HighBit of DICOM should be BitsStored - 1\. Found 15 and 12"),
        (cut_short, "not a readable image"),
        (bad_window, "not a readable image .*Window Width"),
        (deflated, "should not be deflated"),
        (gigantic, "should have at most 50,000,000 pixels. Found 60000 x 60000"),
        (unknown_syntax, "not a readable image"),
    ],
)
def test_other_dicom_is_refused_by_name(change, named, tmp_path, monkeypatch):
    data = dicom(TWELVE)
    change(data)
    data.save_as(tmp_path / "film.dcm", enforce_file_format=True)
    if change is gigantic:
        monkeypatch.setattr(Dataset, "pixel_array", property(lambda self: pytest.fail("decoded")))
    with pytest.raises(DataError, match=rf"film\.dcm: .*{named}"):
        decode(tmp_path / "film.dcm", 32)


@pytest.mark.parametrize(
    "syntax", ["JPEGBaselineProcess1", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"]
)
def test_compressed_pixels_that_say_they_are_more_are_not_decoded(syntax, tmp_path, monkeypatch):
    """A few kilobytes for which a decoder would ask for gigabytes."""
    path = tmp_path / "film.dcm"
    write_compressed(path, GREY, syntax, bits=8)
    data = pydicom.dcmread(path)
    frame = bytearray(get_frame(data.PixelData, 0, number_of_frames=1))
    if syntax == "JPEG2000Lossless":
        for at in (8, 12, 24, 28):  # the image and its tile
            frame[at : at + 4] = (60_000).to_bytes(4, "big")
    else:
        at = min(found for marker in (b"\xff\xc0", b"\xff\xc3", b"\xff\xf7") if (found := frame.find(marker)) > 0)
        frame[at + 5 : at + 9] = (60_000).to_bytes(2, "big") * 2
    data.PixelData = encapsulate([bytes(frame)])
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    monkeypatch.setattr(Dataset, "pixel_array", property(lambda self: pytest.fail("decoded")))
    with pytest.raises(
        DataError, match=r"film\.dcm: its pixels should be 200 x 256 in one channel. Found 60000 x 60000"
    ):
        decode(path, 32)


def test_without_the_extra_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    write_dicom(tmp_path / "film", TWELVE)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(
        DataError, match=r"film is DICOM: pydicom is missing\. .*pip install 'deepchest-utils\[dicom\]'"
    ):
        decode(tmp_path / "film", 32)


def test_a_folder_of_nih_may_hold_dicom_files(nih_folder):
    root = nih_folder()
    for number, path in enumerate(sorted((root / "images").glob("*.png"))):
        write_dicom(path.with_suffix(".dcm"), np.roll(TWELVE, 2 * number, axis=1))
        path.unlink()
    with pytest.warns(DataWarning, match="findings without a positive image"):  # it is small
        data = load_dataset("nih", root, image_size=32)
    for part in data.parts.values():
        for image, name in zip(part.images, part.ids, strict=True):
            np.testing.assert_array_equal(image, decode((root / "images" / name).with_suffix(".dcm"), 32))


def test_a_table_of_dicom_files_is_a_data_set(tmp_path):
    lines = ["image,patient,Mass,Nodule"]
    for number in range(24):
        write_dicom(tmp_path / f"{number}.dcm", np.roll(TWELVE, 8 * number, axis=1))
        lines.append(f"{number}.dcm,{number},{number % 2},{number // 2 % 2}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    data = load_dataset("csv", tmp_path, image_size=32)
    for part in data.parts.values():
        for image, name in zip(part.images, part.ids, strict=True):
            np.testing.assert_array_equal(image, decode(tmp_path / name, 32))
    assert len(np.unique(data.train.images.reshape(len(data.train), -1), axis=0)) == len(data.train)


# --- real radiographs


def twelve_of(grey):
    return np.rint(grey / 255 * 4095).astype(np.uint16)


AS_SAVED = {
    "12_in_16.png": lambda p, grey: write_png(p, twelve_of(grey)),
    "monochrome1.dcm": lambda p, grey: write_dicom(p, 4095 - twelve_of(grey), kind="MONOCHROME1"),
    "monochrome2.dcm": lambda p, grey: write_dicom(p, twelve_of(grey), WindowCenter=2048, WindowWidth=4096),
    "exif_6.jpg": lambda p, grey: write_lying(p, 6, Image.fromarray(grey), quality=95),
}


@pytest.mark.slow
def test_predictions_of_real_radiographs_do_not_depend_on_how_they_were_saved(nih_sample, tmp_path, tally):
    folder = nih_sample.with_name("nih_boxes") / "images"
    if not folder.is_dir():
        pytest.skip("no nih_boxes beside the sample")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # a split of few images may lack a rare finding
        data = load_dataset("nih", nih_sample, split="patient", max_images=1000)
    train(TrainConfig(dataset="nih", epochs=4, run_dir=str(tmp_path / "run")), data)
    trained = load_trained(tmp_path / "run")
    spread = []
    for original in sorted(folder.glob("*.png")):
        expected = predict_image(trained, decode(original, trained.image_size))
        spread.append(expected.sort_index())
        with Image.open(original) as image:
            grey = np.asarray(image.convert("L"))
        for name, write in AS_SAVED.items():
            write(tmp_path / name, grey)
            found = predict_image(trained, decode(tmp_path / name, trained.image_size))
            assert (found - expected).abs().max() < 0.02, (original.name, name)
            tally("files of one picture that agree")
    assert np.ptp(np.array(spread), axis=0).max() > 0.1  # or the network would say the same of any picture
