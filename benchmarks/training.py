"""Contenders for training with the graph of train.py."""
import argparse
import contextlib
import os
import shutil
import statistics
import time
from unittest import mock

import tensorflow.compat.v1 as tf

import train
from benchmarks.measure import Round, warm_up_then
from datasets import batches, classes

# ------------------------------------------------------------------------------------------- the training step


def make_args(record, batch_size, crop_size, fc_channels, **others):
    """Flags of train.py, argparse.Namespace: `others` and else its defaults."""
    return argparse.Namespace(**{**vars(train.parse_args([])), 'dataset_train': record, 'dataset_val': record,
                                 'batch_size': batch_size, 'crop_size': crop_size, 'fc_channels': fc_channels,
                                 **others})


@contextlib.contextmanager
def start_training(args):
    """Graph and session of train.train as they are before its first step. Yields (session, train.TrainingOps)."""
    train.quiet_tensorflow()
    with tf.Graph().as_default():
        tf.set_random_seed(args.seed)
        network = train.Network(fc_channels=args.fc_channels)
        ops = train.build_training(args, network, batches.count_examples(args.dataset_train), start_step=0)
        train.build_predictor(network)
        with tf.Session(config=train.session_config(args)) as session:
            train.initialise(session, None, None, classes.VOC)
            yield session, ops


def run_steps(session, ops, args, steps, writer=None):
    """Runs steps of train.py, with a writer each with its histograms. Returns the seconds of all."""
    started = time.perf_counter()
    for step in range(1, steps + 1):
        train.run_step(session, ops, args.dataset_train, writer, step)
    return time.perf_counter() - started


def ours(record, batch_size, crop_size, fc_channels, steps, log_dir=None):
    """Contender: train.py's step.

    With a log_dir, a round has one more step, which writes the histograms. What it takes beyond a plain step is shared
    out over the steps from one such step to the next (--summary_steps) and added; `extra` is the time of the plain
    steps alone.

    Args:
        record: str. batch_size, crop_size, fc_channels, steps: ints.
        log_dir: str, folder of the histograms; None for none.
    """
    args = make_args(record, batch_size, crop_size, fc_channels)
    with start_training(args) as (session, ops):
        writer = tf.summary.FileWriter(log_dir, session.graph) if log_dir else None
        for number in warm_up_then(steps):
            plain = seconds = run_steps(session, ops, args, number)
            if writer:
                surplus = max(0, run_steps(session, ops, args, 1, writer) - plain / number)
                seconds += surplus * number / args.summary_steps
            yield Round(number * batch_size, seconds, extra=plain)


def constant_input(**settings):
    """Contender: as `ours`, but every step gets the same batch, which is drawn before."""
    with mock.patch.object(batches, 'training_batches', one_batch(batches.training_batches)):
        yield from ours(**settings)


def one_batch(training_batches):
    """A function in training_batches' place, whose pipeline repeats its first batch."""
    def repeat_first(*args, **settings):
        with tf.Graph().as_default(), tf.Session() as session:
            first = session.run(tf.data.make_one_shot_iterator(training_batches(*args, **settings)).get_next())
        return tf.data.Dataset.from_tensors(first).repeat()
    return repeat_first


def grow(record, configurations, fc_channels, steps):
    """Contender: train.py's step, each round with the next batch and crop size; the median step counts.

    Args:
        record: str. fc_channels: int.
        configurations: list of (batch_size, crop_size).
        steps: int, after one that warms up.
    """
    for batch_size, crop_size in configurations:
        args = make_args(record, batch_size, crop_size, fc_channels)
        with start_training(args) as (session, ops):
            run_steps(session, ops, args, 1)
            seconds = [run_steps(session, ops, args, 1) for _ in range(steps)]
        yield Round(batch_size, statistics.median(seconds))


# ------------------------------------------------------------------------------------------- validation, checkpoints


def whole_run(record, val_record, batch_size, crop_size, fc_channels, steps, val_steps, save_steps, output_dir):
    """Contender: train.train itself. The time counts from the end of its first step to that of its last, between which
    lies all that validation and checkpoints take; pictures are drawn beside the steps.

    `extra`: dict of 'save' and 'validate' to the seconds of each call of train.save and train.validate.

    Args:
        record, val_record, output_dir: str; the folder is removed after each round.
        batch_size, crop_size, fc_channels: ints.
        steps: int, one more is trained: the first. val_steps, save_steps: ints, see train.py.
    """
    train.quiet_tensorflow()
    while True:
        args = make_args(record, batch_size, crop_size, fc_channels, dataset_val=val_record, output_dir=output_dir,
                         max_steps=steps + 1, val_steps=val_steps, save_steps=save_steps)
        with note_calls('run_step', 'save', 'validate') as calls:
            train.train(args)
        shutil.rmtree(output_dir)
        ends = [ended for _, ended in calls.pop('run_step')]
        yield Round(steps * batch_size, ends[-1] - ends[0],
                    extra={name: [ended - started for started, ended in times] for name, times in calls.items()})


@contextlib.contextmanager
def note_calls(*names):
    """Notes when functions of train are called. Yields dict of name to list of (start, end) in seconds."""
    calls = {name: [] for name in names}

    def noting(name, function):
        def call(*args, **settings):
            started = time.perf_counter()
            result = function(*args, **settings)
            calls[name].append((started, time.perf_counter()))
            return result
        return call

    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(train, name, noting(name, getattr(train, name))))
        yield calls


def write_checkpoint(path, fc_channels):
    """Writes a network at its random start, weights only, as train.py writes OUT/best. Yields one Round."""
    train.quiet_tensorflow()
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tf.Graph().as_default(), tf.Session() as session:
        train.build_predictor(train.Network(fc_channels=fc_channels))
        session.run(tf.global_variables_initializer())
        started = time.perf_counter()
        tf.train.Saver(train.network_variables()).save(session, path, write_meta_graph=False)
    yield Round(1, time.perf_counter() - started)
