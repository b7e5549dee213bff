"""Records on their way into a graph (tf.data): complete images for scores, random crops for training.

    batches = training_batches(Sampling(record, num_examples, batch_size, crop_size, pad_rgb, seed))

records.py has what a record holds.
"""
import os
import re
from typing import NamedTuple

import numpy as np
import tensorflow.compat.v1 as tf

from datasets import augmentation
from datasets.classes import IGNORE_LABEL
from datasets.records import FEATURES
from utils import UserError, find_reason

ITERATOR = re.compile(r'\[\[(\{\{node )?IteratorGetNext(_\d+)?(\}\})?\]\]')  # in messages: the op that has failed
SHUFFLE_BUFFER = 4096  # encoded examples held in memory, about 0.1 MB each: more than VOC2012's 1,464 training images
SHUFFLE_BYTES = 2 ** 30  # of them at most


class Reader(NamedTuple):
    """A record's complete images, read round and round; running `initializer` goes back to the start."""
    record: str
    num_examples: int
    initializer: tf.Operation
    next_example: dict  # of tensors, see whole_images


def build_reader(record, num_examples, number_of_classes=21, skip=0):
    """A Reader in the default graph; it starts at the image after the first `skip`. See whole_images."""
    images = whole_images(record, number_of_classes)
    images = images.apply(tf.data.experimental.assert_cardinality(num_examples))
    iterator = tf.data.make_initializable_iterator(images.repeat().skip(skip))
    return Reader(record, num_examples, iterator.initializer, iterator.get_next())


def run_input(session, fetches, record):
    """session.run of something that reads from a record; UserError if the record cannot be read or decoded, or its
    length has changed. Another op that fails raises its tf.errors.OpError."""
    try:
        return session.run(fetches)
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.NotFoundError, tf.errors.UnknownError,
            tf.errors.FailedPreconditionError, tf.errors.PermissionDeniedError) as error:
        if not (isinstance(error, tf.errors.DataLossError) or ITERATOR.search(error.message)):
            raise
        raise UserError(f'{record}: cannot be read or decoded ({find_reason(error)}); '
                        'write it again with convert_fcn_dataset.py') from None


def whole_images(record, number_of_classes=21):
    """The complete images of a record, a path, in its order, once; labels may only hold the classes and 255. A
    tf.data.Dataset of dicts: 'image' uint8 [H, W, 3] RGB, 'label' uint8 [H, W] with 255 = ignore, 'filename' string."""
    def decode(serialized):
        example = tf.io.parse_single_example(serialized, FEATURES)
        # This op decodes PNG too.
        image = tf.image.decode_jpeg(example['image/encoded'], channels=3, dct_method='INTEGER_ACCURATE')
        label = tf.image.decode_png(example['image/label'], channels=1)[:, :, 0]
        label = _check_classes(label, example['image/filename'], number_of_classes)
        return {'image': image, 'label': label, 'filename': example['image/filename']}

    return tf.data.TFRecordDataset(record).map(decode, num_parallel_calls=tf.data.AUTOTUNE).prefetch(1)


def _decode_window(example, window, number_of_classes):
    """A window, int32 [4] (top, left, height, width), of a parsed example: image uint8 [H, W, 3] RGB and label uint8
    [H, W, 1]. A JPEG is decoded only there. Running it fails if a label there is unusable."""
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
    """Returns a label, uint8 of any shape, unchanged; running it fails if a value is neither a class nor 255."""
    usable = tf.reduce_max(label + 1) <= number_of_classes  # 255 wraps to 0
    check = tf.raw_ops.Assert(condition=usable, data=['a value that is not a class in the label of', filename])
    with tf.control_dependencies([check]):
        return tf.identity(label)


class Sampling(NamedTuple):
    """How training examples are drawn from a record."""
    record: str  # path of a TFRecord file
    num_examples: int  # in the record; each occurs once in an epoch
    batch_size: int  # B
    crop_size: int  # S in pixels; 0: images are not cropped, and H and W are those of the batch's largest
    pad_rgb: tuple  # the data's mean colour; it fills what is larger than an image, where the label is 255
    seed: int
    augment: tuple = ('flip',)  # of augmentation.KINDS
    number_of_classes: int = 21  # labels may only hold these and 255


def shuffle_buffer(num_examples, size):
    """How many of a record's examples are held to shuffle them, int; `size` is that of all in bytes."""
    return max(1, min(num_examples, SHUFFLE_BUFFER, SHUFFLE_BYTES * num_examples // max(size, 1)))


def read_epoch(sampling, epoch):
    """The serialised examples of a Sampling once, in the random order of an epoch, int64; a tf.data.Dataset."""
    examples = tf.data.TFRecordDataset(sampling.record)
    examples = examples.apply(tf.data.experimental.assert_cardinality(sampling.num_examples))
    buffer = shuffle_buffer(sampling.num_examples, os.path.getsize(sampling.record))
    return examples.shuffle(buffer, seed=sampling.seed + epoch)


def training_batches(sampling, start_step=0, part=None):
    """Endless batches of random crops, or of complete images, randomly changed.
    tf.data.Dataset of (images uint8 [B, S, S, 3] RGB, labels int32 [B, S, S], 255 = ignore, filenames string [B]), or
    [B, H, W] in place of [B, S, S]. Order and changes depend only on the step, the seed and the graph's own seed, so a
    run that resumes at `start_step` gets the batches that it would have got. `part`: (begin, end), the examples of each
    batch for one machine among several. Reading past the end fails if the record does not hold num_examples."""
    num_examples, batch_size = sampling.num_examples, sampling.batch_size

    def read(index, serialized):
        # XLA would draw other random numbers, and compile for every size of image.
        with tf.xla.experimental.jit_scope(compile_ops=False):
            return _read_changed(serialized, sampling, seed=tf.stack([tf.cast(sampling.seed, tf.int64), index]))

    def separate(both, filenames):
        return both[..., :3], tf.cast(both[..., 3], tf.int32), filenames

    first = start_step * batch_size
    epochs = tf.data.Dataset.range(first // num_examples, tf.int64.max)
    examples = epochs.flat_map(lambda epoch: read_epoch(sampling, epoch))
    examples = examples.skip(first % num_examples).enumerate(start=first)
    begin, end = part or (0, batch_size)
    if end - begin < batch_size:
        examples = examples.filter(lambda index, _: (index % batch_size >= begin) & (index % batch_size < end))
    changed = examples.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    batches = (changed.batch(end - begin, drop_remainder=True) if sampling.crop_size else
               _batch_of_any_size(changed, end - begin, _fill_of(sampling.pad_rgb)))
    return batches.map(separate).prefetch(tf.data.AUTOTUNE)


def read_examples(sampling, start_step, number, config=None):
    """The first examples that training_batches draws for a Sampling after a step, each alone.
    Returns a list of (image uint8 [H, W, 3] RGB, label int32 [H, W], 255 = ignore). `config` is a tf.ConfigProto."""
    with tf.Graph().as_default(), tf.Session(config=config) as session:
        tf.set_random_seed(sampling.seed)
        first = start_step * sampling.batch_size
        batches = training_batches(sampling._replace(batch_size=1), first)
        example = tf.data.make_one_shot_iterator(batches).get_next()
        return [tuple(part[0] for part in run_input(session, example, sampling.record)[:2]) for _ in range(number)]


def _batch_of_any_size(examples, batch_size, fill):
    """Batches of (uint8 [H, W, 4], filename), filled below and to the right up to the largest image of each."""
    # The padding is 0, so the fill is subtracted first. Bytes may wrap at 256; adding the fill wraps them back.
    return (examples.map(lambda both, filename: (both - fill, filename))
            .padded_batch(batch_size, ([None, None, 4], []), drop_remainder=True)
            .map(lambda both, filenames: (both + fill, filenames)))


def _read_changed(serialized, sampling, seed):
    """One example to (uint8 [S, S, 4] or [H, W, 4], filename string); image and label as one stay in step. Without
    interpolation all values stay bytes, because moving floats would take most of the time."""
    crop_size, augment, fill = sampling.crop_size, sampling.augment, _fill_of(sampling.pad_rgb)
    example = tf.io.parse_single_example(serialized, FEATURES)
    full = tf.cast(tf.stack([example['image/height'], example['image/width']]), tf.int32)
    frame = tf.constant([crop_size, crop_size]) if crop_size else full
    chance = tf.random.stateless_uniform([3], seed)
    warped = 'scale' in augment or 'rotate' in augment

    def decode(window):
        return _decode_window(example, window, sampling.number_of_classes)

    if warped:
        image, label = augmentation.warp(decode, full, frame, chance[:2], augment, seed)
    else:
        size = tf.minimum(full, frame)
        top_left = tf.cast(chance[:2] * tf.cast(full - size + 1, tf.float32), tf.int32)
        image, label = decode(tf.concat([top_left, size], 0))
    if 'colour' in augment:
        image = augmentation.jitter_colour(image, sampling.pad_rgb, seed)
    both = tf.concat([augmentation.to_bytes(image), label], axis=-1)
    if 'flip' in augment:
        both = tf.cond(chance[2] < 0.5, lambda: tf.reverse(both, axis=[1]), lambda: both)
    if warped:
        both = augmentation.fill_nowhere(both, fill)
    elif crop_size:
        both = tf.cond(tf.reduce_any(full < frame), lambda: _fill_up(both, crop_size, fill), lambda: both)
    return tf.ensure_shape(both, [crop_size or None, crop_size or None, 4]), example['image/filename']


def _fill_of(pad_rgb):
    """The value of pixels outside an image, uint8 [4]: a colour and void."""
    return np.array([*np.round(pad_rgb), IGNORE_LABEL], np.uint8)


def _fill_up(both, crop_size, fill):
    """Fills image and label, uint8 [H, W, 4], below and to the right to [S, S, 4]."""
    margin = crop_size - tf.shape(both)
    return tf.pad(both - fill, [[0, margin[0]], [0, margin[1]], [0, 0]]) + fill  # see _batch_of_any_size
