"""Checkpoints: found, tested, restored and written.

tf.train.Saver writes the files of model.ckpt-STEP in this order, each under a temporary name that is changed when it is
complete: `.data-00000-of-00001`, `.index`, then `checkpoint`, which names the newest. Only then does it remove the
oldest. So a program may be killed at any moment: what `checkpoint` names is complete. What a machine that crashes, a
disk or a copy has damaged is found by the checksum that a checkpoint has of each variable.
"""
import glob
import os
import re

import numpy as np
import tensorflow.compat.v1 as tf

from training import checkpoint_index
from utils import UserError

MAX_TO_KEEP = 3
UNREADABLE = (tf.errors.OpError, ValueError, RuntimeError, IndexError)  # what TensorFlow raises for a damaged file


# ------------------------------------------------------------------------------------------- any checkpoint


def find_checkpoint(path):
    """The checkpoint that `path` names: itself, or the newest of a run's folder OUT, OUT/train or OUT/best.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if os.path.isdir(os.path.join(path, 'train')):
        path = os.path.join(path, 'train')
    if os.path.isdir(path):
        state = read_state(path)
        checkpoint = state.model_checkpoint_path if state else None
    else:
        checkpoint = path
    if checkpoint is None or not tf.train.checkpoint_exists(checkpoint):
        raise UserError(f'{path}: no checkpoint there; give its name without .index or .data-00000-of-00001')
    read_shapes(checkpoint)
    return checkpoint


def read_state(folder):
    """What the file `checkpoint` of a folder says, a CheckpointState; None if there is none, or it is damaged."""
    try:
        return tf.train.get_checkpoint_state(folder)
    except ValueError:
        return None


def find_reason(error):
    """What a TensorFlow error says went wrong, one line of str: the rest of its message tells of the graph."""
    of_graph = r'\{\{.*?\}\} *|^Error in user-defined function .* iterator: \S+: '
    lines = [re.sub(of_graph, '', line).strip() for line in getattr(error, 'message', str(error)).splitlines()
             if not line.startswith((' ', '\t', 'Graph execution error', 'Detected at', 'Node:', 'From /job:'))]
    return next((line[:200] for line in lines if line), type(error).__name__)


def checkpoint_step(checkpoint):
    """The step in a checkpoint's name, int; None if there is none."""
    step = re.search(r'-(\d+)$', checkpoint)
    return int(step.group(1)) if step else None


def read_shapes(checkpoint):
    """Names and shapes of a checkpoint's variables, dict of str to list of int.

    Raises:
        UserError: the file is no TensorFlow checkpoint, or damaged.
    """
    try:
        checkpoint_index.check_index(checkpoint)
        return tf.train.load_checkpoint(checkpoint).get_variable_to_shape_map()
    except UNREADABLE:
        raise UserError(f'{checkpoint}: not a TensorFlow checkpoint, or damaged; take another') from None


def whole_name(variable):
    """A variable's name in a checkpoint, str. Of a part of a variable that is held in parts, it is that one's."""
    whole = variable._get_save_slice_info()  # what tf.train.Saver looks at
    return whole.full_name if whole else variable.op.name


def whole_shape(variable):
    """A variable's shape in a checkpoint, list of int; see whole_name."""
    whole = variable._get_save_slice_info()
    return list(whole.full_shape) if whole else variable.shape.as_list()


def restore(session, checkpoint, variables):
    """Sets `variables` from the checkpoint, by name.

    Raises:
        UserError: a variable is missing or has another shape, or the file is damaged; the first is named.
    """
    shapes = read_shapes(checkpoint)
    for variable in variables:
        name, wanted = whole_name(variable), whole_shape(variable)
        if name not in shapes:
            raise UserError(f'{checkpoint}: variable {name} is missing; take a checkpoint of this network')
        if shapes[name] != wanted:
            raise UserError(f'{checkpoint}: variable {name} has shape {shapes[name]}, the network needs {wanted}'
                            ' (is --fc_channels the same?)')
    try:
        tf.train.Saver(variables).restore(session, checkpoint)
    except UNREADABLE:
        raise UserError(f'{checkpoint}: damaged; take another checkpoint') from None


def save(session, saver, folder, step, write_state=True):
    """Writes FOLDER/model.ckpt-STEP with the saver's variables; write_state makes it the one that FOLDER stands for.

    Raises:
        UserError: it cannot be written, for lack of space, say; earlier checkpoints are intact.
    """
    path = os.path.join(folder, 'model.ckpt')
    try:
        saver.save(session, path, step, write_meta_graph=False, write_state=write_state)
    except (tf.errors.OpError, ValueError) as error:
        for partial in {*glob.glob(glob.escape(f'{path}-{step}.') + '*'), *find_temporary(folder)}:
            os.remove(partial)
        raise UserError(f'{path}-{step}: cannot be written ({find_reason(error)}); '
                        'free some space and start again: training resumes at the checkpoint before') from None


# ------------------------------------------------------------------------------------------- those of a run


def list_steps(train_dir):
    """The steps of the checkpoints in a folder, list of int, ascending. Only a complete one has an index."""
    names = (re.fullmatch(r'model\.ckpt-(\d+)\.index', name) for name in os.listdir(train_dir))
    return sorted(int(name.group(1)) for name in names if name)


def find_resume(train_dir):
    """The checkpoint that a run goes on from, and its step; (None, 0) for a run that has none yet.

    That is the one that the file `checkpoint` names; if it is damaged, which is said aloud, the newest before it that
    is not. To know, all of it is read, before anything is built on its step.

    Raises:
        UserError: there is something, but nothing to go on from; to start anew over it would destroy the run.
    """
    state_file = os.path.join(train_dir, 'checkpoint')
    state, steps = read_state(train_dir), list_steps(train_dir)
    newest = checkpoint_step(state.model_checkpoint_path) if state else max(steps, default=None)
    if newest is not None:
        for step in sorted({newest, *(step for step in steps if step < newest)}, reverse=True):
            checkpoint = os.path.join(train_dir, f'model.ckpt-{step}')
            damage = find_damage(checkpoint)
            if not damage:
                return checkpoint, step
            print(f'{checkpoint}: {damage}; left out for the one before', flush=True)
    if newest is not None or os.path.exists(state_file):
        raise UserError(f'{state_file}: names no checkpoint of train.py that is there and whole; bring it back, or '
                        f'remove {train_dir} to start anew')
    return None, 0


def find_damage(checkpoint):
    """What is wrong with a checkpoint, str; None if every variable can be read and is finite."""
    if not tf.train.checkpoint_exists(checkpoint):
        return 'not there'
    try:
        checkpoint_index.check_index(checkpoint)
        reader = tf.train.load_checkpoint(checkpoint)
        for name in sorted(reader.get_variable_to_shape_map()):
            value = reader.get_tensor(name)
            if value.dtype.kind == 'f' and not np.isfinite(value).all():
                return f'{name} is not finite'
    except UNREADABLE as error:
        return f'damaged ({find_reason(error)})'
    return None


def take_over(saver, train_dir, resume_from):
    """Has the saver go on with a run's checkpoints, of which those that are no use any more are the first to go.

    These are the ones after the step that the run resumes at: damaged, or not yet named when the run was killed.
    """
    resumed = checkpoint_step(resume_from)
    steps = sorted(list_steps(train_dir), key=lambda step: (step <= resumed, step))
    paths = [os.path.join(os.path.abspath(train_dir), f'model.ckpt-{step}') for step in steps]
    for path in paths[:-MAX_TO_KEEP]:
        remove(path)
    names = [os.path.basename(path) for path in paths[-MAX_TO_KEEP:]]
    tf.train.update_checkpoint_state(os.path.abspath(train_dir), names[-1], names)
    saver.recover_last_checkpoints(paths[-MAX_TO_KEEP:])


def remove(checkpoint):
    """Removes a checkpoint's files, the index first: what has none is no checkpoint."""
    for path in glob.glob(glob.escape(checkpoint) + '.index') + glob.glob(glob.escape(checkpoint) + '.data-*'):
        os.remove(path)


def find_temporary(folder):
    """Paths of what a program that was killed while it wrote a checkpoint has left behind, list of str."""
    steps = list_steps(folder)
    found = []
    for name in os.listdir(folder):
        data = re.fullmatch(r'model\.ckpt-(\d+)\.data-\d+-of-\d+', name)
        if (data and int(data.group(1)) not in steps
                or re.fullmatch(r'model\.ckpt-\d+\..*\.tempstate\d+|checkpoint\.tmp[0-9a-f]{32}', name)):
            found.append(os.path.join(folder, name))
    return found
