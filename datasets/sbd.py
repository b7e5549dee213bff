"""Reads SBD, the Semantic Boundaries Dataset, as it is distributed: its masks, and its lists beside those of VOC.

    label = sbd.read_label('benchmark_RELEASE/dataset/cls/2008_000002.mat', classes.VOC)

SBD has masks for 11,355 images of VOC2011, in VOC's classes, without void borders: Hariharan, Arbelaez, Bourdev, Maji,
Malik, "Semantic Contours from Inverse Detectors", ICCV 2011. A mask is the field Segmentation of the struct GTcls in a
MATLAB file of level 5. Of such a file only that field is read, and nothing is allocated that the file does not hold:
scipy.io.loadmat makes every field, and 200 bytes can have it fill the memory. Source: "MAT-File Format", MathWorks.
"""
import itertools
import os
import zlib
from typing import NamedTuple

import numpy as np

from datasets import pictures
from datasets.pictures import BadFileError
from datasets.records import MAX_FILE_BYTES, MAX_PIXELS

HEADER_BYTES = 128
LITTLE_ENDIAN_LEVEL_5 = b'\0\1IM'  # the end of the header
UINT8, MATRIX, COMPRESSED = 2, 14, 15  # types of an element
MATRIX_PARTS = 3  # elements with which a matrix begins: flags, dimensions, name
STRUCT = 2  # class of a matrix
MAX_FIELDS = 64  # of a struct; GTcls has three


class Merged(NamedTuple):
    """The ids to train on with SBD, and what became of SBD's."""
    ids: list  # those of VOC's train list, then SBD's
    added: int  # of SBD's, as are the two below
    in_val: int  # left out, because they are in VOC's val list
    in_train: int  # left out, because VOC's train list has them already


def list_paths(folder):
    """The two lists of SBD: all of their images are for training, where VOC's val list does not hold them."""
    return [os.path.join(folder, name) for name in ('train.txt', 'val.txt')]


def merge(train_ids, val_ids, sbd_ids):
    """Merges lists of ids, str: VOC's train and val, and all of SBD's. Returns Merged, in which each id occurs once."""
    in_val, in_train = set(val_ids), set(train_ids)
    candidates = list(dict.fromkeys(sbd_ids))
    added = [image_id for image_id in candidates if image_id not in in_val | in_train]
    left_out = len(in_val.intersection(candidates))
    return Merged([*train_ids, *added], len(added), left_out, len(candidates) - len(added) - left_out)


# ------------------------------------------------------------------------------------------- masks


def read_label(path, class_set):
    """Reads a mask.

    Args:
        path: str.
        class_set: classes.ClassSet.

    Returns:
        `pictures.Label`. BadFileError for a file or a class that cannot be used.
    """
    try:
        with open(path, 'rb') as file:
            labels = find_segmentation(file.read())
    except OSError as error:
        raise BadFileError(f'{path}: {error.strerror}') from error
    except (ValueError, zlib.error) as error:
        raise BadFileError(f'{path}: is no mask of SBD: {error}') from error
    return pictures.make_label(labels, path, class_set)


def find_segmentation(data):
    """GTcls.Segmentation of a MATLAB file's bytes, uint8 [H, W]; ValueError or zlib.error if there is none."""
    if data[HEADER_BYTES - 4:HEADER_BYTES] != LITTLE_ENDIAN_LEVEL_5:
        raise ValueError('not a MATLAB file of level 5, little-endian; save it by -v6 or -v7')
    [(kind, content)] = first_elements(memoryview(data)[HEADER_BYTES:], 1)
    if kind == COMPRESSED:
        [(kind, content)] = first_elements(inflate(content), 1)
    matrix_class, dimensions, name = read_matrix(kind, content)
    if (matrix_class, name, dimensions) != (STRUCT, b'GTcls', [1, 1]):
        raise ValueError('its first variable is not the struct GTcls')
    (_, length), (_, names) = first_elements(content, MATRIX_PARTS + 2)[MATRIX_PARTS:]
    length = int.from_bytes(length[:4], 'little')  # of each field's name
    if not 0 < length <= len(names) <= MAX_FIELDS * length:
        raise ValueError('GTcls has no fields, or too many')
    fields = [bytes(names[start:start + length]).split(b'\0')[0] for start in range(0, len(names), length)]
    if b'Segmentation' not in fields:
        raise ValueError('GTcls has no field Segmentation')
    place = MATRIX_PARTS + 2 + fields.index(b'Segmentation')
    return read_pixels(*first_elements(content, place + 1)[place])


def read_pixels(kind, content):
    """A matrix element as uint8 [H, W]; ValueError if it is something else."""
    _, dimensions, _ = read_matrix(kind, content)
    stored_as, pixels = first_elements(content, MATRIX_PARTS + 1)[MATRIX_PARTS]
    if stored_as != UINT8:
        raise ValueError('Segmentation is not of uint8')
    if len(dimensions) != 2 or min(dimensions) < 1 or dimensions[0] * dimensions[1] != len(pixels):
        raise ValueError('Segmentation is not height times width')
    if len(pixels) > MAX_PIXELS:
        raise ValueError(f'more than {MAX_PIXELS // 10 ** 6} million pixels')
    height, width = dimensions
    return np.frombuffer(pixels, np.uint8).reshape(width, height).T.copy()  # MATLAB stores columns


def read_matrix(kind, content):
    """Class (int), dimensions (list of int) and name (bytes) of an element; ValueError if it is no matrix."""
    if kind != MATRIX:
        raise ValueError('a matrix is expected, and something else found')
    (_, flags), (_, dimensions), (_, name) = first_elements(content, MATRIX_PARTS)
    if len(flags) != 8 or len(dimensions) % 4 or len(dimensions) > 128:
        raise ValueError('a matrix of unknown kind')
    return flags[0], np.frombuffer(dimensions, '<i4').tolist(), bytes(name)


def first_elements(data, count):
    """The first `count` elements of a memoryview, as list of (type, content); ValueError if they are cut short."""
    found = list(itertools.islice(split_elements(data), count))
    if len(found) < count:
        raise ValueError('cut short')
    return found


def split_elements(data):
    """Yields (type, int; content, memoryview) of the elements that stand in a row in a memoryview."""
    position = 0
    while position + 8 <= len(data):
        kind, size = np.frombuffer(data[position:position + 8], '<u4').tolist()
        start, end = position + 8, position + 8 + size
        following = end if kind == COMPRESSED else end + -size % 8
        if kind >> 16:  # up to four bytes share the tag's eight with type and size
            kind, size = kind & 0xffff, kind >> 16
            start, end, following = position + 4, position + 4 + size, position + 8
        if end > min(len(data), following):
            raise ValueError('cut short')
        yield kind, data[start:end]
        position = following


def inflate(content):
    """Decompresses a whole memoryview; ValueError or zlib.error if it is damaged, or large beyond reason."""
    inflater = zlib.decompressobj()
    data = inflater.decompress(content, MAX_FILE_BYTES)
    if not inflater.eof:
        raise ValueError('cut short, or too large once decompressed')
    return memoryview(data)
