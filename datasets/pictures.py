"""Reads the pictures of a data set: images as they are, masks as class indices; both to their last byte.

    photo = pictures.read_image('JPEGImages/2007_000032.jpg')
    label = pictures.read_label('SegmentationClass/2007_000032.png', classes.VOC)

What cannot be used raises BadFileError. Source of the masks' kinds: the PASCAL VOC development kit, whose masks are
palette PNGs, and what editors make of them.
"""
import io
import os
import stat
import struct
import zlib
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets import classes
from datasets.classes import IGNORE_LABEL
from datasets.records import MAX_FILE_BYTES, MAX_PIXELS, MAX_SCANS, has_endless_scans

# Masks are flat areas: run lengths pack VOC's a third smaller than zlib's level 1 and no slower.
PNG_OPTIONS = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
GREY, PALETTE = 0, 3  # colour types of a PNG
BIT_DEPTH, COLOUR_TYPE = 24, 25  # where they stand: in the IHDR chunk, which the PNG standard puts first
MAX_JPEG_SIDE = 65500  # pixels, of libjpeg


class BadFileError(Exception):
    """A picture that cannot be used. Its message is `path: reason`, one line; `kind` says it in two words."""

    def __init__(self, message, kind='unreadable'):
        super().__init__(message)
        self.kind = kind


class Photo(NamedTuple):
    """An image as the record has it."""
    data: bytes  # of a file
    format: bytes  # b'jpeg' or b'png'
    size: tuple  # width, height
    picture: Image.Image | None = None  # decoded, perhaps at an eighth of its size


class Label(NamedTuple):
    """A mask as the record has it."""
    png: bytes  # one channel, uint8 class index, 255 kept
    size: tuple  # width, height
    pixels: np.ndarray  # int64 [256], by value


def check_file(path, data_dirs):
    """BadFileError unless `path` is a file of a sane size that lies, once links are followed, where it may.

    A link to a picture may not lead out of the data folders: a data set from elsewhere could have other files of this
    machine copied into the records. The data folder itself and the folders in it may be links, as they often are.
    """
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            real, folder = os.path.realpath(path), os.path.dirname(path)
            if not any(real.startswith(os.path.join(os.path.realpath(root), '')) for root in (*data_dirs, folder)):
                raise BadFileError(f'{path}: is a link that leads out of the data folder; copy the file, or link the '
                                   'whole folder', 'link')
            status = os.stat(path)
    except OSError as error:
        kind = 'missing' if isinstance(error, FileNotFoundError) else 'unreadable'
        raise BadFileError(f'{path}: {error.strerror}', kind) from error
    if not stat.S_ISREG(status.st_mode):
        raise BadFileError(f'{path}: is not a file')
    if status.st_size > MAX_FILE_BYTES:
        raise BadFileError(f'{path}: is larger than {MAX_FILE_BYTES >> 20} MB', 'too large')


def read_picture(path, kind, coarse=False):
    """Reads a file and decodes it to its last byte.

    Args:
        path: str.
        kind: 'JPEG' or 'PNG', the only format that is accepted.
        coarse: bool, whether a JPEG's image, at which nobody looks closely, may be an eighth of its size.

    Returns:
        (bytes of the file, PIL image, (width, height) in the file). BadFileError if the file is missing, of another
        format, truncated or damaged.
    """
    try:
        with open(path, 'rb') as file:
            data = file.read()
        picture = Image.open(io.BytesIO(data), formats=[kind])
        size = picture.size
        if picture.width * picture.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        if picture.info.get('progressive') and has_endless_scans(data):
            raise ValueError(f'has more than {MAX_SCANS} scans; save it anew')
        if kind == 'PNG':
            picture.verify()  # the checksums, which load() passes over
            picture = Image.open(io.BytesIO(data), formats=[kind])
        if coarse:
            picture.draft(None, (1, 1))  # all bytes are decoded, but only an eighth made: enough to check them
        picture.load()
    except UnidentifiedImageError as error:
        raise BadFileError(f'{path}: is not a {kind} file, or its header is damaged') from error
    except Image.DecompressionBombError as error:
        reason = f'more than {MAX_PIXELS // 10 ** 6} million pixels; scale it down'
        raise BadFileError(f'{path}: {reason}', 'too large') from error
    except Exception as error:  # a decoder may raise nearly anything on damaged bytes
        reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        raise BadFileError(f'{path}: {" ".join(reason.split())}') from error
    return data, picture, size


def read_image(path, coarse=False):
    """Reads an image, a PNG where the path ends so, else a JPEG.

    A PNG of 16 bits a channel is refused, because TensorFlow would take the upper 8 alone, and one with transparent
    pixels, because it would show what they hide.

    Args:
        path: str.
        coarse: bool, as of read_picture.

    Returns:
        `Photo`. BadFileError for a file that cannot be used.
    """
    kind = 'PNG' if path.endswith('.png') else 'JPEG'
    data, picture, size = read_picture(path, kind, coarse)
    if kind == 'PNG' and data[BIT_DEPTH] == 16:
        raise BadFileError(f'{path}: has 16 bits a channel; save it with 8', 'kind of image')
    if picture.has_transparency_data and picture.convert('RGBA').getchannel('A').getextrema()[0] < 255:
        raise BadFileError(f'{path}: has transparent pixels; save it without transparency', 'kind of image')
    return Photo(data, kind.lower().encode(), size, picture)


def read_label(path, class_set):
    """Reads a mask: palette and grey values are class indices, colours go through the class set's colour map.

    Args:
        path: str.
        class_set: classes.ClassSet.

    Returns:
        `Label`. BadFileError for a file, a colour or a class that cannot be used.
    """
    data, picture, size = read_picture(path, 'PNG')
    bit_depth, colour_type = data[BIT_DEPTH], data[COLOUR_TYPE]
    if bit_depth == 8 and colour_type in (GREY, PALETTE):
        png = as_grey_png(data)
    else:
        return make_label(decode_label(picture, bit_depth, path, class_set), path, class_set)
    label = Label(png, size, np.array(picture.histogram()))
    check_classes(label, path, class_set)
    return label


def make_label(labels, path, class_set):
    """uint8 [H, W] as `Label`; BadFileError, which names `path`, if a value is no class."""
    label = encode_label(labels)
    check_classes(label, path, class_set)
    return label


def encode_label(labels):
    """uint8 [H, W] as `Label`, whatever its values."""
    png = cv2.imencode('.png', labels, PNG_OPTIONS)[1].tobytes()
    return Label(png, labels.shape[::-1], np.bincount(labels.ravel(), minlength=256))


def check_classes(label, path, class_set):
    """BadFileError unless every value of a `Label` is a class or void."""
    number_of_classes = len(class_set.names)
    wrong = np.flatnonzero(label.pixels[number_of_classes:IGNORE_LABEL])
    if wrong.size:
        raise wrong_class(path, number_of_classes + wrong[0], class_set)


def as_grey_png(data):
    """A PNG of 8-bit palette indices or greys as one of greys: the same compressed pixels behind another header.

    So a mask need not be compressed anew, which would take as long as reading and checking it. Source: the chapters
    "Chunk layout" and "IHDR Image header" of the W3C's PNG specification.
    """
    chunks, position, kind = [data[:8]], 8, b''
    while kind != b'IEND':  # what follows is no part of the picture
        length, kind = struct.unpack_from('>I4s', data, position)
        end = position + 12 + length
        if kind == b'IHDR':
            header = kind + data[position + 8:position + 17] + bytes([GREY]) + data[position + 18:position + 21]
            chunks.append(struct.pack('>I', length) + header + struct.pack('>I', zlib.crc32(header)))
        elif kind in (b'IDAT', b'IEND'):
            chunks.append(data[position:end])
        position = end
    return b''.join(chunks)


def decode_label(picture, bit_depth, path, class_set):
    """A mask of any kind but 8-bit palette and grey, as uint8 [H, W]; BadFileError as of read_label."""
    if picture.mode in ('RGB', 'RGBA'):
        return decode_colours(np.asarray(picture)[:, :, :3], path, class_set)
    if picture.mode not in ('P', 'L', '1', 'I', 'I;16'):
        raise BadFileError(f'{path}: a mask of mode {picture.mode}; save it with a palette, in grey or in RGB',
                           'kind of mask')
    labels = np.asarray(picture)
    if picture.mode == 'L' and bit_depth < 8:
        labels = labels // (255 // (2 ** bit_depth - 1))  # Pillow stretches 2 and 4 bits of grey to 0..255
    if labels.max() > IGNORE_LABEL:
        raise wrong_class(path, labels[labels > IGNORE_LABEL].min(), class_set)
    return labels.astype(np.uint8)


def wrong_class(path, value, class_set):
    """The BadFileError of a mask with a value that is no class."""
    return BadFileError(f'{path}: class {value} is neither 0..{len(class_set.names) - 1} nor {IGNORE_LABEL}; does '
                        '--classes name all?',
                        'class out of range')


def decode_colours(colours, path, class_set):
    """Turns a mask in a class set's colours into class indices.

    Args:
        colours: uint8 RGB [H, W, 3].
        path: str, for the message.
        class_set: classes.ClassSet.

    Returns:
        uint8 [H, W], and 255 where the mask is (224, 224, 192). BadFileError names a colour outside the map.
    """
    values = [*range(len(class_set.names)), IGNORE_LABEL]
    unmapped = len(class_set.names)  # a value that no pixel may keep
    packed = pack_colours(colours)
    labels = np.full(packed.shape, unmapped, np.uint8)
    for value, colour in zip(values, pack_colours(class_set.palette[values])):
        labels[packed == colour] = value
    unknown = packed[labels == unmapped]
    if unknown.size:
        colour = tuple(int(unknown[0]) >> shift & 255 for shift in (16, 8, 0))
        colour_map = 'VOC colour map' if class_set == classes.VOC else 'colour map of --classes'
        raise BadFileError(f'{path}: colour {colour} is not in the {colour_map}', 'unknown colour')
    return labels


def pack_colours(colours):
    """uint8 RGB [..., 3] to one int32 [...] a colour."""
    red, green, blue = (colours[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


# ------------------------------------------------------------------------------------------- scaling


def scaled_size(size, scale):
    """(width, height) times `scale`, each rounded, and at least 1 pixel."""
    return tuple(max(1, round(side * scale)) for side in size)


def scale_image(photo, scale, path):
    """A `Photo` scaled by averaging over areas, which loses no thin line, as JPEG of quality 95 and 4:4:4.

    BadFileError if it is too long for a JPEG even so; `path` is for that message.
    """
    size = scaled_size(photo.size, scale)
    if max(size) > MAX_JPEG_SIDE:
        raise BadFileError(f'{path}: is {max(size)} pixels long once scaled, a JPEG {MAX_JPEG_SIDE} at most; take a '
                           'smaller --scale', 'too large')
    pixels = cv2.resize(np.asarray(photo.picture.convert('RGB')), size, interpolation=cv2.INTER_AREA)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'JPEG', quality=95, subsampling=0)
    return Photo(file.getvalue(), b'jpeg', size)


def scale_label(label, scale):
    """A `Label` scaled: each pixel takes the class, or void, at its own centre."""
    with Image.open(io.BytesIO(label.png), formats=['PNG']) as picture:
        labels = np.asarray(picture)
    size = scaled_size(label.size, scale)
    # The middle of pixel i of n lies at (i + 1/2) / n of the side; in whole numbers, so that no rounding can move it.
    columns, rows = ((2 * np.arange(after) + 1) * before // (2 * after) for before, after in zip(label.size, size))
    return encode_label(labels[rows[:, np.newaxis], columns])
