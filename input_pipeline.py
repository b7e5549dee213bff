"""The records on their way into a graph: they are checked and counted, read whole, or cropped into training batches.

    batches = input_pipeline.training_batches(record, num_examples, batch_size, crop_size, pad_rgb, seed)

What a record holds, and how it is written, is in dataset.py: that file does without TensorFlow, whose import takes 3
seconds and 600 MB, for the conversion and the results page have no use for it.
"""
import numpy as np
import tensorflow.compat.v1 as tf
from google.protobuf.message import DecodeError

from dataset import IGNORE_LABEL
from utils import UserError

# How to parse an example: what the network needs of the schema in dataset.py.
FEATURES = {
    'image/encoded': tf.FixedLenFeature([], tf.string),
    'image/label': tf.FixedLenFeature([], tf.string),
    'image/height': tf.FixedLenFeature([], tf.int64),
    'image/width': tf.FixedLenFeature([], tf.int64),
    'image/filename': tf.FixedLenFeature([], tf.string),
}
SHUFFLE_BUFFER = 4096  # encoded examples held in memory, about 0.1 MB each: more than VOC2012's 1,464 training images


def count_examples(record):
    """Reads a record once from end to end, which also checks every example's CRC.

    Args:
        record: str, path of a TFRecord file.

    Returns:
        int, the number of examples, at least 1.

    Raises:
        UserError: the file is missing, empty, damaged, no TFRecord, or its examples are not of this schema.
    """
    cure = 'write it with convert_fcn_dataset.py'
    count = 0
    try:
        for serialized in tf.io.tf_record_iterator(record):
            if count == 0:
                _check_schema(record, serialized, cure)
            count += 1
    except tf.errors.NotFoundError:
        raise UserError(f'{record}: no such file; {cure}') from None
    except tf.errors.OpError:
        raise UserError(f'{record}: not a TFRecord file, or damaged after example {count}; {cure}') from None
    if count == 0:
        raise UserError(f'{record}: holds no example; {cure}')
    return count


def _check_schema(record, serialized, cure):
    try:
        present = tf.train.Example.FromString(serialized).features.feature
    except DecodeError:
        raise UserError(f'{record}: holds something else than tf.train.Example; {cure}') from None
    for name in FEATURES:
        if name not in present:
            raise UserError(f'{record}: its examples lack the feature {name}; {cure}')


def whole_images(record):
    """The images of a record at their true size, in the record's order, once.

    Args:
        record: str, path of a TFRecord file.

    Returns:
        tf.data.Dataset of dicts: 'image' uint8 [H, W, 3] RGB, 'label' uint8 [H, W] with 255 = ignore, 'filename'
        string.
    """
    return (tf.data.TFRecordDataset(record)
            .map(_decode_whole, num_parallel_calls=tf.data.AUTOTUNE).prefetch(1))


def _decode_whole(serialized):
    example = tf.io.parse_single_example(serialized, FEATURES)
    image = tf.image.decode_jpeg(example['image/encoded'], channels=3, dct_method='INTEGER_ACCURATE')
    label = tf.image.decode_png(example['image/label'], channels=1)[:, :, 0]
    return {'image': image, 'label': label, 'filename': example['image/filename']}


def training_batches(record, num_examples, batch_size, crop_size, pad_rgb, seed, start_step=0):
    """Endless batches of random crops, randomly mirrored.

    The order of the examples and each one's crop are functions of the step, `seed` and the graph's own seed alone,
    whatever the number of threads: a run that starts again at `start_step` sees what it would have seen.

    Args:
        record: str, path of a TFRecord file.
        num_examples: int, how many examples it holds: the length of an epoch, in each of which every one occurs once.
        batch_size: int, B.
        crop_size: int, S in pixels.
        pad_rgb: three floats, the colour, rounded, that fills an image smaller than the crop; its label there is 255.
        seed: int.
        start_step: int, batches that were seen before.

    Returns:
        tf.data.Dataset of (images uint8 [B, S, S, 3] RGB, labels int32 [B, S, S], 255 = ignore, filenames string [B]).
        A record that no longer holds num_examples is an error when its end is reached.
    """
    def read_epoch(epoch):
        examples = tf.data.TFRecordDataset(record).apply(tf.data.experimental.assert_cardinality(num_examples))
        return examples.shuffle(min(num_examples, SHUFFLE_BUFFER), seed=seed + epoch)

    def crop(index, serialized):
        # XLA would draw other random numbers, and compile for every size of image.
        with tf.xla.experimental.jit_scope(compile_ops=False):
            return _decode_crop(serialized, crop_size, pad_rgb, seed=tf.stack([tf.cast(seed, tf.int64), index]))

    def part(both, filenames):
        return both[..., :3], tf.cast(both[..., 3], tf.int32), filenames

    first = start_step * batch_size
    epochs = tf.data.Dataset.range(first // num_examples, tf.int64.max)
    examples = epochs.flat_map(read_epoch).skip(first % num_examples).enumerate(start=first)
    crops = examples.map(crop, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return crops.batch(batch_size, drop_remainder=True).map(part).prefetch(tf.data.AUTOTUNE)


def _decode_crop(serialized, crop_size, pad_rgb, seed):
    """One example to (uint8 [S, S, 4], filename string): image and label as one, so that they cannot part.

    The JPEG is decoded inside the window only, and all stays in bytes: four times as many would take longer to move
    than to compute.
    """
    example = tf.io.parse_single_example(serialized, FEATURES)
    full = tf.cast(tf.stack([example['image/height'], example['image/width']]), tf.int32)
    window = tf.minimum(full, crop_size)
    chance = tf.random.stateless_uniform([3], seed)
    top_left = tf.cast(chance[:2] * tf.cast(full - window + 1, tf.float32), tf.int32)

    image = tf.image.decode_and_crop_jpeg(example['image/encoded'], tf.concat([top_left, window], 0), channels=3,
                                          dct_method='INTEGER_ACCURATE')
    label = tf.image.decode_png(example['image/label'], channels=1)
    label = tf.slice(label, tf.pad(top_left, [[0, 1]]), tf.pad(window, [[0, 1]], constant_values=1))

    both = tf.concat([image, label], axis=-1)
    both = tf.cond(chance[2] < 0.5, lambda: tf.reverse(both, axis=[1]), lambda: both)
    both = tf.cond(tf.reduce_any(window < crop_size), lambda: _fill_up(both, crop_size, pad_rgb), lambda: both)
    return tf.ensure_shape(both, [crop_size, crop_size, 4]), example['image/filename']


def _fill_up(both, crop_size, pad_rgb):
    """Image and label, uint8 [H, W, 4], to [S, S, 4]: colour and void below and to the right."""
    fill = np.array([*np.round(pad_rgb), IGNORE_LABEL], np.uint8)
    margin = crop_size - tf.shape(both)
    # Differences of bytes may go round at 256, and come back when the fill is added again.
    return tf.pad(both - fill, [[0, margin[0]], [0, margin[1]], [0, 0]]) + fill
