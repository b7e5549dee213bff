"""The records: what one example holds, how it is written, and how a record is checked before it is used.

One `tf.train.Example` for each image:

    image/encoded       bytes of a JPEG or PNG file, the image's own unless it was changed
    image/label         PNG bytes, one channel, uint8 class index, 255 kept
    image/height, image/width   int64, pixels
    image/filename      bytes, the image's id in its list
    image/format        b'jpeg' or b'png'
    image/label_format  b'png'

    num_examples = records.count_examples('fcn_train.record')
"""
import contextlib
import errno
import io
import os

import psutil
import tensorflow.compat.v1 as tf
from google.protobuf.message import DecodeError

from datasets import classes, pictures
from utils import UserError, open_file

# What is read of an example.
FEATURES = {f'image/{name}': tf.FixedLenFeature([], kind) for name, kind in (
    ('encoded', tf.string), ('label', tf.string), ('height', tf.int64), ('width', tf.int64), ('filename', tf.string))}
BYTES_PER_PIXEL = 700  # of an image that the network sees at full size: two float32 maps of 64 channels, and the scores
FRAME = 16  # bytes around each example: its length and two checksums
CURE = 'write it with convert_fcn_dataset.py'


def make_example(filename, image_bytes, label_png_bytes, height, width, image_format=b'jpeg'):
    """One image and its label as a serialised `tf.train.Example` of the schema above, bytes.
    `height` and `width` are int, in pixels; the other arguments are bytes."""
    values = {'encoded': image_bytes, 'filename': filename, 'format': image_format, 'height': height,
              'label': label_png_bytes, 'label_format': b'png', 'width': width}
    example = tf.train.Example()
    for name, value in values.items():
        feature = example.features.feature[f'image/{name}']
        (feature.int64_list if isinstance(value, int) else feature.bytes_list).value.append(value)
    return example.SerializeToString(deterministic=True)


@contextlib.contextmanager
def open_writer(path):
    """A TFRecordWriter whose errors are OSErrors that name `path`, as those of open() are."""
    try:
        with tf.io.TFRecordWriter(path) as writer:
            yield writer
    except tf.errors.OpError as error:
        number = errno.ENOSPC if isinstance(error, tf.errors.ResourceExhaustedError) else errno.EIO
        raise OSError(number, error.message.split('; ')[-1], path) from error  # of `path; reason`


def count_examples(record, whole=False):
    """Reads a record once and checks every example as far as that is possible without decoding its pictures.
    `whole`: bool, whether the network will see the images at full size, for which this machine's memory must suffice.
    Returns the number of examples, int, at least 1. UserError: the file is missing, empty, damaged, cut off or not a
    TFRecord file, or an example is not of the schema, has pictures of another size than it says, or is too large."""
    max_pixels = min(pictures.MAX_PIXELS, psutil.virtual_memory().total // BYTES_PER_PIXEL if whole else 2 ** 63)
    count = size = 0
    try:
        with open_file(record):  # its errors are the clearer ones, and TensorFlow would wait for a pipe
            for serialized in tf.io.tf_record_iterator(record):
                check_example(serialized, max_pixels)
                count, size = count + 1, size + len(serialized) + FRAME
    except FileNotFoundError:
        raise UserError(f'{record}: no such file; {CURE}') from None
    except OSError as error:
        raise UserError(f'{record}: cannot be read ({error.strerror}); {CURE}') from None
    except tf.errors.DataLossError:
        raise UserError(f'{record}: not a TFRecord file, or damaged after example {count}; {CURE}') from None
    except ValueError as error:
        raise UserError(f'{record}: example {count}: {error}; {CURE}') from None
    if size != os.path.getsize(record):  # TensorFlow ends silently within the length of an example
        raise UserError(f'{record}: is cut off after example {count}; {CURE}')
    if count == 0:
        raise UserError(f'{record}: holds no example; {CURE}')
    stored = classes.read_side_file(record)
    if stored and stored['images'] != count:
        raise UserError(f'{record}: holds {count} examples, but {classes.side_file(record)} says {stored["images"]}; '
                        f'copy both again, or {CURE}')
    return count


def check_example(serialized, max_pixels):
    """Raises ValueError unless bytes are an example of the schema, of at most max_pixels, whose sizes agree."""
    try:
        present = tf.train.Example.FromString(serialized).features.feature
    except DecodeError:
        raise ValueError('is not a tf.train.Example') from None
    values = {}
    for name, feature in FEATURES.items():
        kind = 'bytes' if feature.dtype is tf.string else 'int64'
        found = getattr(present[name], f'{kind}_list').value
        if len(found) != 1:
            raise ValueError(f'has no feature {name} with one {kind} value')
        values[name] = found[0]
    check_sizes(values, max_pixels)


def check_sizes(values, max_pixels):
    """Raises ValueError unless image, label, height and width of an example, dict by feature, agree."""
    height, width = values['image/height'], values['image/width']
    if height * width > max_pixels:
        limit = 'an image may have' if max_pixels == pictures.MAX_PIXELS else 'fit into the memory at once'
        raise ValueError(f'{width} x {height} pixels are more than the {max_pixels // 10 ** 6} million that {limit}; '
                         'scale the image down')
    for name, formats in (('image/encoded', ['JPEG', 'PNG']), ('image/label', ['PNG'])):
        try:
            with pictures.open_picture(io.BytesIO(values[name]), formats) as picture:
                size = picture.size
        except Exception:  # Pillow raises nearly anything on damaged bytes
            raise ValueError(f'its {name} is not a readable {" or ".join(formats)}') from None
        if size != (width, height):
            raise ValueError(f'its {name} is {size[0]} x {size[1]} pixels, by image/width and image/height it is '
                             f'{width} x {height}')
