"""This suite's contenders: train.py itself, its input alone, and prediction.

train.py is run by its main(). It is timed, and stopped while others have their turn, where it prints a step's line.
"""
import contextlib
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import tensorflow.compat.v1 as tf

import train
import utils
import vgg
from benchmarks import earlier_training
from benchmarks.inputs import as_arguments
from datasets import batches, records
from inference import devices, predictor, weights

# Flags of a training that ends when its process does.
ENDLESS = {'checkpoint_path': 'none', 'max_steps': 1_000_000, 'save_steps': 1_000_000, 'val_steps': 0,
           'summary_steps': 0}

# ------------------------------------------------------------------------------------------- training


class StepLines(io.TextIOBase):
    """Standard output of train.py; calls a function with the step's number where a line is 'step    12/600 ...'."""

    def __init__(self, end_step):
        self.end_step = end_step

    def write(self, text):
        sys.stderr.write(text)
        if text.startswith('step '):
            self.end_step(int(text.split()[1].partition('/')[0]))


def run_train(flags, end_step):
    """Runs train.py with flags, dict, and calls end_step(step) after each step."""
    with contextlib.redirect_stdout(StepLines(end_step)):
        train.main(as_arguments({**flags, 'log_steps': 1}))


def training(turns, steps, flags):
    """Contender: train.py with `flags`, `steps` steps a round. `extra` has 'plain', the seconds without histograms."""
    seconds, begun = {}, None

    def end_step(step):
        nonlocal begun
        now = time.perf_counter()
        seconds[step], begun = now - begun, now
        if len(seconds) == steps or step == 2:  # the first two are the warm-up
            plain, logged = share_histograms(seconds, flags.get('summary_steps', 0))
            turns.report(len(seconds) * flags['batch_size'], logged, plain=plain)
            seconds.clear()
            turns.wait()
            begun = time.perf_counter()

    turns.wait()
    begun = time.perf_counter()
    run_train({**ENDLESS, **flags}, end_step)


def share_histograms(seconds, summary_steps, default_steps=100):
    """What a round's steps take without histograms, and with as many as come by default (--summary_steps).

    Args:
        seconds: dict of step to float. summary_steps: int, whose multiples had histograms; 0: none had.

    Returns:
        two floats, seconds.
    """
    logged = [value for step, value in seconds.items() if summary_steps and step % summary_steps == 0]
    plain = (sum(seconds.values()) - sum(logged)) / (len(seconds) - len(logged))
    surplus = max(0, statistics.mean(logged) - plain) if logged else 0
    return len(seconds) * plain, len(seconds) * (plain + surplus / default_steps)


def constant_batch(turns, steps, flags):
    """Contender: as `training`, but every step gets the same batch, which is drawn before."""
    with mock.patch.object(train, 'training_batches', repeat_first(batches.training_batches)):
        training(turns, steps, flags)


def repeat_first(training_batches):
    """A function like batches.training_batches, whose pipeline repeats its first batch."""
    def repeat(*args, **settings):
        with tf.Graph().as_default(), tf.Session() as session:
            first = session.run(tf.data.make_one_shot_iterator(training_batches(*args, **settings)).get_next())
        return tf.data.Dataset.from_tensors(first).repeat()
    return repeat


def find_ports(number):
    """TCP ports that are free, list of int."""
    sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def chief_with_worker(turns, steps, flags, worker_cores):
    """Contender: as `training`, as the chief of a cluster, with a worker on other cores."""
    cluster = {job: [f'127.0.0.1:{port}'] for job, port in zip(('chief', 'worker'), find_ports(2))}
    chief, worker = (json.dumps({'cluster': cluster, 'task': {'type': job, 'index': 0}}) for job in cluster)
    process = subprocess.Popen([sys.executable, 'train.py', *as_arguments({**ENDLESS, **flags})],
                               env={**os.environ, 'TF_CONFIG': worker})
    os.sched_setaffinity(process.pid, worker_cores)
    os.environ['TF_CONFIG'] = chief
    training(turns, steps, flags)


# ------------------------------------------------------------------------------------------- input, prediction


def reading(turns, record, batch_size, crop_size, num_batches):
    """Contender: the batches of train.py."""
    sampling = batches.Sampling(record, records.count_examples(record), batch_size, crop_size, vgg.RGB_MEAN, seed=0)
    draw(turns, batch_size, num_batches, lambda: batches.training_batches(sampling))


def complete_then_crop(turns, record, batch_size, crop_size, num_batches):
    """Contender: decodes the complete image before it crops; see earlier_training.training_batches."""
    draw(turns, batch_size, num_batches, lambda: earlier_training.training_batches(record, batch_size, crop_size))


def draw(turns, batch_size, num_batches, build):
    """Draws batches as fast as they come from the tf.data.Dataset that build() returns.

    Each round starts it anew, because it would fill its buffers during the others' turns, and draws a quarter untimed.
    """
    with tf.Graph().as_default(), tf.Session(config=devices.session_config()) as session:
        iterator = tf.data.make_initializable_iterator(build())
        next_batch = tf.group(*iterator.get_next())
        while True:
            turns.wait()
            session.run(iterator.initializer)
            for _ in range(num_batches // 4 + 1):
                session.run(next_batch)
            started = time.perf_counter()
            for _ in range(num_batches):
                session.run(next_batch)
            seconds = time.perf_counter() - started
            session.run(iterator.initializer)  # stops what reads ahead
            turns.report(num_batches * batch_size, seconds)


def prediction(turns, checkpoint, height, width, images):
    """Contender: uint8 image [height, width, 3] in, float32 softmax out, both NumPy, as predict.py does it."""
    utils.quiet_tensorflow()
    image = np.random.RandomState(0).randint(0, 256, (height, width, 3), np.uint8)
    with tf.Graph().as_default(), tf.Session(config=devices.session_config()) as session:
        loaded = predictor.load_predictor(session, checkpoint, train.fcn, train.read_network(checkpoint))
        while True:
            with turns.round(images):
                for _ in range(images):
                    predictor.predict_image(session, loaded, image)


def write_checkpoint(turns, path, fc_channels):
    """Writes a network at its random start, weights only. One round."""
    utils.quiet_tensorflow()
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with turns.round(items=1), tf.Graph().as_default(), tf.Session() as session:
        predictor.build_predictor(train.fcn, train.Network(fc_channels=fc_channels))
        session.run(tf.global_variables_initializer())
        tf.train.Saver(weights.network_variables()).save(session, path, write_meta_graph=False)
