"""Reads the pictures of a data set: images as files, masks as class indices.

    image = pictures.read_image('JPEGImages/2007_000032.jpg')
    labels = pictures.read_label('SegmentationClass/2007_000032.png', classes.VOC)

Each picture is decoded to its last byte; one that cannot be used raises BadFileError. Masks are palette PNGs, as in the
PASCAL VOC development kit, grey or colour PNGs, as editors save them, or SBD's MATLAB files (Hariharan, Arbelaez,
Bourdev, Maji, Malik, "Semantic Contours from Inverse Detectors", ICCV 2011).
"""
import io
import os
import stat
from typing import NamedTuple

import cv2
import numpy as np
import scipy.io
from PIL import Image, UnidentifiedImageError

from datasets import classes
from datasets.classes import IGNORE_LABEL

FORMATS = {'.jpg': 'JPEG', '.jpeg': 'JPEG', '.png': 'PNG'}  # of images, by the ending of the file's name
MAX_PIXELS = 2 ** 26  # of an image or a mask
MAX_FILE_BYTES = 2 ** 28  # of its file
STRETCH = {'L;2': 85, 'L;4': 17}  # Pillow stretches grey of 2 and 4 bits to 0..255 by these factors
# Masks are flat areas: run lengths pack VOC's masks a third smaller than zlib's level 1, and as fast.
PNG_OPTIONS = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)


class BadFileError(Exception):
    """A picture that cannot be used. Its message is `path: reason`, one line; `kind` is the reason in a few words."""

    def __init__(self, message, kind='unreadable'):
        super().__init__(message)
        self.kind = kind


class ImageFile(NamedTuple):
    """An image: its file's bytes, b'jpeg' or b'png', (width, height), and the decoded picture, perhaps smaller."""
    data: bytes
    format: bytes
    size: tuple
    picture: Image.Image


def check_file(path, data_dirs):
    """Checks that a path is a file of at most MAX_FILE_BYTES, and not a link that leads out of the data folders.

    Such a link in a data set from elsewhere could have other files of this machine copied into the records. The data
    folders, and the folders in them, may be links.

    Raises:
        BadFileError: it is not.
    """
    if os.path.islink(path):
        real = os.path.realpath(path)
        roots = [os.path.join(os.path.realpath(root), '') for root in (*data_dirs, os.path.dirname(path))]
        if not real.startswith(tuple(roots)):
            raise BadFileError(f'{path}: is a link that leads out of the data folder; copy the file, or link the '
                               'complete folder', 'link')
    try:
        status = os.stat(path)
    except OSError as error:
        kind = 'missing' if isinstance(error, FileNotFoundError) else 'unreadable'
        raise BadFileError(f'{path}: {error.strerror}', kind) from error
    if not stat.S_ISREG(status.st_mode):
        raise BadFileError(f'{path}: is not a file')
    if status.st_size > MAX_FILE_BYTES:
        raise BadFileError(f'{path}: is larger than {MAX_FILE_BYTES >> 20} MB', 'too large')


# ------------------------------------------------------------------------------------------- images


def read_image(path, coarse=False):
    """Reads an image, of the format that its name's ending stands for.

    A PNG of 16 bits a channel is refused because TensorFlow reads only the upper 8 bits; one with transparent pixels
    because TensorFlow shows what they hide.

    Args:
        path: str.
        coarse: bool, whether a JPEG's `picture` may have an eighth of its size: enough to check every byte.

    Returns:
        ImageFile.

    Raises:
        BadFileError: the file cannot be used.
    """
    kind = FORMATS[os.path.splitext(path)[1]]
    data, picture, size, raw_mode = read_picture(path, kind, coarse)
    if raw_mode.endswith('16B'):
        raise BadFileError(f'{path}: has 16 bits a channel; save it with 8', 'kind of image')
    if picture.has_transparency_data and picture.convert('RGBA').getchannel('A').getextrema()[0] < 255:
        raise BadFileError(f'{path}: has transparent pixels; save it without transparency', 'kind of image')
    return ImageFile(data, kind.lower().encode(), size, picture)


def read_picture(path, kind, coarse=False):
    """Reads and decodes a 'JPEG' or 'PNG' file.

    Returns:
        (bytes of the file, PIL image, (width, height) in the file, Pillow's name for the layout of its pixels).

    Raises:
        BadFileError: the file is missing, of another format, too large, truncated or damaged.
    """
    try:
        with open(path, 'rb') as file:
            data = file.read()
        picture = Image.open(io.BytesIO(data), formats=[kind])
        size, raw_mode = picture.size, picture.tile[0].args if kind == 'PNG' else picture.mode
        if picture.width * picture.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        if kind == 'PNG':
            picture.verify()  # the checksums, which load() ignores
            picture = Image.open(io.BytesIO(data), formats=[kind])
        if coarse:
            picture.draft(None, (1, 1))
        picture.load()
    except UnidentifiedImageError as error:
        raise BadFileError(f'{path}: is not a {kind} file, or its header is damaged') from error
    except Image.DecompressionBombError as error:
        reason = f'more than {MAX_PIXELS // 10 ** 6} million pixels; scale it down'
        raise BadFileError(f'{path}: {reason}', 'too large') from error
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise BadFileError(f'{path}: {describe_error(error)}') from error
    return data, picture, size, raw_mode


def describe_error(error):
    """An exception's reason as one line."""
    return ' '.join(str(getattr(error, 'strerror', None) or error or type(error).__name__).split())


# ------------------------------------------------------------------------------------------- masks


def read_label(path, class_set):
    """Reads a mask: values of palette and grey PNGs are class indices; colours are looked up in the class set.

    Args:
        path: str, a PNG, or a MATLAB file of SBD if it ends in .mat.
        class_set: classes.ClassSet.

    Returns:
        uint8 [H, W], class indices and 255.

    Raises:
        BadFileError: the file cannot be used, or has a colour or a value that is not a class.
    """
    labels = read_sbd_mask(path) if path.endswith('.mat') else read_png_mask(path, class_set)
    number_of_classes = len(class_set.names)
    wrong = labels[(labels >= number_of_classes) & (labels != IGNORE_LABEL)]
    if wrong.size:
        raise BadFileError(f'{path}: class {wrong.min()} is neither 0..{number_of_classes - 1} nor {IGNORE_LABEL}; '
                           'does --classes name all?', 'class out of range')
    return labels.astype(np.uint8)


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


def read_png_mask(path, class_set):
    """A mask's values, int [H, W], whether they are classes or not; BadFileError as of read_label."""
    _, picture, _, raw_mode = read_picture(path, 'PNG')
    if picture.mode in ('RGB', 'RGBA'):
        return decode_colours(np.asarray(picture)[:, :, :3], path, class_set)
    if picture.mode not in ('P', 'L', '1', 'I', 'I;16'):
        raise BadFileError(f'{path}: a mask of mode {picture.mode}; save it with a palette, in grey or in RGB',
                           'kind of mask')
    return np.asarray(picture) // STRETCH.get(raw_mode, 1)


def decode_colours(colours, path, class_set):
    """Looks up colours, uint8 RGB [H, W, 3], in a class set; (224, 224, 192) is void.

    Returns:
        uint8 [H, W]. BadFileError, which names `path`, for a colour that is not in the class set.
    """
    values = [*range(len(class_set.names)), IGNORE_LABEL]
    unmapped = len(class_set.names)  # a value that no pixel may keep
    packed = pack_colours(colours)
    labels = np.full(packed.shape, unmapped, np.uint8)
    for value, colour in zip(values, pack_colours(class_set.palette[values])):
        labels[packed == colour] = value
    if (labels == unmapped).any():
        colour = tuple(colours[labels == unmapped][0].tolist())
        colour_map = 'VOC colour map' if class_set == classes.VOC else 'colour map of --classes'
        raise BadFileError(f'{path}: colour {colour} is not in the {colour_map}', 'unknown colour')
    return labels


def pack_colours(colours):
    """uint8 RGB [..., 3] to one int32 [...] for each colour."""
    return colours.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def encode_label(labels):
    """uint8 [H, W] as the bytes of a grey PNG."""
    return cv2.imencode('.png', labels, PNG_OPTIONS)[1].tobytes()


# ------------------------------------------------------------------------------------------- scaling


def scaled_size(size, scale):
    """(width, height) times `scale`, each rounded, and at least 1 pixel."""
    return tuple(max(1, round(side * scale)) for side in size)


def scale_image(image, scale):
    """Scales an ImageFile by averaging areas, which loses no thin line; bytes of a JPEG, quality 95, 4:4:4."""
    pixels = cv2.resize(np.asarray(image.picture.convert('RGB')), scaled_size(image.size, scale),
                        interpolation=cv2.INTER_AREA)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'JPEG', quality=95, subsampling=0)
    return file.getvalue()


def scale_label(labels, scale):
    """Scales uint8 [H, W]: each pixel takes the class, or void, at its own centre."""
    sizes = zip(labels.shape, scaled_size(labels.shape, scale))
    # The centre of pixel i of n lies at (i + 1/2) / n of the side; in whole numbers, so that nothing is rounded.
    rows, columns = ((2 * np.arange(after) + 1) * before // (2 * after) for before, after in sizes)
    return labels[rows[:, np.newaxis], columns]
