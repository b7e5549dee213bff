"""What a trained network left on disk: its checkpoint is found, looked into, and restored.

    checkpoint = find_checkpoint('results/best')
    restore(session, checkpoint, network_variables())

Writing checkpoints, and resuming from them, is in training/checkpoints.py.
"""
import glob
import hashlib
import json
import os
import re

import tensorflow.compat.v1 as tf

import utils
from datasets import classes
from inference.devices import find_failure
from utils import UserError

UNREADABLE = (tf.errors.OpError, ValueError, RuntimeError, IndexError)  # what TensorFlow raises for a damaged file


def find_checkpoint(path):
    """The checkpoint that `path` names: itself, or the newest of a run's folder OUT, OUT/train or OUT/best.
    Raises UserError if there is none, it is damaged, or TensorFlow cannot use its path."""
    if os.path.isdir(os.path.join(path, 'train')):
        path = os.path.join(path, 'train')
    checkpoint = path
    if os.path.isdir(path):
        state = read_state(path)
        checkpoint = state.model_checkpoint_path if state else None
    check_path(checkpoint or path)
    if checkpoint is None or not tf.train.checkpoint_exists(checkpoint):
        raise UserError(f'{path}: no checkpoint there; give the folder of a run (best/ comes of --eval_steps), or a '
                        'checkpoint without .index or .data-00000-of-00001')
    read_shapes(checkpoint)
    return checkpoint


def check_path(path):
    """Raises UserError for a path that TensorFlow would take for a pattern: it would not find its own checkpoints."""
    if re.search(r'[*?[\\]', path):
        raise UserError(f'{path}: TensorFlow takes *, ?, [ and \\ in a path for a pattern; rename it, or change into '
                        'that folder and give a path that starts there')


def read_state(folder):
    """The file `checkpoint` of a folder, a CheckpointState; None if it is missing or damaged."""
    if not os.path.exists(os.path.join(folder, 'checkpoint')):
        return None  # TensorFlow raises errors inside for it, over which a signal may be lost
    try:
        return tf.train.get_checkpoint_state(folder)
    except ValueError:
        return None


def checkpoint_step(checkpoint):
    """The step in a checkpoint's name, int; None if it has none."""
    step = re.search(r'-(\d+)$', checkpoint)
    return int(step.group(1)) if step else None


def read_shapes(checkpoint):
    """The variables of a checkpoint, dict of name to shape (list of int); UserError if it is damaged or not one."""
    try:
        return tf.train.load_checkpoint(checkpoint).get_variable_to_shape_map()
    except UNREADABLE:
        raise UserError(f'{checkpoint}: not a TensorFlow checkpoint, or damaged; take another') from None


def find_run_folder(checkpoint):
    """OUT for OUT/train/model.ckpt-1 and OUT/best/model.ckpt-1; None for a checkpoint elsewhere."""
    folder = os.path.dirname(os.path.abspath(checkpoint))
    return os.path.relpath(os.path.dirname(folder)) if os.path.basename(folder) in ('train', 'best') else None


def choose_output_dir(checkpoint, output_dir, name):
    """The value of --output_dir; without it the folder `name` of the checkpoint's run; UserError if it has no run."""
    run_folder = find_run_folder(checkpoint)
    if not (output_dir or run_folder):
        raise UserError(f'{checkpoint} is not in the folder of a run; give --output_dir')
    return output_dir or os.path.join(run_folder, name)


def hash_checkpoint(checkpoint):
    """SHA-256 of a checkpoint's files, .index then .data (of its single file in the V1 format), hexadecimal str."""
    digest = hashlib.sha256()
    stem = glob.escape(checkpoint)
    for path in (glob.glob(stem + '.index') + sorted(glob.glob(stem + '.data-*'))) or [checkpoint]:
        with open(path, 'rb') as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def network_variables():
    """The network's variables in the default graph, fixed upsampling kernels included, the optimiser's excluded."""
    return tf.get_collection(tf.GraphKeys.MODEL_VARIABLES)


def full_name(variable):
    """A variable's name in a checkpoint, str. A slice of a partitioned variable has the name of the full one."""
    full = variable._get_save_slice_info()  # what tf.train.Saver looks at
    return full.full_name if full else variable.op.name


def full_shape(variable):
    """A variable's shape in a checkpoint, list of int; see full_name."""
    full = variable._get_save_slice_info()
    return list(full.full_shape) if full else variable.shape.as_list()


def check_shape(checkpoint, shapes, name, wanted):
    """Raises UserError unless `shapes`, those of a checkpoint, have a variable of the shape `wanted`, list of int."""
    if name not in shapes:
        raise UserError(f'{checkpoint}: variable {name} is missing; take a checkpoint of this network')
    if shapes[name] != wanted:
        raise UserError(f'{checkpoint}: variable {name} has shape {shapes[name]}, the network needs {wanted}'
                        ' (is --fc_channels the same?)')


def restore(session, checkpoint, variables):
    """Sets `variables` from the checkpoint, by name.
    Raises UserError if the file is damaged, or a variable is missing or has another shape (the first is named)."""
    shapes = read_shapes(checkpoint)
    for variable in variables:
        check_shape(checkpoint, shapes, full_name(variable), full_shape(variable))
    try:
        tf.train.Saver(variables).restore(session, checkpoint)
    except UNREADABLE as error:
        if find_failure(error):
            raise
        raise UserError(f'{checkpoint}: damaged; take another checkpoint') from None


def read_settings(folder):
    """The settings.json that train.py writes beside its checkpoints, dict; empty without one, UserError if damaged."""
    path = os.path.join(folder, 'settings.json')
    try:
        with utils.open_file(path, encoding='utf-8') as file:
            return dict(json.load(file))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, RecursionError):
        raise UserError(f'{path}: not the settings of a run; remove it') from None


def find_classes(checkpoint, classes_file=None):
    """The classes.ClassSet of a checkpoint of train.py; classes_file is --classes or None, see classes.of_run.
    Raises UserError if the number of classes is another, or the checkpoint is not one of train.py."""
    scores = read_shapes(checkpoint).get('vgg_16/fc8/weights')
    if scores is None:
        raise UserError(f'{checkpoint}: variable vgg_16/fc8/weights is missing; take a checkpoint of train.py')
    return classes.of_run(read_settings(os.path.dirname(checkpoint)), scores[-1], checkpoint, classes_file)


def describe(checkpoint, class_set, classes_file=None):
    """A checkpoint and its classes.ClassSet, and which file names these; two lines of str."""
    settings = os.path.join(os.path.dirname(checkpoint), 'settings.json')
    return f'weights: {checkpoint}\n{classes.describe(class_set, settings, classes_file)}'


def find_common_classes(checkpoint, record, classes_file=None):
    """The classes.ClassSet of a checkpoint and a record, paths; UserError if their classes differ.
    classes_file is --classes or None, for a checkpoint or a record that does not name its classes."""
    class_set = find_classes(checkpoint, classes_file)
    classes.check_same(classes.of_record(record, classes_file), classes.name_record(record), class_set, checkpoint)
    return class_set


def add_flags(parser):
    parser.add_argument('--checkpoint_path', default='results/train', help='checkpoint, or the folder of a run')
    parser.add_argument('--classes', metavar='FILE', help="file of the classes' names, one a line, for a checkpoint "
                                                          'outside its run, whose settings name the classes')
