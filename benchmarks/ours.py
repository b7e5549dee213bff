"""This suite's contenders: train.py itself, prediction, and a product of matrices. They return items and seconds."""
import os
import shutil

import numpy as np
import tensorflow.compat.v1 as tf

import train
import vgg
from benchmarks.measure import as_arguments, time_calls
from inference import predictor, weights
from predict import Segmenter
from report.page import read_table


def training(records, output_dir, steps, batch_size, **flags):
    """Contender: so many steps of train.py with flags, after two, by the times in its log."""
    shutil.rmtree(output_dir, ignore_errors=True)
    train.main(as_arguments({
        'dataset_train': records[0], 'dataset_val': records[1], 'output_dir': output_dir, 'batch_size': batch_size,
        'checkpoint_path': 'none', 'max_steps': 2 + steps, 'log_steps': 1, 'val_steps': 0, 'summary_steps': 0,
        **flags}))
    log = read_table(os.path.join(output_dir, 'train', 'log.csv'))
    return steps * batch_size, sum(batch_size / row['images_per_second'] for row in log[2:])


def prediction(checkpoint, height, width, images):
    """Contender: uint8 image [height, width, 3] in, float32 softmax out, both NumPy, as predict.py does it."""
    os.environ.setdefault('TF_ONEDNN_ASSUME_FROZEN_WEIGHTS', '1')  # see utils.import_tensorflow
    image = np.random.RandomState(0).randint(0, 256, (height, width, 3), np.uint8)
    with Segmenter(checkpoint) as segmenter:
        return time_calls(lambda: segmenter.probabilities(image), images)


def product(size):
    """Contender: float32 products of two matrices [size, size]; the items are 10^9 operations."""
    with tf.Graph().as_default(), tf.Session() as session:
        factor = tf.get_variable('factor', [size, size])
        multiply = tf.matmul(factor, factor).op
        session.run(factor.initializer)
        return time_calls(lambda: session.run(multiply), 10, 2 * size ** 3 / 1e9)


def count_operations(height, width, fc_channels):
    """Operations of one prediction, float in 10^9: multiplications and additions of the 3x3 convolutions, fc6 and fc7.
    What is left out is less than one percent. A training step takes three times as many: two more for gradients."""
    cells, depth, products = -(-height // 32) * -(-width // 32) * 32 ** 2, 3, 0
    for _, repeats, channels in vgg.BLOCKS:
        for _ in range(repeats):
            products, depth = products + cells * 9 * depth * channels, channels
        cells //= 4
    return 2 * (products + cells * (49 * depth * fc_channels + fc_channels ** 2)) / 1e9


def write_checkpoint(path, fc_channels):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tf.Graph().as_default(), tf.Session() as session:
        predictor.build_predictor(train.fcn, train.Network(fc_channels=fc_channels))
        session.run(tf.global_variables_initializer())
        tf.train.Saver(weights.network_variables()).save(session, path, write_meta_graph=False)
    return 1, 0
