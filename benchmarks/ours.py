"""This suite's contenders, as its user meets them: train.py itself, its input alone, and prediction.

train.py is run by its main(). It is timed, and held up while others have their turn, in the lines that it prints.
"""
import contextlib
import io
import itertools
import os
import shutil
import statistics
import sys
import time
from unittest import mock

import numpy as np
import tensorflow.compat.v1 as tf

import train
import utils
import vgg
from benchmarks import earlier_training
from datasets import batches
from inference import predictor, weights

# ------------------------------------------------------------------------------------------- training


class StepLines(io.TextIOBase):
    """Takes the place of standard output while train.py runs with --log_steps 1.

    Args:
        on_step: function of int, called whenever a step's line is printed: 'step    12/600 ...'.
    """

    def __init__(self, on_step):
        self.on_step = on_step

    def write(self, text):
        sys.stderr.write(text)
        if text.startswith('step '):
            self.on_step(int(text.split()[1].partition('/')[0]))


def run_train(flags, on_step):
    """Runs train.py with `flags`, dict of name to value; it logs each step, and `on_step` is called with its number."""
    argv = [str(part) for name, value in {**flags, 'log_steps': 1}.items() for part in (f'--{name}', value)]
    with contextlib.redirect_stdout(StepLines(on_step)):
        train.main(argv)


def training(turns, steps, flags):
    """Contender: train.py, `steps` steps a round; the first round, which starts it, has at most 2.

    A round's seconds are those of as many steps with histograms as come by default (--summary_steps); `extra` has those
    without them, 'plain'.

    Args:
        turns: contend.Turns. steps: int. flags: dict, of train.py.
    """
    seconds, sizes = {}, itertools.chain([min(2, steps)], itertools.repeat(steps))
    size, resumed = next(sizes), time.perf_counter()
    turns.wait()

    def on_step(step):
        nonlocal size, resumed
        now = time.perf_counter()
        seconds[step], resumed = now - resumed, now
        if len(seconds) == size:
            plain, logged = share_histograms(seconds, flags.get('summary_steps', 0))
            turns.report(size * flags['batch_size'], logged, plain=plain)
            seconds.clear()
            size = next(sizes)
            turns.wait()
            resumed = time.perf_counter()

    run_train({'max_steps': 1_000_000, 'save_steps': 1_000_000, 'val_steps': 0, 'summary_steps': 0, **flags}, on_step)


def share_histograms(seconds, summary_steps):
    """Seconds of a round's steps if they had no histograms, and with the share of them that they have by default.

    Args:
        seconds: dict of step to float. summary_steps: int, which steps had histograms: its multiples; 0: none.
    """
    logged = [value for step, value in seconds.items() if summary_steps and step % summary_steps == 0]
    plain = statistics.mean([value for value in seconds.values() if value not in logged] or logged)
    surplus = max(0, statistics.mean(logged) - plain) if logged else 0
    return len(seconds) * plain, len(seconds) * (plain + surplus / train.parse_args([]).summary_steps)


def constant_batch(turns, steps, flags):
    """Contender: as `training`, but every step gets the same batch, which is drawn before."""
    with mock.patch.object(batches, 'training_batches', repeat_first(batches.training_batches)):
        training(turns, steps, flags)


def repeat_first(training_batches):
    """A function to replace batches.training_batches, whose pipeline repeats its first batch."""
    def repeat(*args, **settings):
        with tf.Graph().as_default(), tf.Session() as session:
            first = session.run(tf.data.make_one_shot_iterator(training_batches(*args, **settings)).get_next())
        return tf.data.Dataset.from_tensors(first).repeat()
    return repeat


def complete_run(turns, steps, flags):
    """Contender: train.py with its validation and checkpoints, from the end of its first step to that of its last.

    `extra` has 'gaps': the seconds between the lines of two steps, list of float. What a step does after its line
    (validation, checkpoint) is in the gap to the next one.

    Args:
        turns: contend.Turns. steps: int, one more is trained: the first.
        flags: dict, of train.py; its output_dir is removed after each round.
    """
    while True:
        turns.wait()
        ends = []
        run_train({**flags, 'max_steps': steps + 1}, lambda step: ends.append(time.perf_counter()))
        shutil.rmtree(flags['output_dir'])
        gaps = [end - begin for begin, end in itertools.pairwise(ends)]
        turns.report(steps * flags['batch_size'], sum(gaps), gaps=gaps)


# ------------------------------------------------------------------------------------------- the input alone


def reading(turns, record, batch_size, crop_size, num_batches, threads=None):
    """Contender: the batches of train.py.

    Args:
        turns: contend.Turns. record: str. batch_size, crop_size: ints.
        num_batches: int, drawn in one round.
        threads: int, size of a thread pool of the pipeline's own; None for TensorFlow's.
    """
    pipeline = batches.training_batches(record, batches.count_examples(record), batch_size, crop_size,
                                        pad_rgb=vgg.RGB_MEAN, seed=0)
    if threads:
        options = tf.data.Options()
        options.threading.private_threadpool_size = threads
        options.threading.max_intra_op_parallelism = 1
        pipeline = pipeline.with_options(options)
    draw(turns, pipeline, batch_size, num_batches)


def whole_then_crop(turns, record, batch_size, crop_size, num_batches):
    """Contender: decodes the complete image before it crops; see earlier_training.training_batches."""
    draw(turns, earlier_training.training_batches(record, batch_size, crop_size), batch_size, num_batches)


def draw(turns, pipeline, batch_size, num_batches):
    """Draws batches as fast as they come. Each round starts the pipeline anew, and first draws a quarter untimed.

    A pipeline that keeps running during the others' turns would fill its buffers.
    """
    iterator = tf.data.make_initializable_iterator(pipeline)
    next_batch = tf.group(*iterator.get_next())
    with tf.Session(config=predictor.session_config()) as session:
        while True:
            turns.wait()
            session.run(iterator.initializer)
            for _ in range(num_batches // 4 + 1):
                session.run(next_batch)
            started = time.perf_counter()
            for _ in range(num_batches):
                session.run(next_batch)
            seconds = time.perf_counter() - started
            session.run(iterator.initializer)  # now: TensorFlow takes long to release one that has run for long
            turns.report(num_batches * batch_size, seconds)


# ------------------------------------------------------------------------------------------- prediction


def prediction(turns, checkpoint, height, width, images):
    """Contender: uint8 image in, float32 softmax out, both NumPy, as predict.py does it.

    Args:
        turns: contend.Turns. checkpoint: str. height, width: ints, of the image. images: int, predicted a round.
    """
    utils.quiet_tensorflow()
    image = np.random.RandomState(0).randint(0, 256, (height, width, 3), np.uint8)
    with tf.Session(config=predictor.session_config()) as session:
        network = predictor.load_predictor(session, checkpoint, train.fcn, train.read_network(checkpoint))
        while True:
            with turns.round(images):
                for _ in range(images):
                    predictor.predict_image(session, network, image)


def write_checkpoint(turns, path, fc_channels):
    """Writes a network at its random start, weights only. One round."""
    utils.quiet_tensorflow()
    os.makedirs(os.path.dirname(path), exist_ok=True)
    predictor.build_predictor(train.fcn, train.Network(fc_channels=fc_channels))
    with tf.Session() as session, turns.round(items=1):
        session.run(tf.global_variables_initializer())
        tf.train.Saver(weights.network_variables()).save(session, path, write_meta_graph=False)
