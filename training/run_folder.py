"""The files of a run's folder OUT: one run at a time writes them, and a file is complete or not there.

    OUT/train/      checkpoints, settings.json, log.csv, eval.csv, TensorBoard events
    OUT/eval/       validation pictures
    OUT/best/       the weights with the best validation score

Tables grow by complete rows, or not at all.
"""
import contextlib
import csv
import io
import json
import logging
import os
import re
import threading

import filelock
import psutil
import tensorflow.compat.v1 as tf

import utils
from datasets import classes
from inference.weights import UNREADABLE, check_path, read_settings
from training import checkpoints
from utils import UserError, find_reason

# Settings that a resume must keep: the network, what learns, what the optimizer's averages and log.csv's losses mean.
FIXED = ('model', 'freeze', 'fc_channels', 'upsampling', 'skip_scales', 'optimizer', 'loss')


def make(output_dir):
    """Creates OUT/train and OUT/eval; returns OUT/train. UserError if TensorFlow cannot use the path."""
    check_path(output_dir)
    for name in ('eval', 'train'):
        os.makedirs(os.path.join(output_dir, name), exist_ok=True)
    return os.path.join(output_dir, 'train')


@contextlib.contextmanager
def lock(train_dir):
    """Keeps a second run out of the folder: UserError. The lock ends with the program, however that ends."""
    try:
        with filelock.FileLock(os.path.join(train_dir, 'lock'), timeout=0):
            yield
    except filelock.Timeout:
        raise UserError(f'{train_dir}: another run trains there; wait until it ends, or name another --output_dir'
                        ) from None


def remove_leftovers(output_dir):
    """Removes temporary files of programs that were killed while they wrote."""
    for folder in (os.path.join(output_dir, name) for name in ('', 'train', 'eval', 'best')):
        if os.path.isdir(folder):
            partial = [os.path.join(folder, name) for name in os.listdir(folder)
                       if (made_by := re.match(r'partial-(\d{1,9})-', name))
                       and not psutil.pid_exists(int(made_by.group(1)))]
            for path in partial + checkpoints.find_temporary(folder):
                os.remove(path)


def save_settings(train_dir, settings, class_set, start_from, resumed):
    """Writes a run's settings, dict of name to JSON value, its classes.ClassSet, and where VGG16 came from. That is the
    checkpoint `start_from`, or None; a `resumed` run keeps what OUT/train/settings.json has of its start."""
    origin = start_from or 'random start'
    if resumed:
        origin = read_settings(train_dir).get('vgg_weights_from', 'unknown')
    utils.save_json(os.path.join(train_dir, 'settings.json'),
                    {**settings, 'classes': classes.as_json(class_set), 'vgg_weights_from': origin})


def check_settings(train_dir, settings, class_set, record):
    """Prints which settings are others than those of the run to resume; for the arguments see save_settings. Raises
    UserError if its network, optimizer or loss is another, or if its classes are not those of `record`, a path."""
    before, now = read_settings(train_dir), json.loads(json.dumps(settings))
    changed = [name for name in now if name in before and before[name] != now[name]
               and name not in ('output_dir', 'classes', 'dry_run')]
    for name in changed:
        if name in FIXED:
            raise UserError(f'{train_dir}: its run has {name} {before[name]}, now it is {now[name]}; give the same '
                            'flags, or start anew in another --output_dir, from this run by --checkpoint_path')
    for name in changed:
        note = (' (not used: the run resumes)' if name == 'checkpoint_path' else
                ' (moves the learning rate)' if name == 'max_steps' and now['schedule'] == 'poly' else '')
        print(f'changed {name}: {before[name]} -> {now[name]}{note}')
    if before.get('classes'):
        known = classes.of_run(before, len(before['classes']), os.path.join(train_dir, 'checkpoint'))
        classes.check_same(class_set, record, known, f'the run in {train_dir}')


def append_row(path, columns, values):
    """Adds one row to a table, which gets its header if it is new; with an OSError, leaves it unchanged."""
    row = io.StringIO()
    size = os.path.getsize(path) if os.path.exists(path) else 0
    csv.writer(row).writerows([values] if size else [columns, values])
    try:
        with utils.naming_file(path), open(path, 'ab') as file:
            file.write(row.getvalue().encode())
    except OSError:
        if os.path.exists(path):
            os.truncate(path, size)
        raise


def keep_rows_up_to(path, columns, step):
    """Cuts a table, if there is one, back to the step from which a run resumes; returns its rows, see read_rows."""
    rows = read_rows(path, columns, step)
    if os.path.exists(path):
        with utils.whole_file(path) as partial, open(partial, 'w', newline='') as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(rows)
    return rows


def read_rows(path, columns, step):
    """The complete rows of a table up to a step, list of dict of column to str; empty if there is no table."""
    return [row for row in utils.read_rows(path)
            if set(row) == set(columns) and row['step'].isdecimal() and int(row['step']) <= step]


@contextlib.contextmanager
def open_events(train_dir, graph, start_step):
    """A tf.summary.FileWriter of a run, closed at the end; UserError if it cannot be written.
    A run that resumes after `start_step` > 0 has TensorBoard drop what earlier files have from later steps."""
    with quiet_event_thread():
        writer = tf.summary.FileWriter(train_dir, graph)
        with naming_events(writer):
            if start_step:
                writer.add_session_log(tf.SessionLog(status=tf.SessionLog.START), start_step + 1)
            writer.flush()
        try:
            yield writer
        finally:
            writer.close()  # all is flushed already: this raises nothing over an error of the run


@contextlib.contextmanager
def quiet_event_thread():
    """Keeps the errors of FileWriter's thread off the terminal, because flush() raises them again."""
    hook, log = threading.excepthook, logging.getLogger('tensorflow')

    def is_other(record):
        return 'EventFileWriter' not in record.getMessage()

    log.addFilter(is_other)
    threading.excepthook = lambda failed: None if failed.thread.name == 'EventLoggerThread' else hook(failed)
    try:
        yield
    finally:
        threading.excepthook = hook
        log.removeFilter(is_other)


@contextlib.contextmanager
def naming_events(writer):
    """Turns the errors of a tf.summary.FileWriter into a UserError."""
    try:
        yield
    except UNREADABLE as error:
        raise UserError(f'{writer.get_logdir()}: TensorBoard events cannot be written ({find_reason(error)}); free '
                        'some space and start again: training resumes at the last checkpoint') from None


def add_events(writer, summary, step):
    """Writes a tf.Summary, or a serialised one, of a step; UserError if it cannot be written."""
    with naming_events(writer):
        writer.add_summary(summary, step)
        writer.flush()


def add_scalars(writer, values, step):
    """Writes numbers, dict of TensorBoard's tag to float, of a step."""
    add_events(writer, tf.Summary(value=[tf.Summary.Value(tag=tag, simple_value=value)
                                         for tag, value in values.items()]), step)
