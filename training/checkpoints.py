"""A run's checkpoints: what training starts from, what it resumes from, and how a checkpoint is written.

The files of model.ckpt-STEP are written in this order, each under a temporary name until it is complete:
`.data-00000-of-00001`, `.index`, then `checkpoint`, which names the newest. Only then is the oldest removed. So a
program may be killed at any moment: what `checkpoint` names is complete. Damage by a crash of the machine, a disk or a
copy shows in the checksum that a checkpoint has of each variable.
"""
import collections
import glob
import math
import os
import re

import numpy as np
import tensorflow.compat.v1 as tf

from inference import weights
from utils import UserError, find_reason

MAX_TO_KEEP = 3
LOSS_SCALE = ('current_loss_scale', 'good_steps')  # of --mixed_precision; a resumed run may not have had it
FCN_ONLY = 'vgg_16/fc8/t_conv_x8'  # a variable that VGG16 does not have

DEFAULT_START = 'vgg_16.ckpt'  # what tools/download.py fetches
# The figures are those of docs/recipes.md, "What lifts a score".
TRUNK_NOTE = ("; it holds the convolutions only: fc6 and fc7 start at random. That gave others a mean IoU of 30 "
              "(FCN-32s, VOC) where ImageNet's gave 57; tools/download.py fetches the complete file")


def find_start(path, output_dir):
    """The checkpoint that a new run starts from, str; None for a random start (--checkpoint_path none), and if
    output_dir holds a run, which resumes. Without the flag, vgg_16.ckpt of the working folder is taken, which is
    printed. Raises UserError if the checkpoint is missing or damaged."""
    if path == 'none' or os.path.exists(os.path.join(output_dir, 'train', 'checkpoint')):
        return None
    if path:
        return weights.find_checkpoint(path)
    if not any(map(os.path.isfile, (DEFAULT_START, f'{DEFAULT_START}.index'))):
        return None
    weights.read_shapes(DEFAULT_START)
    print(f'{DEFAULT_START} in this folder is used; --checkpoint_path none starts at random')
    return DEFAULT_START


def set_starting_weights(session, resume_from, start_from, class_set, freeze=None):
    """Sets all variables: from `resume_from`, else from `start_from` as far as that goes, else at random.
    These are checkpoints or None: one of this run; one of VGG16 or of another run. If the other run has the same
    classes, those of a classes.ClassSet, the complete network is taken, else VGG16. Raises UserError if a checkpoint is
    damaged or does not fit, or at random if --freeze is given, because that would keep random filters."""
    session.run(tf.global_variables_initializer())
    if resume_from:
        known = weights.read_shapes(resume_from)
        weights.restore(session, resume_from, [variable for variable in tf.global_variables()
                                               if variable.op.name in known or variable.op.name not in LOSS_SCALE])
        print(f'resumed from {resume_from}')
    elif start_from and has_classes(start_from, class_set):
        restore_fcn(session, start_from)
    elif start_from:
        restore_vgg(session, start_from)
    elif freeze:
        raise UserError(f'--freeze {freeze}: there are no weights to keep; give --checkpoint_path')
    else:
        print('no weights to start from: all of VGG16 starts at random (He); expect to need far more steps')


def has_classes(checkpoint, class_set):
    """Whether a checkpoint is one of train.py for the classes of a ClassSet; by name, if its run names them."""
    shapes = weights.read_shapes(checkpoint)
    if FCN_ONLY not in shapes or shapes['vgg_16/fc8/weights'][-1] != len(class_set.names):
        return False
    return (not weights.read_settings(os.path.dirname(checkpoint)).get('classes')
            or weights.find_classes(checkpoint).names == class_set.names)


def restore_vgg(session, checkpoint):
    """Sets VGG16 up to fc7 from a slim checkpoint; fc8 and the FCN's own layers keep their start.
    Where fc6 and fc7 are wider there, every k-th filter is taken. A file that holds the convolutions only (such as
    Keras's "notop") leaves fc6 and fc7 at random. This is printed. UserError if the widths do not fit."""
    variables = [v for v in weights.network_variables() if not v.op.name.startswith('vgg_16/fc8/')]
    dense = [v for v in variables if v.op.name.startswith(('vgg_16/fc6/', 'vgg_16/fc7/'))]
    convolutions = [v for v in variables if v not in dense]
    shapes = weights.read_shapes(checkpoint)
    width = weights.full_shape(dense[0])[-1]
    held = shapes.get('vgg_16/fc6/weights', [width])[-1]
    if held % width:
        raise UserError(f'{checkpoint}: its fc6 has {held} channels; give --fc_channels {held} or a divisor of it, not '
                        f'{width}')
    is_trunk = not any(weights.full_name(v) in shapes for v in dense)
    weights.restore(session, checkpoint, variables if held == width and not is_trunk else convolutions)
    if held != width:
        restore_thinned(session, checkpoint, dense, held // width)
    print(f'VGG16 restored from {checkpoint}: {len(convolutions if is_trunk else variables)} variables'
          + (f'; of fc6 and fc7 one filter in {held // width}' if held != width else '') + TRUNK_NOTE * is_trunk
          + ('; its run has other classes: their scores start anew' if FCN_ONLY in shapes else ''))


def restore_thinned(session, checkpoint, variables, step):
    """Sets the variables of fc6 and fc7 from layers `step` times as wide: to every step-th filter, from the first on,
    and in fc7 to those inputs of it that are kept of fc6. Source: Liu et al., "SSD", arXiv 1512.02325, section 3, which
    follows DeepLab, arXiv 1412.7062, whose fc6 and fc7 have 1,024 channels."""
    shapes, reader = weights.read_shapes(checkpoint), tf.train.load_checkpoint(checkpoint)
    for variable in variables:
        name, shape = weights.full_name(variable), weights.full_shape(variable)
        steps = [1] * (len(shape) - 1) + [step]
        if name == 'vgg_16/fc7/weights':
            steps[2] = step
        weights.check_shape(checkpoint, shapes, name, [size * each for size, each in zip(shape, steps)])
        try:
            values = reader.get_tensor(name)[tuple(slice(None, None, each) for each in steps)]
        except weights.UNREADABLE:
            raise UserError(f'{checkpoint}: damaged; take another checkpoint') from None
        part = variable._get_save_slice_info()  # one of several machines may hold a part of fc6's channels
        if part:
            values = values[..., part.var_offset[-1]:part.var_offset[-1] + part.var_shape[-1]]
        variable.load(values, session)


def restore_fcn(session, checkpoint):
    """Sets the network from a run with the same classes and any model of the family.
    A skip that the run's model lacks keeps its start: zero. The others get the skip_scales of this run: their kernels
    are scaled the other way, so that they score as before."""
    known, variables = weights.read_shapes(checkpoint), {v.op.name: v for v in weights.network_variables()}
    new = [name for name in variables if name not in known and '_pool' in name]
    scales = {name: session.run(v) for name, v in variables.items() if '/scale_pool' in name and name not in new}
    weights.restore(session, checkpoint, [v for name, v in variables.items() if name not in new])
    for name, scale in scales.items():
        kernel = variables[name.replace('scale_', 'conv_') + '/weights']
        kernel.load(session.run(kernel * (variables[name] / scale)), session)
        variables[name].load(scale, session)
    skips, left_out = ([pool for pool in ('pool4', 'pool3') if f'vgg_16/fc8/conv_{pool}/weights' in names]
                       for names in (new, known.keys() - variables.keys()))
    print(f'network restored from {checkpoint}' + (f'; scores of {" and ".join(skips)} start at zero' if skips else '')
          + (f'; its scores of {" and ".join(left_out)} are left out: --model has none' if left_out else ''))


def find_resume(train_dir):
    """The checkpoint that a run resumes from, and its step; (None, 0) for a run that has none yet.
    It is the one that the file `checkpoint` names; if that is damaged, which is printed, the newest intact one before
    it. If none is intact, that is a UserError, because starting anew would destroy the run."""
    state_file = os.path.join(train_dir, 'checkpoint')
    state, steps = weights.read_state(train_dir), list_steps(train_dir)
    newest = weights.checkpoint_step(state.model_checkpoint_path) if state else max(steps, default=None)
    if newest is not None:
        for step in sorted({newest, *(step for step in steps if step < newest)}, reverse=True):
            checkpoint = os.path.join(train_dir, f'model.ckpt-{step}')
            damage = find_damage(checkpoint)
            if not damage:
                return checkpoint, step
            print(f'{checkpoint}: {damage}; trying the one before it', flush=True)
    if newest is not None or os.path.exists(state_file):
        raise UserError(f'{state_file}: names no complete checkpoint of train.py; bring it back, or remove {train_dir} '
                        'to start anew')
    return None, 0


def list_steps(train_dir):
    """The steps of the checkpoints in a folder, list of int, ascending. Only a complete one has an index."""
    names = (re.fullmatch(r'model\.ckpt-(\d+)\.index', name) for name in os.listdir(train_dir))
    return sorted(int(name.group(1)) for name in names if name)


def find_damage(checkpoint):
    """What is wrong with a checkpoint, str; None if every variable can be read and is finite."""
    if not tf.train.checkpoint_exists(checkpoint):
        return 'not there'
    try:
        reader = tf.train.load_checkpoint(checkpoint)
        for name in sorted(reader.get_variable_to_shape_map()):
            value = reader.get_tensor(name)
            if value.dtype.kind == 'f' and not np.isfinite(value).all():
                return f'{name} is not finite'
    except weights.UNREADABLE as error:
        return f'damaged ({find_reason(error)})'
    return None


class RunSaver:
    """Writes a run's checkpoints, and keeps what is not finite out of them. `resume_from` is the checkpoint in
    train_dir from which the run resumes, or None; `check_finite` is an op that fails if a variable is not finite."""

    def __init__(self, session, train_dir, resume_from, check_finite):
        self.session, self.train_dir, self._check_finite = session, train_dir, check_finite
        self.saver = tf.train.Saver(max_to_keep=None)
        # The step at which the run started, its last step, and the last one in a checkpoint.
        self.start = self.done = self.saved = weights.checkpoint_step(resume_from) if resume_from else 0
        if resume_from:
            keep_newest(train_dir, self.start)
        self.recent = collections.deque(maxlen=2)  # (step, filenames) of the newest batches

    def add_step(self, step, filenames, loss):
        """Counts a step that was done on a batch of `filenames`, list of bytes; UserError if the loss is not finite."""
        self.recent.append((step, filenames))
        if not math.isfinite(loss):
            raise UserError(f'the loss is not finite at step {step}: {self.explain()}')
        self.done = step

    def save(self):
        """Writes a checkpoint of the last step, if there is none yet; UserError if that fails."""
        if self.done > self.saved:
            self.check_finite()
            save(self.session, self.saver, self.train_dir, self.done)
            self.saved = self.done

    def check_finite(self):
        """Raises UserError if a variable is not finite: the loss shows only the weights before the last update."""
        try:
            self.session.run(self._check_finite)
        except tf.errors.InvalidArgumentError as error:
            raise UserError(f'the weights are not finite at step {self.done}, by an update after step {self.saved} '
                            f'({find_reason(error)}): {self.explain()}') from None

    def explain(self):
        """The newest batches, one of which made the weights or the loss not finite, and the cure; one line."""
        batches = '; '.join(f'step {step} {" ".join(b", ".join(names).decode(errors="replace").split())}'
                            for step, names in self.recent)
        return (f'examples of {batches}. No checkpoint was written. Start again with a lower --learning_rate: training '
                'resumes at the last checkpoint; if this comes back at once, its weights are too large already: take '
                'a new --output_dir')


def keep_newest(train_dir, step):
    """Has the file `checkpoint` name the newest MAX_TO_KEEP checkpoints of a run, and removes the others. Those after
    `step`, the newest good one, go first: they are damaged, or were not yet named when the run was killed."""
    steps = sorted(list_steps(train_dir), key=lambda each: (each <= step, each))
    names = [f'model.ckpt-{each}' for each in steps]
    tf.train.update_checkpoint_state(os.path.abspath(train_dir), names[-1], names[-MAX_TO_KEEP:])
    for name in names[:-MAX_TO_KEEP]:
        files = glob.glob(glob.escape(os.path.join(train_dir, name)) + '.*')
        for path in sorted(files, reverse=True):  # the index first: without it, it is no checkpoint
            os.remove(path)


def save(session, saver, folder, step, write_state=True):
    """Writes FOLDER/model.ckpt-STEP with the variables of a tf.train.Saver; with write_state, calls keep_newest.
    Raises UserError if it cannot be written, because the disk is full, say; earlier checkpoints are intact."""
    path = os.path.join(folder, 'model.ckpt')
    try:
        saver.save(session, path, step, write_meta_graph=False, write_state=False)
        if write_state:
            keep_newest(folder, step)
    except (tf.errors.OpError, ValueError) as error:
        for partial in {*glob.glob(glob.escape(f'{path}-{step}.') + '*'), *find_temporary(folder)}:
            os.remove(partial)
        raise UserError(f'{path}-{step}: cannot be written ({find_reason(error)}); '
                        'free some space and start again: training resumes at the checkpoint before') from None


def find_temporary(folder):
    """Paths of what a program that was killed while it wrote a checkpoint left behind, list of str."""
    complete = tuple(f'model.ckpt-{step}.' for step in list_steps(folder))
    return [os.path.join(folder, name) for name in os.listdir(folder) if name.startswith('checkpoint.tmp')
            or re.match(r'model\.ckpt-\d+\.', name) and not name.startswith(complete)]
