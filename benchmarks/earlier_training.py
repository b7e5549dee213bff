"""The earlier suite's way of training, for comparison: its input, its graph and its loop.

The network, its loss and the optimiser are those of train.py; the crops are complete images cut down, as tutorials do
it.
"""
import time

import tensorflow.compat.v1 as tf

import train
import utils

FEATURES = {'image/encoded': tf.FixedLenFeature([], tf.string), 'image/label': tf.FixedLenFeature([], tf.string)}
SHUFFLE_BUFFER = 4096


def training_batches(record, batch_size, crop_size):
    """Endless batches of random crops: decoded completely, as float32, filled up with 0, cropped, randomly mirrored.

    Returns:
        tf.data.Dataset of (images float32 [B, S, S, 3], labels int32 [B, S, S]).
    """
    def parse(serialized):
        example = tf.io.parse_single_example(serialized, FEATURES)
        image = tf.cast(tf.image.decode_jpeg(example['image/encoded'], channels=3), tf.float32)
        label = tf.cast(tf.image.decode_png(example['image/label'], channels=1), tf.float32)
        both = tf.concat([image, label], axis=-1)
        height, width = tf.shape(both)[0], tf.shape(both)[1]
        both = tf.image.pad_to_bounding_box(both, 0, 0, tf.maximum(height, crop_size), tf.maximum(width, crop_size))
        both = tf.image.random_crop(both, [crop_size, crop_size, 4])
        both = tf.image.random_flip_left_right(both)
        return both[:, :, :3], tf.cast(both[:, :, 3], tf.int32)

    return (tf.data.TFRecordDataset(record).shuffle(SHUFFLE_BUFFER).repeat()
            .map(parse, num_parallel_calls=tf.data.AUTOTUNE)
            .batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE))


def build_graph(records, batch_size, crop_size, fc_channels):
    """One graph for training and validation, switched by a placeholder; all histograms are in the one summary.

    Returns:
        is_training: placeholder, bool. train_op. loss: float32 scalar. summaries: str scalar.
    """
    is_training = tf.placeholder(tf.bool)
    train_batch, val_batch = (
        tf.data.make_one_shot_iterator(training_batches(record, batch_size, crop_size)).get_next()
        for record in records)
    images, labels = tf.cond(is_training, lambda: train_batch, lambda: val_batch)
    images.set_shape([batch_size, crop_size, crop_size, 3])

    logits = train.fcn(images, train.Network(fc_channels=fc_channels), is_training)
    loss, *_ = train.segmentation_loss(logits, labels)
    optimizer = tf.train.AdamOptimizer(1e-4)
    gradients = optimizer.compute_gradients(loss)
    for gradient, variable in gradients:
        tf.summary.histogram(f'{variable.op.name}/gradient', gradient)
        tf.summary.histogram(variable.op.name, variable)
    tf.summary.scalar('loss', loss)
    train_op = optimizer.apply_gradients(gradients, tf.train.get_or_create_global_step())
    return is_training, train_op, loss, tf.summary.merge_all()


def training(turns, records, batch_size, crop_size, fc_channels, steps, log_dir):
    """Contender: the earlier loop, `steps` steps a round, the last of which is run again for the log in LOG_DIR."""
    utils.quiet_tensorflow()
    with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(allow_soft_placement=True)) as session:
        is_training, train_op, loss, summaries = build_graph(records, batch_size, crop_size, fc_channels)
        session.run(tf.global_variables_initializer())
        writer, step, number = tf.summary.FileWriter(log_dir, session.graph), 0, min(2, steps)
        while True:
            turns.wait()
            started = time.perf_counter()
            for _ in range(number):
                session.run(train_op, {is_training: True})
            step += number
            value, summary = session.run([loss, summaries], {is_training: True})
            print(f'step {step}, loss {value:.3f}')
            writer.add_summary(summary, step)
            turns.report(number * batch_size, time.perf_counter() - started)
            number = steps
