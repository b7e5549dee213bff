"""Training on several devices: one copy of the network on each, and one update from all their gradients.

    python train.py --num_gpus 2 --accumulate 4

Each batch is split over towers: copies of the network that share its variables, one or more on each device. Training
minimises the loss of the complete batch: the number of towers changes only speed and memory, and the units that dropout
drops.
"""
from typing import NamedTuple

import tensorflow.compat.v1 as tf

from inference import devices
from utils import UserError


class Machine(NamedTuple):
    """The share of one machine in each step."""
    reader: str  # the device that reads and decodes its examples
    towers: list  # of str, the devices that compute
    part: tuple | None  # (begin, end), its examples of the batch; None for all of them


class Placement(NamedTuple):
    """The devices that a training uses."""
    target: str  # the TensorFlow server of the session; '' for this process
    home: str  # the device of every op that has no other
    machines: list  # of Machine
    parameters: list  # of str, the devices that hold the variables


HERE = Placement('', '', [Machine('', [''], None)], [''])  # one device, which TensorFlow chooses


def place_here(num_gpus, batch_size):
    """The Placement on `num_gpus` devices of this process: GPUs, or without a GPU, parts of the CPU.
    The first device holds the variables: the optimiser is fast there, and the other GPUs read another GPU's memory
    faster than the CPU's. For the errors see divide_batch."""
    if num_gpus == 1:
        return HERE
    kind = 'GPU' if devices.list_gpus() else 'CPU'
    towers = [f'/device:{kind}:{i}' for i in range(num_gpus)]
    return Placement('', '', divide_batch(batch_size, {'/device:CPU:0': towers}), towers[:1])


def divide_batch(batch_size, towers_by_reader):
    """A list of Machine, in which each tower has the same number of the examples of a batch; else UserError.
    towers_by_reader is a dict of Machine.reader to Machine.towers."""
    number = sum(map(len, towers_by_reader.values()))
    if batch_size % number:
        raise UserError(f'--batch_size {batch_size} cannot be divided equally over {number} devices; give a multiple '
                        f'of {number}, or use fewer devices with --num_gpus')
    machines, begin = [], 0
    for reader, towers in towers_by_reader.items():
        end = begin + len(towers) * batch_size // number
        machines.append(Machine(reader, towers, (begin, end)))
        begin = end
    return machines


class Tower(NamedTuple):
    """What one network computes from its part of the batch; for the scalars see train.segmentation_loss."""
    gradients: list  # of (gradient, variable); build_towers replaces them by the weighted sum so far on the device
    loss: tf.Tensor
    loss_per_pixel: tf.Tensor
    weight: tf.Tensor | None
    pixels: tf.Tensor


def build_towers(placement, turns, read, build):
    """Builds one network for each part of the batch; all share their variables. Each device computes `turns` parts, one
    after the other, so that its memory holds the activations of one.
    `read` is a function of (begin, end), examples of the batch, or of None for all of them; it returns their tensors,
    examples first. `build` is a function of a part's number, int, and its tensors; it returns a Tower. Returns the list
    of Tower, and the tensors of the complete batch."""
    batches, built = [], []
    if len(placement.parameters) > 1:
        partition_fc6(len(placement.parameters))
    balance = balance_variables(placement.parameters)
    is_only = turns * sum(len(machine.towers) for machine in placement.machines) == 1
    for machine in placement.machines:
        with tf.device(machine.reader):
            batches.append(read(machine.part and tuple(turns * bound for bound in machine.part)))
            number = len(machine.towers) * turns
            pieces = zip(*(tf.split(tensor, number) if number > 1 else [tensor] for tensor in batches[-1]))
        for device in machine.towers:
            sums = []
            for _ in range(turns):
                with tf.device(device), tf.device(balance):
                    with tf.control_dependencies([gradient for gradient, _ in sums]):
                        piece = [tf.identity(tensor) for tensor in next(pieces)]
                    tower = build(len(built), *piece)
                    sums = tower.gradients if is_only else add_weighted(sums, tower.gradients, tower.weight)
                    built.append(tower._replace(gradients=sums))
    return built, [tf.concat(parts, axis=0) if len(parts) > 1 else parts[0] for parts in zip(*batches)]


def add_weighted(sums, gradients, weight):
    """Adds gradients times weight (None: 1) to sums, which may be empty; all are lists of (gradient, variable)."""
    weighted = [(gradient if weight is None else gradient * weight, variable) for gradient, variable in gradients]
    return [(before + gradient, variable) for (before, _), (gradient, variable) in zip(sums, weighted)] or weighted


def partition_fc6(number):
    """Makes the graph store fc6's kernel, three quarters of all weights, in `number` parts of its output channels."""
    def partition(getter, name, *args, **settings):
        if name.endswith('/fc6/weights'):
            settings['partitioner'] = tf.fixed_size_partitioner(number, axis=3)
        return getter(name, *args, **settings)

    tf.get_variable_scope().set_custom_getter(partition)


def balance_variables(devices):
    """A device function that puts each variable on the device that holds the fewest elements so far."""
    elements = dict.fromkeys(devices, 0)

    def choose(op):
        if op.type != 'VarHandleOp':
            return ''
        device = min(elements, key=elements.get)
        elements[device] += tf.TensorShape(op.get_attr('shape')).num_elements()
        return device

    return choose


def build_at_home(placement, build):
    """Builds a network that only the chief runs, on copies of the variables that other machines hold.
    Without these, each image would move all weights. Returns what `build`, a function without arguments, returns, and
    the list of ops that update the copies."""
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
    """The loss of a complete batch from those of its parts, float32 scalar; no op is added for one part.
    Losses and weights (see train.segmentation_loss) are lists of float32 scalars; the weights are None if the losses
    add up as they are."""
    if len(losses) == 1:
        return losses[0]
    if weights[0] is None:
        return tf.add_n(losses)
    return tf.add_n([loss * weight for loss, weight in zip(losses, weights)]) / add_weights(weights)


def add_weights(weights):
    return tf.maximum(tf.add_n(weights), 1e-6)  # the sum is 0 if every pixel is ignored


def average_gradients(built, turns):
    """List of (gradient, variable) of the loss of the complete batch, from what build_towers returns for these turns.
    The sums of the devices meet on the device of the variable."""
    if len(built) == 1:
        return built[0].gradients
    total, gradients = None if built[0].weight is None else add_weights([tower.weight for tower in built]), []
    for pairs in zip(*(tower.gradients for tower in built[turns - 1::turns])):
        variable = pairs[0][1]
        with tf.device(variable.device):
            gradient = tf.add_n([sum_of_device for sum_of_device, _ in pairs])
            gradients.append((gradient if total is None else gradient / total, variable))
    return gradients


def check_finite(variables):
    """An op that raises InvalidArgumentError if a variable is not finite; it checks each on its own device."""
    checks = []
    for variable in variables:
        if variable.dtype.is_floating:
            with tf.device(variable.device):
                checks.append(tf.check_numerics(variable, variable.op.name))
    return tf.group(checks)
