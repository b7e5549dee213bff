"""VGG16's arrays in NumPy's files: vgg16_weights.npz and vgg16.npy. Nothing is unpickled, and no size is believed.

Both readers are context managers that give a dict of layer names to dicts of 'weights' and 'biases' to arrays that are
still in the file: objects with `shape`, `dtype` and `read()`.

Sources: the docstring of numpy.lib.format; for what a .npy of objects goes on with, pickled_arrays.py.
"""
import contextlib
import re
import zipfile

import numpy as np

from tools import pickled_arrays
from tools.bounded_reads import BoundedReads

KINDS = {'W': 'weights', 'b': 'biases'}
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # all that np.savez uses; LZMA may ask for gigabytes


class ZippedArray:
    """An array of an .npz file, float32, of the `shape` (tuple of int) that its header tells."""

    dtype = np.dtype(np.float32)

    def __init__(self, archive, member):
        self.archive, self.member = archive, member
        with self.open() as file:
            self.shape, self.is_fortran, dtype = read_header(file)
        pickled_arrays.check_shape(self.shape)
        if dtype != self.dtype:
            raise ValueError(f'{member.filename} is {str(dtype)[:20]}, where float32 is needed')

    def open(self):
        """The member as a binary file. Raises ValueError if it is packed in a way that np.savez does not use."""
        if self.member.compress_type not in METHODS:
            raise ValueError(f'{self.member.filename} is packed in another way than by np.savez')
        return self.archive.open(self.member)

    def read(self):
        """The values. Raises ValueError if there are less, or more, than the shape says."""
        values = np.empty(self.shape[::-1] if self.is_fortran else self.shape, np.float32)
        with self.open() as file:
            read_header(file)
            pickled_arrays.fill(values, iter(lambda: file.read(pickled_arrays.PART), b''))
        return values.T if self.is_fortran else values


def read_header(file):
    """Shape, whether in Fortran's order, and dtype of a .npy, which the file is at the beginning of.

    Raises:
        ValueError: it is none, or of a version with a header that may be longer than 64 kB; arrays do without.
    """
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError('a header of another version than 1.0')
    return np.lib.format.read_array_header_1_0(file)


@contextlib.contextmanager
def open_npz(path):
    """The layers in an .npz whose arrays are named conv1_1_W, conv1_1_b, ..., fc8_b."""
    with open(path, 'rb') as file, zipfile.ZipFile(BoundedReads(file)) as archive:
        layers = {}
        for member in archive.infolist():
            name = re.fullmatch(r'(conv\d_\d|fc\d)_([Wb])\.npy', member.filename)
            if name:
                layers.setdefault(name[1], {})[KINDS[name[2]]] = ZippedArray(archive, member)
        yield layers


@contextlib.contextmanager
def open_npy(path):
    """The layers in a .npy whose one object is a dict of layer names to [weights, biases]."""
    with open(path, 'rb') as file:
        shape, _, dtype = read_header(file)
        if shape != () or dtype != np.dtype(object):
            raise ValueError('no dict, but an array')
        yield {name: dict(zip(KINDS.values(), arrays)) for name, arrays in pickled_arrays.read_layers(file).items()}
