"""Image files as 8-bit grey values. `to_bytes` has the one rule for files of more than 8 bits."""

import stat
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image

from deepchest_utils import missing_extra
from deepchest_utils.datasets.base import DataError
from deepchest_utils.files import one_line

MAX_PIXELS = 50_000_000  # the largest NIH original has 13 million; more is refused before it is decoded
TURN = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), 2))  # of EXIF's orientation
MIN_LEVELS = 32  # a picture with fewer grey levels is blank, or was saved in a fraction of its depth
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM", "WEBP")  # others, as EPS, hand the file to a program
LOWER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of JPEG, and that of JPEG-LS
Pixels = Shaped[np.ndarray, "h w"]
Bytes = UInt8[np.ndarray, "h w"]


def decode(path: str | Path, size: int) -> UInt8[np.ndarray, "{size} {size}"]:
    """One image file as it is meant to be seen, bone white and upright, whatever its format, size and depth.

    An oblong image becomes square, alpha is ignored. DICOM needs the extra `dicom`.
    Raises DataError for a file that is missing, too large or no readable image, and for DICOM of several frames or colours.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a FIFO would wait for ever
            raise DataError(f"{path}: an image should be a file. Found a folder, a FIFO or a device.")
        with open(path, "rb") as file:
            is_dicom = file.read(132)[128:] == b"DICM"
            file.seek(0)
            grey = Image.fromarray(_read_dicom(path)) if is_dicom else _read_image(path, file)
        return np.asarray(grey.resize((size, size), Image.Resampling.BILINEAR))  # averages when it shrinks
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such image file.") from None
    except Exception as error:  # Pillow and pydicom raise some ten types for damaged files
        raise DataError(f"{path}: not a readable image ({one_line(error)}).") from error


def stored_size(path: Path) -> tuple[int, int]:
    """Width and height in px that an image file says it has; a turn that it asks for is not made. Errors as `decode`."""
    try:
        with open(path, "rb") as file:
            if file.read(132)[128:] != b"DICM":
                file.seek(0)
                with Image.open(file, formats=FORMATS) as image:
                    return image.size
        from pydicom import dcmread

        data = dcmread(path, stop_before_pixels=True)
        return data.Columns, data.Rows
    except ModuleNotFoundError as error:
        raise DataError(f"{path} is DICOM: {missing_extra(error)}") from None
    except Exception as error:
        raise DataError(f"{path}: not a readable image ({one_line(error)}).") from error


def has_few_levels(image: Bytes) -> bool:
    """Whether a picture has fewer than `MIN_LEVELS` different grey values."""
    step = 1 + len(image) // 64
    # nearly always, one pixel of many shows enough of them
    return all(np.count_nonzero(np.bincount(part.ravel())) < MIN_LEVELS for part in (image[::step, ::step], image))


def to_bytes(values: Pixels, bits: int | None = None) -> Bytes:
    """Grey values of any depth as 8 bits.

    Whole numbers keep the upper 8 of the bits that the file declares. If it declares none, as a 16-bit file that may hold 12,
    or fewer than it uses, these are the fewest of 8, 10, 12, ... that hold its largest value. Floats are taken for shares of 1
    if none is larger, else for such whole numbers; below 32, where these would leave no levels, for shares of the largest.
    With a value below zero, black is the smallest and white the largest. Raises ValueError for NaN and infinity.
    """
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():
        raise ValueError("pixels should be finite. Found NaN or infinity")
    own = max(8, int(high).bit_length() + int(high).bit_length() % 2)
    if low >= 0 and values.dtype.kind != "f":
        bits = own if bits is None else bits if high < 2**bits else max(16, own)
        return (values >> max(0, bits - 8)).astype(np.uint8)
    black = float(min(low, 0))
    white = float(high if black else 1 if high <= 1 else high if high < MIN_LEVELS else 2**own - 1)
    return np.rint((values - black) * (255 / ((white - black) or 1))).clip(0, 255).astype(np.uint8)


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        message = f"{path}: an image should have at most {MAX_PIXELS:,} pixels"
        raise DataError(f"{message}. Found {width} x {height}.")


def _read_image(path: Path, file: BinaryIO) -> Image.Image:
    """A file that Pillow reads, in mode "L"."""
    with Image.open(file, formats=FORMATS) as image:
        _check_size(path, image.width, image.height)
        if (pages := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":  # MPO: a camera's preview
            raise DataError(f"{path}: an image should be one picture. Found {pages}: save one page or frame alone.")
        tags = getattr(image, "tag_v2", {})  # of a TIFF
        bits, kind = tags.get(258, (0,))[0], tags.get(339, (1,))[0]  # BitsPerSample, SampleFormat
        if tags.get(284) == 2 and bits > 8 and tags.get(277, 1) > 1:  # PlanarConfiguration, SamplesPerPixel
            raise DataError(f"{path}: colour of {bits} bits should be stored pixel by pixel. Found a plane a colour.")
        tiles, mode = image.tile, image.mode
        upright = _upright(image)
        if mode[0] not in "IF" and ";16" not in str(tiles) and (bits, kind) != (8, 2):
            if mode == "P":  # straight to grey, Pillow warns of a palette with transparency
                return upright.convert("RGBA").convert("L")
            return upright if mode == "L" else upright.convert("L")
        values = np.asarray(upright) if mode[0] in "IFL" else _both_bytes(path, upright)
        if (bits, kind) in ((8, 2), (32, 1)):  # which Pillow takes for unsigned, and for signed
            values = values.view(np.int8 if bits == 8 else np.uint32)
        declared = _declared_bits(path, image.format, tiles) or (12 if bits == 12 else None)
        grey = to_bytes(values, declared)
        return Image.fromarray(~grey if tags.get(262) == 0 else grey)  # PhotometricInterpretation: white is zero


def _declared_bits(path: Path, format: str | None, tiles: list[Any]) -> int | None:
    """The depth that a PNG or PGM says it has, if that is not just its type's."""
    if format == "PPM" and tiles[0].args[-1] != 65535 and "I;16" not in tiles[0].args:
        return 16  # Pillow has scaled it by the file's largest value
    if format == "PNG":
        with open(path, "rb") as file:
            file.seek(8)
            while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
                length = int.from_bytes(head[:4], "big")
                if head[4:] == b"sBIT":
                    return max(file.read(length), default=None)
                file.seek(length + 4, 1)
    return None


def _upright(image: Image.Image) -> Image.Image:
    """As its orientation says. ImageOps.exif_transpose writes all tags anew, and fails at one of an odd type."""
    image.load()  # a TIFF turns itself
    way = TURN.get(image.getexif().get(0x112, 1))
    return image if way is None else image.transpose(way)


def _both_bytes(path: Path, upper: Image.Image) -> Pixels:
    """16 bits a channel, of which Pillow keeps the upper byte: the lower one is there if the bytes change places."""
    with Image.open(path, formats=FORMATS) as lower:
        tile = lower.tile[0]
        raw, *others = (tile.args,) if isinstance(tile.args, str) else tuple(tile.args or ())
        is_la = raw == "LA;16B"  # its four bytes are read as four channels
        raw = "RGBA" if is_la else raw[:-3] + LOWER_BYTE[raw[-3:]]
        # of a TIFF each strip is one
        lower.tile = [part._replace(args=(raw, *part.args[1:]) if others else raw) for part in lower.tile]  # type: ignore[index]
        low, high = np.asarray(_upright(lower)).astype(np.int32), np.asarray(upper).astype(np.int32)
    if is_la:
        return low[..., 0] * 256 + low[..., 1]
    red, green, blue = np.moveaxis((high * 256 + low)[..., :3], -1, 0)
    return np.asarray((299 * red + 587 * green + 114 * blue) // 1000)  # the weights of Pillow's own grey


def _coded_size(frame: bytes) -> tuple[int, int, int]:
    """Columns, rows and channels that the header of a JPEG, JPEG-LS or JPEG 2000 stream says it has."""
    if frame[:4] == b"\xff\x4f\xff\x51":
        columns, rows, channels = struct.unpack(">8xII24xH", frame[:42])
    else:
        at = 2
        while frame[at + 1] not in START_OF_FRAME:
            at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
        rows, columns, channels = struct.unpack(">5xHHB", frame[at : at + 10])
    return columns, rows, channels


def _read_dicom(path: Path) -> Bytes:
    """A DICOM file through its rescale and its VOI LUT or first window, MONOCHROME1 turned and padding black."""
    try:
        from pydicom import config, dcmread
        from pydicom.encaps import get_frame
        from pydicom.filereader import read_file_meta_info
        from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing
        from pydicom.uid import RLELossless
    except ModuleNotFoundError as error:
        raise DataError(f"{path} is DICOM: {missing_extra(error)}") from None
    config.settings.reading_validation_mode = config.IGNORE  # an odd date is no matter here
    syntax = read_file_meta_info(path).TransferSyntaxUID
    if syntax.is_deflated or path.stat().st_size > 8 * MAX_PIXELS:  # a kilobyte may unpack to a gigabyte
        raise DataError(f"{path}: DICOM should not be deflated, nor larger than {8 * MAX_PIXELS:,} bytes.")
    data = dcmread(path)
    frames, kind = data.get("NumberOfFrames") or 1, data.get("PhotometricInterpretation")
    if "PixelData" not in data or frames > 1 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        found = f"{frames} frames of {kind}" if "PixelData" in data else "no pixels"
        raise DataError(f"{path}: DICOM should hold one frame, MONOCHROME1 or MONOCHROME2. Found {found}.")
    if (high := data.get("HighBit", data.BitsStored - 1)) != data.BitsStored - 1:
        raise DataError(f"{path}: HighBit of DICOM should be BitsStored - 1. Found {high} and {data.BitsStored}.")
    _check_size(path, data.Columns, data.Rows)
    if syntax.is_encapsulated and syntax != RLELossless:
        coded = _coded_size(get_frame(data.PixelData, 0, number_of_frames=1))
        if coded != (data.Columns, data.Rows, 1):  # its decoder would make room for what it says
            found = "{} x {} pixels in {} channels".format(*coded)
            raise DataError(f"{path}: its pixels should be {data.Columns} x {data.Rows} in one channel. Found {found}.")
    stored = data.pixel_array
    padding = _padding(stored, data)
    if padding.any() and not padding.all():  # no part of the scale
        stored = np.where(padding, stored[~padding].min(), stored)
    values = apply_modality_lut(stored, data)
    if lut := data.get("VOILUTSequence"):
        bits = lut[0].LUTDescriptor[2]
        lut[0].LUTDescriptor[2] = 16  # at 8 pydicom counts the entries of the LUT in 8 bits, too
        grey = to_bytes(apply_voi(np.rint(values).astype(np.int64), data), bits if bits < 16 else None)
    elif data.get("WindowWidth") is not None and data.get("WindowCenter") is not None:
        with np.errstate(over="ignore"):  # of a sigmoid
            black, white = apply_windowing(np.array([-1e9, 1e9]), data)
            grey = to_bytes((apply_windowing(values, data) - black) / (white - black))
    elif data.get("ModalityLUTSequence"):
        grey = to_bytes(values)
    else:
        grey = to_bytes(stored, data.BitsStored if data.BitsStored < data.BitsAllocated else None)
        grey = ~grey if (data.get("RescaleSlope") or 1) < 0 else grey
    return np.where(padding, np.uint8(0), ~grey if kind == "MONOCHROME1" else grey)


def _padding(stored: Pixels, data: Any) -> Bool[np.ndarray, "h w"]:
    """The pixels of DICOM from PixelPaddingValue to PixelPaddingRangeLimit: what was filled in around the picture."""
    if not isinstance(first := data.get("PixelPaddingValue"), int):
        return np.zeros(stored.shape, bool)
    last = data.get("PixelPaddingRangeLimit")
    # in the pixels' type: some files say 63536 for -2000
    ends = np.array([first, last if isinstance(last, int) else first]).astype(stored.dtype)
    return np.asarray((stored >= ends.min()) & (stored <= ends.max()))
