"""Training on several devices: a copy of the network on each, and how their gradients become one update.

    python train.py --num_gpus 2

A batch is split over towers: copies of the network that share its variables, one on each device. The loss that is
minimised is that of the whole batch, so towers change nothing but the speed, and what dropout drops.
"""
import collections

import tensorflow.compat.v1 as tf

from utils import UserError

Machine = collections.namedtuple('Machine', 'reader towers part')
Machine.__doc__ = """What one machine does of each step.

reader: str, the device that reads and decodes its part of the batch.
towers: list of str, the devices that compute.
part: (begin, end), ints, its examples of the batch; None for all.
"""
Placement = collections.namedtuple('Placement', 'target home machines parameters')
Placement.__doc__ = """Where a training computes.

target: str, of tf.Session; '' for this process.
home: str, device of all that has no other place.
machines: list of Machine.
parameters: list of str, devices of the variables.
"""
HERE = Placement('', '', [Machine('', [''], None)], [''])  # on one device of TensorFlow's choice

# ------------------------------------------------------------------------------------------- one machine


def count_devices(num_gpus):
    """How many devices this process computes on, int.

    Args:
        num_gpus: int or None, --num_gpus; None for all GPUs that are visible. Without a GPU, parts of the CPU.

    Raises:
        UserError: there are not so many GPUs.
    """
    visible = len(tf.config.list_physical_devices('GPU'))
    if visible and num_gpus and num_gpus > visible:
        raise UserError(f'--num_gpus {num_gpus}: only {visible} can be seen; CUDA_VISIBLE_DEVICES says which may be')
    return num_gpus or max(visible, 1)


def has_gpu():
    """Whether TensorFlow sees a GPU."""
    return bool(tf.config.list_physical_devices('GPU'))


def place_here(num_gpus, batch_size):
    """The Placement on this process's own devices.

    The variables are on the first of them: there the optimiser is fast, and other GPUs reach it faster than the CPU's
    memory.

    Args:
        num_gpus: see count_devices. batch_size: int, of all devices.

    Raises:
        UserError: there are not so many GPUs, or the batch does not divide.
    """
    number = count_devices(num_gpus)
    if number == 1:
        return HERE
    kind = 'GPU' if tf.config.list_physical_devices('GPU') else 'CPU'
    towers = [f'/device:{kind}:{i}' for i in range(number)]
    return Placement('', '', share_out(batch_size, {'/device:CPU:0': towers}), towers[:1])


def share_out(batch_size, towers_of_readers):
    """Has each tower do the same number of examples.

    Args:
        batch_size: int. towers_of_readers: dict of str to list of str, see Machine.

    Returns:
        list of Machine.

    Raises:
        UserError: the batch does not divide so.
    """
    number = sum(map(len, towers_of_readers.values()))
    if batch_size % number:
        raise UserError(f'--batch_size {batch_size} is the total of {number} devices, and does not divide by {number}; '
                        'take a multiple, or fewer devices by --num_gpus')
    machines, begin = [], 0
    for reader, towers in towers_of_readers.items():
        end = begin + len(towers) * batch_size // number
        machines.append(Machine(reader, towers, (begin, end)))
        begin = end
    return machines


# ------------------------------------------------------------------------------------------- towers


def build_towers(placement, read, build):
    """Builds the network once a device, each for its part of the batch; all share their variables.

    Args:
        placement: Placement.
        read: function of Machine.part to the tensors of that part, whose first dimension counts the examples.
        build: function of a tower's number, int, and its tensors, which builds it.

    Returns:
        list of what `build` returned.
        list of tensors, those of the whole batch.
    """
    batches, built = [], []
    if len(placement.parameters) > 1:
        cut_fc6(len(placement.parameters))
    place_variables = VariablesApart(placement.parameters)
    for machine in placement.machines:
        with tf.device(machine.reader):
            batches.append(read(machine.part))
            pieces = [split(tensor, len(machine.towers)) for tensor in batches[-1]]
        for device, *piece in zip(machine.towers, *pieces):
            with tf.device(device), tf.device(place_variables):
                built.append(build(len(built), *piece))
    return built, [join(tensors) for tensors in zip(*batches)]


def split(tensor, number):
    """A tensor in so many parts along its first dimension, list of tensors; one stays what it is."""
    return [tensor] if number == 1 else tf.split(tensor, number)


def join(tensors):
    """Parts of a batch as one."""
    return tensors[0] if len(tensors) == 1 else tf.concat(tensors, axis=0)


def add_up(tensors):
    """The sum of tensors; one stays what it is."""
    return tensors[0] if len(tensors) == 1 else tf.add_n(tensors)


def cut_fc6(number):
    """Has the graph hold fc6's kernel, three quarters of all weights, in so many parts along its output channels."""
    def cut(getter, name, *args, **settings):
        if name.endswith('/fc6/weights'):
            settings['partitioner'] = tf.fixed_size_partitioner(number, axis=3)
        return getter(name, *args, **settings)

    tf.get_variable_scope().set_custom_getter(cut)


class VariablesApart:
    """Device function that puts variables on devices of their own, each on the one that has least to hold so far."""

    def __init__(self, devices):
        self.held = dict.fromkeys(devices, 0)

    def __call__(self, op):
        if op.type != 'VarHandleOp':
            return ''
        device = min(self.held, key=self.held.get)
        self.held[device] += tf.TensorShape(op.get_attr('shape')).num_elements()
        return device


def build_at_home(placement, build):
    """Builds a network for the chief alone; where the variables are elsewhere, on copies of them.

    Without these, each image that is predicted would have all weights come over the network again.

    Args:
        placement: Placement. build: function without arguments.

    Returns:
        what `build` returned.
        list of ops that bring the copies up to date; empty where there are none.
    """
    if all(device.startswith(placement.home) for device in placement.parameters):
        return build(), []
    copies, updates = {}, []

    def copy(getter, name, *args, **settings):
        original = getter(name, *args, **settings)
        if name not in copies:
            shape = original.get_shape()
            copies[name] = tf.Variable(lambda: tf.zeros(shape), trainable=False, shape=shape, name='copy',
                                       collections=[tf.GraphKeys.LOCAL_VARIABLES])
            updates.append(copies[name].assign(tf.convert_to_tensor(original)))
        return copies[name]

    with tf.variable_scope(tf.get_variable_scope(), custom_getter=copy):
        return build(), updates


def average(losses, weights):
    """The loss of a whole batch from those of its parts.

    Args:
        losses: list of float32 scalars.
        weights: list of float32 scalars, what each counts; or of None, if the whole's is their sum.

    Returns:
        list of float32 scalars, each part's contribution, on its own device; the whole's loss is their sum.
    """
    if len(losses) == 1 or weights[0] is None:
        return losses
    total = tf.maximum(tf.add_n(weights), 1e-6)  # 0 where all is void
    contributions = []
    for loss, weight in zip(losses, weights):
        with tf.device(loss.device):
            contributions.append(loss * (weight / total))
    return contributions


def compute_gradients(optimizer, losses):
    """The gradients of the sum of losses: each computed on its loss's device, and summed where the variable is.

    Args:
        optimizer: tf.train.Optimizer.
        losses: list of float32 scalars.

    Returns:
        list of (gradient, variable).
    """
    by_tower = []
    for loss in losses:
        with tf.device(loss.device):
            by_tower.append(optimizer.compute_gradients(loss))
    gradients = []
    for of_variable in zip(*by_tower):
        variable = of_variable[0][1]
        with tf.device(variable.device):
            gradients.append((add_up([gradient for gradient, _ in of_variable]), variable))
    return gradients


def check_finite(variables):
    """An op that fails if one of the variables is not finite; each is looked at where it is."""
    checks = []
    for variable in variables:
        if variable.dtype.is_floating:
            with tf.device(variable.device):
                checks.append(tf.check_numerics(variable, variable.op.name))
    return tf.group(checks)
