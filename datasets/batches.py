"""The records on their way into a graph: they are checked and counted, read whole, or cropped into training batches.

    batches = input_pipeline.training_batches(record, num_examples, batch_size, crop_size, pad_rgb, seed)

What a record holds, and how it is written, is in dataset.py: that file does without TensorFlow, whose import takes 3
seconds and 600 MB, for the conversion and the results page have no use for it.
"""
import os
import struct
import sys
from typing import NamedTuple

import numpy as np
import tensorflow.compat.v1 as tf
from google.protobuf.message import DecodeError

from datasets import augmentation, records
from datasets.classes import IGNORE_LABEL
from utils import UserError, find_reason, is_control, open_file

# How to parse an example: what the network needs of the schema in dataset.py.
FEATURES = {
    'image/encoded': tf.FixedLenFeature([], tf.string),
    'image/label': tf.FixedLenFeature([], tf.string),
    'image/height': tf.FixedLenFeature([], tf.int64),
    'image/width': tf.FixedLenFeature([], tf.int64),
    'image/filename': tf.FixedLenFeature([], tf.string),
}
BYTES_PER_PIXEL = 700  # of an image that the network sees whole: two maps of 64 channels, float32, and the scores
SHUFFLE_BUFFER = 4096  # encoded examples held in memory, about 0.1 MB each: more than VOC2012's 1,464 training images


def count_examples(record, whole=False):
    """Reads a record once from end to end and checks all that can be told without decoding a picture.

    TensorFlow's own reader is not asked: it crashes where a length in the file is beyond the memory.

    Args:
        record: str, path of a TFRecord file.
        whole: bool, whether the network is to see the images at their true size: then this machine's memory must do.

    Returns:
        int, the number of examples, at least 1.

    Raises:
        UserError: the file is missing, empty, damaged, no TFRecord, or an example is not of the schema in dataset.py,
            or claims a size that its pictures do not have, or is too large.
    """
    cure = 'write it with convert_fcn_dataset.py'
    max_pixels = min(records.MAX_PIXELS, _memory_bytes() // BYTES_PER_PIXEL) if whole else records.MAX_PIXELS
    count = 0
    try:
        for serialized in _read_serialized(record):
            _check_example(f'{record}: example {count}', serialized, max_pixels, cure)
            count += 1
    except FileNotFoundError:
        raise UserError(f'{record}: no such file; {cure}') from None
    except OSError as error:
        raise UserError(f'{record}: cannot be read ({error.strerror}); {cure}') from None
    except _DamagedRecordError:
        raise UserError(f'{record}: not a TFRecord file, or damaged after example {count}; {cure}') from None
    if count == 0:
        raise UserError(f'{record}: holds no example; {cure}')
    return count


def fingerprint(record):
    """What tells a record from others, in the default graph: int64 scalars, how many examples it has, and a hash."""
    def add(found, serialized):
        count, mark = found
        return count + 1, mark * 31 + tf.strings.to_hash_bucket_fast(serialized, 2 ** 31)

    return tf.data.TFRecordDataset(record).reduce((tf.constant(0, tf.int64), tf.constant(0, tf.int64)), add)


def _memory_bytes():
    """This machine's memory, or what of it the container may use."""
    try:
        with open('/sys/fs/cgroup/memory.max') as file:
            allowed = int(file.read())
    except (OSError, ValueError):  # no container, or one without a limit, which says 'max'
        allowed = sys.maxsize
    return min(allowed, os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))


class _DamagedRecordError(Exception):
    """A length or a checksum in a record is wrong, or the file ends too early."""


def _read_serialized(record):
    """Yields the serialised examples of a TFRecord file; no length is believed that the file does not have.

    Source: tensorflow/core/lib/io/record_reader.cc.
    """
    with open_file(record) as file:
        left = os.fstat(file.fileno()).st_size
        while left:
            head = file.read(12)
            length = int.from_bytes(head[:8], 'little')
            if (len(head) < 12 or records.masked_crc(head[:8]) != head[8:] or length > records.MAX_EXAMPLE_BYTES
                    or length > left - 16):
                raise _DamagedRecordError
            serialized = file.read(length)
            if records.masked_crc(serialized) != file.read(4):
                raise _DamagedRecordError
            left -= length + 16
            yield serialized


def _check_example(place, serialized, max_pixels, cure):
    """Raises UserError, a line that begins with `place`, unless an example is of the schema and its sizes agree."""
    try:
        present = tf.train.Example.FromString(serialized).features.feature
    except DecodeError:
        raise UserError(f'{place} is something else than tf.train.Example; {cure}') from None
    values = {}
    for name, feature in FEATURES.items():
        if name not in present:
            raise UserError(f'{place} lacks the feature {name}; {cure}')
        kind = 'bytes_list' if feature.dtype is tf.string else 'int64_list'
        found = getattr(present[name], kind).value
        if len(found) != 1:
            raise UserError(f'{place}: the feature {name} is not one {kind.removesuffix("_list")} value; {cure}')
        values[name] = found[0]
    name = values['image/filename'].decode(errors='replace')
    if any(character == '\ufffd' or is_control(character) for character in name):
        raise UserError(f'{place}: its image/filename is no text; {cure}')  # or text that steers a terminal
    _check_sizes(place, values, max_pixels, cure)


def _check_sizes(place, values, max_pixels, cure):
    """Raises UserError unless image, label, height and width of an example (dict by feature) tell the same size."""
    height, width = values['image/height'], values['image/width']
    if height < 1 or width < 1:
        raise UserError(f'{place}: is {width} x {height} pixels by its image/width and image/height; {cure}')
    for name, read_size, kinds in (('image/encoded', _image_size, 'JPEG or PNG'), ('image/label', _png_size, 'PNG')):
        size = read_size(values[name])
        if size is None:
            raise UserError(f'{place}: its {name} is no {kinds}; {cure}')
        if size != (height, width):
            raise UserError(f'{place}: its {name} is {size[1]} x {size[0]} pixels, by image/width and image/height it '
                            f'is {width} x {height}; {cure}')
    if _has_endless_scans(values['image/encoded']):
        raise UserError(f'{place}: its image/encoded has more than {records.MAX_SCANS} scans; {cure}')
    if height * width > max_pixels:
        whose = 'an image may have' if max_pixels == records.MAX_PIXELS else 'fit into the memory at once'
        raise UserError(f'{place}: {width} x {height} pixels are more than the {max_pixels // 10 ** 6} million that '
                        f'{whose}; scale the image down')


def _image_size(data):
    """(height, width) in the header of a JPEG's or a PNG's bytes; None if it is neither."""
    return _png_size(data) or _jpeg_size(data)


def _png_size(data):
    """(height, width) in the header of a PNG's bytes; None if it is none. Source: the PNG standard's IHDR chunk."""
    if len(data) < 24 or data[:8] != b'\x89PNG\r\n\x1a\n' or data[12:16] != b'IHDR':
        return None
    width, height = struct.unpack('>II', data[16:24])
    return height, width


def _jpeg_size(data):
    """(height, width) in the frame header of a JPEG's bytes; None if it has none."""
    frame = _find_frame(data)
    return None if frame is None else struct.unpack('>HH', data[frame + 5:frame + 9])


def _has_endless_scans(data):
    """Whether an image's bytes are a progressive JPEG with more than records.MAX_SCANS passes over the image."""
    frame = _find_frame(data)
    return frame is not None and data[frame + 1] & 3 == 2 and records.has_endless_scans(data)


def _find_frame(data):
    """Where the frame header of a JPEG's bytes begins; None if there is none. Source: ITU T.81, annex B."""
    position = 2
    while data[:2] == b'\xff\xd8' and data[position:position + 1] == b'\xff' and position + 9 <= len(data):
        marker = data[position + 1]
        if 0xc0 <= marker <= 0xcf and marker not in (0xc4, 0xc8, 0xcc):  # a frame, no table
            return position
        if marker == 0xff:  # a byte that fills
            position += 1
        elif marker == 0x01 or 0xd0 <= marker <= 0xd9:  # these stand alone
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2:position + 4], 'big')
    return None


class Reader(NamedTuple):
    """A record's complete images, read round and round; running `initializer` goes back to the start.

    record: str. num_examples: int. initializer: op. next_example: dict of tensors, see whole_images.
    """
    record: str
    num_examples: int
    initializer: tf.Operation
    next_example: dict


def build_reader(record, num_examples, number_of_classes=21, skip=0):
    """A Reader in the default graph; it starts at the image after the first `skip`. See whole_images."""
    images = whole_images(record, number_of_classes)
    images = images.apply(tf.data.experimental.assert_cardinality(num_examples))
    iterator = tf.data.make_initializable_iterator(images.repeat().skip(skip))
    return Reader(record, num_examples, iterator.initializer, iterator.get_next())


def run_input(session, fetches, record):
    """session.run of something that reads from a record.

    Raises:
        UserError: the record cannot be read or decoded, or its length has changed.
    """
    try:
        return session.run(fetches)
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.NotFoundError,
            tf.errors.FailedPreconditionError, tf.errors.PermissionDeniedError) as error:
        raise UserError(f'{record}: cannot be read or decoded ({find_reason(error)}); '
                        'write it again with convert_fcn_dataset.py') from None


def whole_images(record, number_of_classes=21):
    """The images of a record at their true size, in the record's order, once.

    Args:
        record: str, path of a TFRecord file.
        number_of_classes: int; a label may hold no other value but 255. VOC's by default.

    Returns:
        tf.data.Dataset of dicts: 'image' uint8 [H, W, 3] RGB, 'label' uint8 [H, W] with 255 = ignore, 'filename'
        string.
    """
    def decode(serialized):
        example = tf.io.parse_single_example(serialized, FEATURES)
        # This op takes a PNG as well.
        image = tf.image.decode_jpeg(example['image/encoded'], channels=3, dct_method='INTEGER_ACCURATE')
        label = tf.image.decode_png(example['image/label'], channels=1)[:, :, 0]
        label = _check_classes(label, example['image/filename'], number_of_classes)
        return {'image': image, 'label': label, 'filename': example['image/filename']}

    return tf.data.TFRecordDataset(record).map(decode, num_parallel_calls=tf.data.AUTOTUNE).prefetch(1)


def _decode_window(example, window, number_of_classes):
    """A part of a parsed example: image uint8 [H, W, 3] RGB and label uint8 [H, W, 1].

    A JPEG is decoded inside the window only. An InvalidArgumentError when it is run if the label there is unusable.

    Args:
        example: dict by feature. window: int32 [4], top, left, height, width. number_of_classes: int.
    """
    def cut(picture):
        return tf.slice(picture, tf.pad(window[:2], [[0, 1]]), tf.pad(window[2:], [[0, 1]], constant_values=-1))

    encoded = example['image/encoded']
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.image.decode_and_crop_jpeg(encoded, window, channels=3, dct_method='INTEGER_ACCURATE'),
        lambda: cut(tf.image.decode_png(encoded, channels=3)))
    label = cut(tf.image.decode_png(example['image/label'], channels=1))
    return image, _check_classes(label, example['image/filename'], number_of_classes)


def _check_classes(label, filename, number_of_classes):
    """The label, uint8 of any shape, unchanged; an error when it is run if a value is no class and not 255."""
    usable = tf.reduce_max(label + 1) <= number_of_classes  # 255 wraps to 0
    check = tf.raw_ops.Assert(condition=usable, data=['a value that is no class in the label of', filename])
    with tf.control_dependencies([check]):
        return tf.identity(label)


def training_batches(record, num_examples, batch_size, crop_size, pad_rgb, seed, start_step=0, augment=('flip',),
                     number_of_classes=21, part=None):
    """Endless batches of random crops, or of whole images, randomly changed.

    The order of the examples and what becomes of each are functions of the step, `seed` and the graph's own seed alone,
    whatever the number of threads: a run that starts again at `start_step` sees what it would have seen.

    Args:
        record: str, path of a TFRecord file.
        num_examples: int, how many examples it holds: the length of an epoch, in each of which every one occurs once.
        batch_size: int, B.
        crop_size: int, S in pixels; 0: images stay whole, and H and W are those of the batch's largest.
        pad_rgb: three floats, the colour, rounded, where a crop or a batch is larger than an image; the label there is
            255. It is the data's mean colour as well, see augmentation.jitter_colour.
        seed: int.
        start_step: int, batches that were seen before.
        augment: str each, of augmentation.KINDS.
        number_of_classes: int; a label may hold no other value but 255. VOC's by default.
        part: (begin, end), ints, the examples of each batch that come out, for a machine among several; None: all.

    Returns:
        tf.data.Dataset of (images uint8 [B, S, S, 3] RGB, labels int32 [B, S, S], 255 = ignore, filenames string [B]),
        or [B, H, W] in place of [B, S, S]. A record that no longer holds num_examples is an error when its end is
        reached.
    """
    def read_epoch(epoch):
        examples = tf.data.TFRecordDataset(record).apply(tf.data.experimental.assert_cardinality(num_examples))
        return examples.shuffle(min(num_examples, SHUFFLE_BUFFER), seed=seed + epoch)

    def read(index, serialized):
        # XLA would draw other random numbers, and compile for every size of image.
        with tf.xla.experimental.jit_scope(compile_ops=False):
            return _read_changed(serialized, crop_size, pad_rgb, augment, number_of_classes,
                                 seed=tf.stack([tf.cast(seed, tf.int64), index]))

    def separate(both, filenames):
        return both[..., :3], tf.cast(both[..., 3], tf.int32), filenames

    first = start_step * batch_size
    epochs = tf.data.Dataset.range(first // num_examples, tf.int64.max)
    examples = epochs.flat_map(read_epoch).skip(first % num_examples).enumerate(start=first)
    begin, end = part or (0, batch_size)
    if end - begin < batch_size:
        examples = examples.filter(lambda index, _: (index % batch_size >= begin) & (index % batch_size < end))
    changed = examples.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    batches = (changed.batch(end - begin, drop_remainder=True) if crop_size else
               _batch_of_any_size(changed, end - begin, _fill_of(pad_rgb)))
    return batches.map(separate).prefetch(tf.data.AUTOTUNE)


def _batch_of_any_size(examples, batch_size, fill):
    """Batches of (uint8 [H, W, 4], filename): filled up to the largest of each, below and to the right."""
    # Differences of bytes may go round at 256, and come back when the fill is added again.
    return (examples.map(lambda both, filename: (both - fill, filename))
            .padded_batch(batch_size, ([None, None, 4], []), drop_remainder=True)
            .map(lambda both, filenames: (both + fill, filenames)))


def _read_changed(serialized, crop_size, pad_rgb, augment, number_of_classes, seed):
    """One example to (uint8 [S, S, 4] or [H, W, 4], filename string): image and label as one, so that they cannot part.

    Where nothing is interpolated all stays in bytes: four times as many would take longer to move than to compute.
    """
    example = tf.io.parse_single_example(serialized, FEATURES)
    full = tf.cast(tf.stack([example['image/height'], example['image/width']]), tf.int32)
    frame = tf.constant([crop_size, crop_size]) if crop_size else full
    chance = tf.random.stateless_uniform([3], seed)
    warped = 'scale' in augment or 'rotate' in augment

    def decode(window):
        return _decode_window(example, window, number_of_classes)

    if warped:
        image, label = augmentation.warp(decode, full, frame, chance[:2], augment, seed)
    else:
        image, label = decode(_place_window(full, frame, chance[:2]))
    if 'colour' in augment:
        image = augmentation.jitter_colour(image, pad_rgb, seed)
    both = tf.concat([augmentation.to_bytes(image), label], axis=-1)
    if 'flip' in augment:
        both = tf.cond(chance[2] < 0.5, lambda: tf.reverse(both, axis=[1]), lambda: both)
    if warped:
        both = augmentation.fill_nowhere(both, _fill_of(pad_rgb))
    elif crop_size:
        both = tf.cond(tf.reduce_any(full < frame), lambda: _fill_up(both, crop_size, _fill_of(pad_rgb)), lambda: both)
    return tf.ensure_shape(both, [crop_size or None, crop_size or None, 4]), example['image/filename']


def _place_window(full, frame, chance):
    """Where a crop of at most the size `frame` lies in an image: int32 [4], top, left, height, width."""
    size = tf.minimum(full, frame)
    top_left = tf.cast(chance * tf.cast(full - size + 1, tf.float32), tf.int32)
    return tf.concat([top_left, size], 0)


def _fill_of(pad_rgb):
    """What stands where there is no image, uint8 [4]: a colour and void."""
    return np.array([*np.round(pad_rgb), IGNORE_LABEL], np.uint8)


def _fill_up(both, crop_size, fill):
    """Image and label, uint8 [H, W, 4], to [S, S, 4]: colour and void below and to the right."""
    margin = crop_size - tf.shape(both)
    return tf.pad(both - fill, [[0, margin[0]], [0, margin[1]], [0, 0]]) + fill  # round at 256 and back, as above
