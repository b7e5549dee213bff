"""Reads the pictures of a data set: images as files, masks as class indices.

    image = pictures.read_image('JPEGImages/2007_000032.jpg', scale=1)
    mask = pictures.read_mask('SegmentationClass/2007_000032.png', classes.VOC, scale=1)

Each picture is decoded to its last byte; one that cannot be used raises BadFileError. Masks are palette PNGs, as in the
PASCAL VOC development kit, grey or colour PNGs, as editors save them, or SBD's MATLAB files (Hariharan, Arbelaez,
Bourdev, Maji, Malik, "Semantic Contours from Inverse Detectors", ICCV 2011).
"""
import contextlib
import io
import math
import os
from typing import NamedTuple

import cv2
import numpy as np
import psutil
import scipy.io
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

import utils
from datasets.classes import IGNORE_LABEL, NO_CLASS, VOC

FORMATS = {'.jpg': 'JPEG', '.jpeg': 'JPEG', '.png': 'PNG', '.bmp': 'BMP'}  # by the ending of a file's name
MASK_ENDINGS = ('.png', '.bmp', '.mat')
MAX_PIXELS = 2 ** 26  # of an image or a mask in a record
MAX_FILE_BYTES = 2 ** 28  # of a file that goes into a record as it is
BYTES_PER_PIXEL = 16  # of memory, while a picture is decoded
STRETCH = {'L;2': 85, 'L;4': 17}  # Pillow stretches grey of 2 and 4 bits to 0..255 by these factors
ORIENTATION = 0x112  # EXIF tag
# Masks are flat areas: run lengths pack VOC's masks a third smaller than zlib's level 1, and as fast.
PNG_OPTIONS = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)


class BadFileError(Exception):
    """A picture that cannot be used. Its message is `path: reason`, one line; `kind` is the reason in a few words."""

    def __init__(self, message, kind='unreadable'):
        super().__init__(message)
        self.kind = kind


class ImageFile(NamedTuple):
    """A picture's file: its bytes, b'' if they cannot be used, their format, and what is in them."""
    data: bytes
    format: bytes  # b'jpeg', b'png' or b'bmp'
    size: tuple  # (width, height)
    raw_mode: str  # Pillow's name for the layout of the file's pixels
    orientation: int  # of EXIF; 2 to 8 mean that viewers mirror or turn the picture
    picture: Image.Image  # not turned, and perhaps at an eighth of its size


class Mask(NamedTuple):
    """A mask: uint8 [H, W], class indices and 255; palette, grey, colour or SBD; what is odd about it, or ''."""
    labels: np.ndarray
    kind: str
    oddity: str = ''


def check_file(path, data_dirs, scale):
    """Raises BadFileError unless a path is a file, not too large, and no link that leads out of the data folders.
    Such a link in a data set from elsewhere could have other files of this machine copied into the records. The data
    folders, and the folders in them, may be links."""
    if os.path.islink(path):
        roots = [os.path.join(os.path.realpath(root), '') for root in (*data_dirs, os.path.dirname(path))]
        if not os.path.realpath(path).startswith(tuple(roots)):
            raise BadFileError(f'{path}: is a link that leads out of the data folder; copy the file, or link the '
                               'complete folder', 'link')
    try:
        size = os.stat(path).st_size
    except OSError as error:
        kind = 'missing' if isinstance(error, FileNotFoundError) else 'unreadable'
        raise BadFileError(f'{path}: {error.strerror}', kind) from error
    if not os.path.isfile(path):
        raise BadFileError(f'{path}: is not a file')
    if size > (MAX_FILE_BYTES if scale == 1 else psutil.virtual_memory().available):
        raise BadFileError(f'{path}: is larger than {MAX_FILE_BYTES >> 20} MB', 'too large')


def open_picture(file, formats=None):
    """Image.open without Pillow's limits on pixels and on a PNG's metadata, which ordinary files exceed."""
    Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = None, 2 ** 28, 2 ** 28
    return Image.open(file, formats=formats)


def check_memory(picture):
    """Raises ValueError, whose message is one line, if memory does not suffice to decode a picture of Pillow's."""
    needed = picture.width * picture.height * BYTES_PER_PIXEL
    if needed > 2 ** 28 and needed > (free := psutil.virtual_memory().available):
        raise ValueError(f'{picture.width} x {picture.height} pixels need {needed >> 20:,} MB of memory, and '
                         f'{free >> 20:,} MB are free; scale it down')


def read_picture(path, scale, coarse=False):
    """Reads and decodes an image or a mask to its last byte, as ImageFile; see read_image."""
    kind = FORMATS[os.path.splitext(path)[1].lower()]
    try:
        with open(path, 'rb') as file:
            data = file.read()
        picture = open_picture(io.BytesIO(data), [kind])
        size, raw_mode = picture.size, picture.tile[0].args if kind == 'PNG' else picture.mode
        if math.prod(scaled_size(size, scale)) > MAX_PIXELS:
            raise BadFileError(f'{path}: more than {MAX_PIXELS // 10 ** 6} million pixels; scale it down, as --scale '
                               'does', 'too large')
        check_memory(picture)
        if kind == 'PNG':
            picture.verify()  # the checksums, which load() ignores
            picture = open_picture(io.BytesIO(data), [kind])
        orientation = 1
        with contextlib.suppress(Exception):  # damaged EXIF
            orientation = int(picture.getexif().get(ORIENTATION, 1))
        if coarse and orientation == 1:
            picture.draft(None, (1, 1))
        picture.load()
    except UnidentifiedImageError as error:
        raise BadFileError(f'{path}: is not a {kind} file, {identify(data)}') from error
    except BadFileError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise BadFileError(f'{path}: {describe_error(error)}') from error
    return ImageFile(data, kind.lower().encode(), size, raw_mode, orientation, picture)


def identify(data):
    """The end of a message on a file that is not of the format its ending stands for: what it is instead."""
    kind = 'HEIC' if data[4:8] == b'ftyp' else 'text' if data and data[:512].isascii() else ''
    with contextlib.suppress(Exception):
        kind = open_picture(io.BytesIO(data)).format
    return f'but {kind}; save it anew, or give it its own ending' if kind else 'or its header is damaged'


def describe_error(error):
    """An exception's reason as one line."""
    return ' '.join(str(getattr(error, 'strerror', None) or error or type(error).__name__).split())


def read_image(path, scale):
    """Reads an image, of the format that its name's ending stands for.
    A PNG of 16 bits a channel is refused because TensorFlow reads only the upper 8 bits; one with transparent pixels
    because TensorFlow shows what they hide.
    `scale`: float, by which it will be scaled; if it is 1, a JPEG's picture may be decoded at an eighth of its size.
    Returns an ImageFile. BadFileError: the file is missing, of another format, too large, truncated or damaged."""
    if os.path.splitext(path)[1].lower() not in FORMATS:
        raise BadFileError(f'{path}: is neither JPEG nor PNG by its ending; save it as one of them', 'kind of image')
    image = read_picture(path, scale, coarse=scale == 1)
    if image.raw_mode.endswith('16B'):
        raise BadFileError(f'{path}: has 16 bits a channel; save it with 8', 'kind of image')
    if image.picture.has_transparency_data and image.picture.convert('RGBA').getchannel('A').getextrema()[0] < 255:
        raise BadFileError(f'{path}: has transparent pixels; save it without transparency', 'kind of image')
    return image._replace(data=b'') if image.format == b'bmp' else image


def turn_upright(image):
    """An ImageFile as viewers show it, by its EXIF orientation."""
    if not 2 <= image.orientation <= 8:
        return image
    picture = ImageOps.exif_transpose(image.picture)
    return image._replace(data=b'', size=picture.size, picture=picture)


def encode_image(image, scale):
    """An ImageFile as the bytes of a JPEG or PNG and b'jpeg' or b'png': its file's own, unless they must be changed.
    Scaling averages areas, which loses no thin line. New JPEGs have quality 95 and chroma at full size (4:4:4)."""
    if scale == 1 and image.data:
        return image.data, image.format
    pixels = np.asarray(image.picture.convert('RGB'))
    if scale < 1:
        pixels = cv2.resize(pixels, scaled_size(image.size, scale), interpolation=cv2.INTER_AREA)
    kind = 'JPEG' if scale < 1 or image.format == b'jpeg' else 'PNG'
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=95, subsampling=0)
    return file.getvalue(), kind.lower().encode()


def read_mask(path, class_set, scale):
    """Reads a mask: values of palette and grey PNGs are class indices; colours are looked up in the class set.
    `path`: a PNG, or a MATLAB file of SBD if it ends in .mat. `class_set`: classes.ClassSet. `scale`: see read_image.
    Returns a Mask. BadFileError: the file cannot be used, or has a colour or a value that is not a class."""
    ending = os.path.splitext(path)[1].lower()
    if ending not in MASK_ENDINGS:
        raise BadFileError(f'{path}: a mask must be a PNG; save it anew, not from a JPEG, which has other values',
                           'kind of mask')
    if ending == '.mat':
        return Mask(look_up_values(read_sbd_mask(path), path, class_set.label_of_value), 'SBD')
    mask = turn_upright(read_picture(path, scale))
    mode, pixels = mask.picture.mode, np.asarray(mask.picture)
    if mode in ('RGB', 'RGBA'):
        return Mask(look_up_colours(pixels[:, :, :3], path, class_set), 'colour')
    if mode not in ('P', 'L', '1', 'I', 'I;16'):
        raise BadFileError(f'{path}: a mask of mode {mode}; save it with a palette, in grey or in RGB', 'kind of mask')
    values, table = pixels // STRETCH[mask.raw_mode] if mask.raw_mode in STRETCH else pixels, class_set.label_of_value
    if mode != 'P':
        return Mask(look_up_values(values, path, table), 'grey')
    by_palette = order_palette(mask.picture, path, class_set)
    oddity = '' if (by_palette == table).all() else (
        "its palette has the classes' colours in an order of its own; the colours count, not the values")
    return Mask(look_up_values(values, path, by_palette), 'palette', oddity)


def read_sbd_mask(path):
    """The field Segmentation of the struct GTcls in a MATLAB file, uint8 [H, W]; BadFileError if there is none."""
    try:
        labels = scipy.io.loadmat(path, variable_names=['GTcls'])['GTcls']['Segmentation'][0, 0]
        if labels.dtype != np.uint8 or labels.ndim != 2 or labels.size == 0:
            raise ValueError(f'Segmentation is {labels.dtype} {list(labels.shape)}')
    except Exception as error:  # loadmat raises nearly anything on damaged bytes
        raise BadFileError(f'{path}: has no uint8 matrix GTcls.Segmentation, as masks of SBD have '
                           f'({describe_error(error)})') from error
    return labels


def look_up_values(values, path, table):
    """Labels of a mask's values, int [H, W], in a table, uint8 [256]; BadFileError if one is not a class."""
    labels = cv2.LUT(values, table) if values.dtype == np.uint8 else np.where(
        (values >= 0) & (values <= 255), table[values & 255], NO_CLASS)
    if (labels == NO_CLASS).any():
        raise BadFileError(f'{path}: class {values[labels == NO_CLASS].min()} is neither 0..'
                           f'{np.flatnonzero(table < NO_CLASS)[-1]} nor {IGNORE_LABEL}; does --classes name all?',
                           'class out of range')
    return labels


def order_palette(picture, path, class_set):
    """The labels of a palette mask's values, uint8 [256]: by their colours if all that occur are the class set's.
    For classes that have VOC's colours only by default, a mask with VOC's palette is one from a tool that gives it to
    any classes. BadFileError: some colours that occur are of other classes than their values, some of none."""
    table, meant = class_set.label_of_value, class_set.label_of_colour
    used = np.flatnonzero(picture.histogram()[:IGNORE_LABEL]).tolist()
    palette = picture.getpalette('RGB')
    shown = [tuple(palette[3 * value:3 * value + 3]) for value in used]
    vocs = shown == list(map(tuple, utils.voc_palette()[used].tolist()))
    labels = [meant.get(colour) for colour in shown]
    if vocs and not class_set.has_own_colours:
        return table
    if None not in labels:
        table[used] = labels
    elif class_set.has_own_colours and not vocs and any(
            label not in (None, table[value]) for value, label in zip(used, labels)):
        raise BadFileError(f"{path}: its palette has the classes' colours in another order, and "
                           f'{shown[labels.index(None)]}, which is no class; save it in colour or in grey',
                           'odd palette')
    return table


def look_up_colours(colours, path, class_set):
    """Labels of uint8 RGB [H, W, 3] in a class set; BadFileError if a colour is not in it."""
    shifts = np.array([1 << 16, 1 << 8, 1], np.int32)
    packed = colours.astype(np.int32) @ shifts
    labels = np.full(packed.shape, NO_CLASS, np.uint8)
    for colour, label in class_set.label_of_colour.items():
        labels[packed == colour @ shifts] = label
    if (labels == NO_CLASS).any():
        colour_map = 'VOC colour map' if class_set == VOC else 'colour map of --classes'
        colour = tuple(colours[labels == NO_CLASS][0].tolist())
        raise BadFileError(f'{path}: colour {colour} is not in the {colour_map}', 'unknown colour')
    return labels


def count_pixels(labels):
    """How often each label occurs in uint8 [H, W]; int64 [256]."""
    return np.array(Image.fromarray(labels).histogram(), np.int64)  # faster than bincount


def encode_label(labels):
    """uint8 [H, W] as the bytes of a grey PNG."""
    return cv2.imencode('.png', labels, PNG_OPTIONS)[1].tobytes()


def scaled_size(size, scale):
    """(width, height) times `scale`, each rounded, and at least 1 pixel."""
    return tuple(max(1, round(side * scale)) for side in size)


def scale_label(labels, scale):
    """Scales uint8 [H, W]: each pixel takes the class, or void, at its own centre."""
    sizes = zip(labels.shape, scaled_size(labels.shape, scale))
    # The centre of pixel i of n lies at (i + 1/2) / n of the side; in whole numbers, so that nothing is rounded.
    rows, columns = ((2 * np.arange(after) + 1) * before // (2 * after) for before, after in sizes)
    return labels[rows[:, np.newaxis], columns]
