"""The earlier suite's input, graph and loop, for comparison; network, loss and optimiser are those of train.py."""
import tensorflow.compat.v1 as tf

import train
from benchmarks.measure import time_calls

FEATURES = {'image/encoded': tf.FixedLenFeature([], tf.string), 'image/label': tf.FixedLenFeature([], tf.string)}


def training_batches(record, batch_size, crop_size):
    """Random crops of images that are decoded completely, as a tf.data.Dataset like that of batches.py."""
    def parse(serialized):
        example = tf.io.parse_single_example(serialized, FEATURES)
        image = tf.cast(tf.image.decode_jpeg(example['image/encoded'], channels=3), tf.float32)
        label = tf.cast(tf.image.decode_png(example['image/label'], channels=1), tf.float32)
        both = tf.concat([image, label], axis=-1)
        height, width = tf.shape(both)[0], tf.shape(both)[1]
        both = tf.image.pad_to_bounding_box(both, 0, 0, tf.maximum(height, crop_size), tf.maximum(width, crop_size))
        both = tf.image.random_flip_left_right(tf.image.random_crop(both, [crop_size, crop_size, 4]))
        return both[:, :, :3], tf.cast(both[:, :, 3], tf.int32)

    return (tf.data.TFRecordDataset(record).shuffle(4096).repeat().map(parse, num_parallel_calls=tf.data.AUTOTUNE)
            .batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE))


def build_graph(records, batch_size, crop_size, fc_channels):
    """One graph for training and validation; returns the placeholder that switches, train_op, loss and summaries."""
    is_training = tf.placeholder(tf.bool)
    train_batch, val_batch = (
        tf.data.make_one_shot_iterator(training_batches(record, batch_size, crop_size)).get_next()
        for record in records)
    images, labels = tf.cond(is_training, lambda: train_batch, lambda: val_batch)
    images.set_shape([batch_size, crop_size, crop_size, 3])

    loss, *_ = train.segmentation_loss(train.fcn(images, train.Network(fc_channels=fc_channels), is_training), labels)
    optimizer = tf.train.AdamOptimizer(1e-4)
    gradients = optimizer.compute_gradients(loss)
    for gradient, variable in gradients:
        tf.summary.histogram(f'{variable.op.name}/gradient', gradient)
        tf.summary.histogram(variable.op.name, variable)
    tf.summary.scalar('loss', loss)
    train_op = optimizer.apply_gradients(gradients, tf.train.get_or_create_global_step())
    return is_training, train_op, loss, tf.summary.merge_all()


def training(records, batch_size, crop_size, fc_channels, steps, log_dir):
    """Contender: so many steps of the earlier loop, and another one for the log in LOG_DIR; after a short warm-up."""
    with tf.Graph().as_default(), tf.Session() as session:
        is_training, train_op, loss, summaries = build_graph(records, batch_size, crop_size, fc_channels)
        session.run(tf.global_variables_initializer())
        writer = tf.summary.FileWriter(log_dir, session.graph)

        def run_steps(number):
            for _ in range(number):
                session.run(train_op, {is_training: True})
            _, summary = session.run([loss, summaries], {is_training: True})
            writer.add_summary(summary, number)

        run_steps(2)
        return time_calls(lambda: run_steps(steps), 1, steps * batch_size, warm_up=0)
