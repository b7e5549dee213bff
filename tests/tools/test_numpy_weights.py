"""Tests of reading vgg16_weights.npz and vgg16.npy: the same network as from Keras's file, and what is refused."""
import functools
import pickle
import struct
import zipfile

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from test_convert_vgg_weights import SLIM_WEIGHTS, assert_refused, convert, run_vgg, write_published
from test_hostile import MEMORY_BOUND, Planted, peak_memory

import vgg
from tools import convert_vgg_weights

BLOCKS = (('conv1', 2, 4), ('conv2', 2, 5), ('conv3', 3, 6), ('conv4', 3, 7), ('conv5', 3, 8))
FC_CHANNELS = 9
KERAS_LAYERS = {'fc6': 'fc1', 'fc7': 'fc2', 'fc8': 'predictions'} | {
    f'conv{block}_{layer}': f'block{block}_conv{layer}' for block in range(1, 6) for layer in range(1, 4)}


# ------------------------------------------------------------------------------------------- files as published


def write_npz(path, arrays, save=np.savez):
    """Writes the layout of vgg16_weights.npz.

    Args:
        path: str or path.
        arrays: dict of slim's layer names to (kernel, bias).
        save: np.savez or np.savez_compressed.
    """
    save(path, **{f'{layer}_{kind}': values for layer, pair in arrays.items() for kind, values in zip('Wb', pair)})


def write_npy(path, pickled, shape=(), descr='|O'):
    """Writes a .npy of one object, whose pickle is given as bytes."""
    with open(path, 'wb') as file:
        np.lib.format.write_array_header_1_0(file, {'descr': descr, 'fortran_order': False, 'shape': shape})
        file.write(pickled)


def todays_pickle(content, protocol):
    """What np.save writes of an object, but with that protocol."""
    holder = np.empty((), object)
    holder[()] = content
    return pickle.dumps(holder, protocol)


def python2_pickle(arrays):
    """What Python 2 writes of a dict of layer names to lists of arrays, as np.save puts it into vgg16.npy.

    Protocol 2; strings are bytes; the three functions are named once and come from the memo after that.
    """
    items = b''.join(b'U' + bytes([len(name)]) + name.encode() + b']q\x04(' + b''.join(map(python2_array, pair)) + b'e'
                     for name, pair in arrays.items())
    functions = b''.join(b'c' + name + b'q' + bytes([number]) + b'a' for number, name in enumerate(
        (b'numpy.core.multiarray\n_reconstruct\n', b'numpy\nndarray\n', b'numpy\ndtype\n'), start=1))
    # The list that names the functions stays below the array: a pickle's value is what is on top of the stack.
    return b'\x80\x02]' + functions + python2_state(b')', b'O8', b'|', b'\x89', b']}(' + items + b'ua') + b'.'


def python2_array(values):
    """An array of float32 as Python 2 pickles it; in Fortran's order if it lies so in the memory."""
    is_fortran = values.flags.f_contiguous and not values.flags.c_contiguous
    shape = b'(' + b''.join(b'J' + struct.pack('<i', size) for size in values.shape) + b't'
    content = values.tobytes('A')
    return python2_state(shape, b'f4', b'<', b'\x88' if is_fortran else b'\x89',
                         b'T' + struct.pack('<i', len(content)) + content)


def python2_state(shape, code, byte_order, is_fortran, content):
    """The instructions that make an array: functions 1, 2, 3 of the memo are _reconstruct, ndarray, dtype."""
    make = b'h\x01h\x02K\x00\x85U\x01b\x87R'
    flags = b'K\x3f' if code == b'O8' else b'K\x00'
    dtype = (b'h\x03U\x02' + code + b'K\x00K\x01\x87R(K\x03U\x01' + byte_order
             + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff' + flags + b'tb')
    return make + b'(K\x01' + shape + dtype + is_fortran + content + b'tb'


# ------------------------------------------------------------------------------------------- one network


@pytest.fixture
def narrow(monkeypatch):
    """VGG16 with a hundredth of the channels, in place of the whole one."""
    monkeypatch.setattr(vgg, 'BLOCKS', BLOCKS)
    monkeypatch.setattr(vgg, 'vgg_16', functools.partial(vgg.vgg_16, fc_channels=FC_CHANNELS))


def random_arrays():
    """Weights of the narrow network for RGB: dict of slim's layer names to (kernel, bias), fc layers as matrices."""
    random = np.random.default_rng(0)
    arrays, channels = {}, 3
    for block, repeats, width in BLOCKS:
        for layer in range(1, repeats + 1):
            arrays[f'{block}_{layer}'] = random.normal(0, (2 / 9 / channels) ** 0.5, (3, 3, channels, width))
            channels = width
    for name, width in (('fc6', FC_CHANNELS), ('fc7', FC_CHANNELS), ('fc8', 1000)):
        rows = 49 * channels if name == 'fc6' else channels
        arrays[name] = random.normal(0, (2 / rows) ** 0.5, (rows, width))
        channels = width
    return {name: (kernel.astype(np.float32), random.normal(0, 1, kernel.shape[-1]).astype(np.float32))
            for name, kernel in arrays.items()}


def for_bgr(arrays):
    """The same network for BGR. fc8 lies in the memory as a transposed matrix, as caffe-tensorflow leaves it."""
    kernel, bias = arrays['conv1_1']
    return {**arrays, 'conv1_1': (np.ascontiguousarray(kernel[:, :, [2, 1, 0]]), bias),
            'fc8': (np.asfortranarray(arrays['fc8'][0]), arrays['fc8'][1])}


def test_all_formats_give_one_and_the_same_output(narrow, tmp_path, capsys):
    arrays = random_arrays()
    write_published(tmp_path / 'keras.h5', {KERAS_LAYERS[name]: pair for name, pair in for_bgr(arrays).items()})
    write_npz(tmp_path / 'stored.npz', arrays)
    write_npz(tmp_path / 'packed.NPZ.npz', arrays, np.savez_compressed)
    write_npy(tmp_path / 'python2.npy', python2_pickle(for_bgr(arrays)))
    lists = {name: list(pair) for name, pair in for_bgr(arrays).items()}
    for protocol in (2, 3, 4):
        write_npy(tmp_path / f'protocol{protocol}.npy', todays_pickle(lists, protocol))
    np.save(tmp_path / 'today.npy', lists, allow_pickle=True)

    image = np.random.default_rng(1).normal(0, 60, (2, 224, 224, 3)).astype(np.float32)
    outputs = {}
    for path in sorted(path for path in tmp_path.iterdir()):
        convert(path, f'{path}.ckpt')
        assert 'fc6, fc7, fc8; ' in capsys.readouterr().out
        with tf.Graph().as_default():
            outputs[path.name] = run_vgg(f'{path}.ckpt', image, 'fc8')
    assert len(outputs) == 8 and outputs['keras.h5'].shape == (2, 1000)
    assert np.std(outputs['keras.h5']) > 0.1
    for name, output in outputs.items():
        assert output.tobytes() == outputs['keras.h5'].tobytes(), name


def test_the_pickle_of_python_2_is_one():
    """What the test writes by hand is, for Python itself, the dict that it is to be."""
    arrays = for_bgr(random_arrays())
    read = pickle.loads(python2_pickle(arrays), encoding='latin1')[()]
    assert list(read) == list(arrays)
    for name, pair in arrays.items():
        for values, expected in zip(read[name], pair):
            np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize('ending', ['npz', 'npy'])
def test_a_file_without_top_gives_the_trunk(narrow, tmp_path, capsys, ending):
    arrays = {name: pair for name, pair in random_arrays().items() if name.startswith('conv')}
    write_npz(tmp_path / 'vgg.npz', arrays)
    write_npy(tmp_path / 'vgg.npy', python2_pickle(arrays))
    convert(tmp_path / f'vgg.{ending}', tmp_path / 'vgg_16.ckpt')
    assert 'trunk only, 13 convolution layers' in capsys.readouterr().out
    stored = tf.train.load_checkpoint(str(tmp_path / 'vgg_16.ckpt')).get_tensor('vgg_16/conv1/conv1_1/weights')
    kernel = arrays['conv1_1'][0]
    np.testing.assert_array_equal(stored, kernel if ending == 'npz' else kernel[:, :, [2, 1, 0]])


@pytest.mark.parametrize('ending', ['npz', 'npy'])
def test_the_whole_network_takes_no_more_memory_than_it_has_values(tmp_path, ending):
    """138 million values, which lie in the file in full in .npy: 553 MB."""
    shapes = {f'{layer}/{kind}': shape if kind == 'weights' else shape[-1:]
              for layer, shape in SLIM_WEIGHTS.items() for kind in ('weights', 'biases')}
    arrays = {layer.split('/')[-1]: (np.zeros([np.prod(shape[:-1]), shape[-1]] if 'fc' in layer else shape, np.float32),
                                     np.full(shape[-1], 2, np.float32)) for layer, shape in SLIM_WEIGHTS.items()}
    path = tmp_path / f'vgg16.{ending}'
    if ending == 'npz':
        write_npz(path, arrays, np.savez_compressed)
    else:
        np.save(path, {name: list(pair) for name, pair in arrays.items()}, allow_pickle=True)
    del arrays
    before = peak_memory(reset=True)
    weights = convert_vgg_weights.read_weights(str(path), shapes)
    path.unlink()
    assert peak_memory() - before < 138_357_544 * 4 + 2 ** 26
    assert {name: list(values.shape) for name, values in weights.items()} == shapes
    assert all((values == 2).all() for name, values in weights.items() if name.endswith('biases'))


# ------------------------------------------------------------------------------------------- hostile and damaged files


KERNEL = np.zeros((3, 3, 3, 64), np.float32)
BIAS = np.zeros(64, np.float32)
CASES = []


def hostile(ending, *words):
    """Enters a maker of a file, function of its path, into the table, with words of the line that it has to give."""
    def enter(make):
        CASES.append(pytest.param(make, ending, words, id=make.__name__))
        return make
    return enter


def enter_pickle(name, pickled, *words):
    """Enters a .npy with this pickle into the table."""
    def make(path):
        write_npy(path, pickled)
    make.__name__ = name
    hostile('npy', *words)(make)


@hostile('npy', "names '", 'which no dict of float arrays needs')
def pickle_that_opens_a_file(path):
    write_npy(path, todays_pickle({'conv1_1': Planted(str(path.parent / 'planted'))}, 2))


@hostile('npy', 'is not a readable vgg16.npy')
def plain_pickle(path):
    path.write_bytes(pickle.dumps(Planted(str(path.parent / 'planted'))))


@hostile('npy', 'no dict, but an array')
def array_of_floats(path):
    np.save(path, KERNEL)


@hostile('npy', 'no dict, but an array')
def endless_array_of_objects(path):
    write_npy(path, b'', shape=(2 ** 40,))


@hostile('npy', "'<f8', where float32 is needed")
def pickle_of_doubles(path):
    np.save(path, {'conv1_1': [KERNEL.astype(np.float64), BIAS]}, allow_pickle=True)


@hostile('npy', "'conv1_1' is something else than a list of float arrays")
def pickle_of_an_array_of_dicts(path):
    np.save(path, {'conv1_1': [np.array([{}], object)]}, allow_pickle=True)


@hostile('npy', "'conv1_1' is something else than a list of float arrays")
def pickle_of_a_dict_of_dicts(path):
    np.save(path, {'conv1_1': {'weights': KERNEL, 'biases': BIAS}}, allow_pickle=True)


@hostile('npy', 'VGG16 has no layer conv3_4')
def pickle_of_vgg19(path):
    write_npy(path, python2_pickle({'conv3_4': (KERNEL, BIAS)}))


@hostile('npy', 'weights of layer conv1_1 are missing; give a vgg16.npy')
def pickle_of_no_layer(path):
    write_npy(path, todays_pickle({}, 4))


@hostile('npy', 'biases of layer conv1_1 are missing')
def pickle_of_a_layer_of_one_array(path):
    write_npy(path, python2_pickle({'conv1_1': (KERNEL,)}))


@hostile('npy', 'weights of layer conv1_1 are float32 [3, 3, 3, 32]')
def pickle_of_another_shape(path):
    write_npy(path, python2_pickle({'conv1_1': (KERNEL[..., :32].copy(), BIAS)}))


@hostile('npy', 'is not a readable vgg16.npy')
def pickle_that_ends_early(path):
    pickled = python2_pickle({'conv1_1': (KERNEL, BIAS)})
    write_npy(path, pickled[:len(pickled) // 2])


@hostile('npy', 'shape does not fit its values')
def pickle_with_a_shape_that_lies(path):
    honest = python2_array(KERNEL)
    lie = honest.replace(b'J' + struct.pack('<i', 64), b'J' + struct.pack('<i', 2 ** 31 - 1))
    write_npy(path, python2_pickle({'conv1_1': (KERNEL, BIAS)}).replace(honest, lie))


@hostile('npy', 'less values than the shape says')
def pickle_with_too_little_utf8(path):
    honest = todays_pickle({'conv1_1': [KERNEL, BIAS]}, 2)
    whole, short = (b'X' + struct.pack('<I', len(text)) + text for text in (bytes(KERNEL.nbytes), bytes(99)))
    write_npy(path, honest.replace(whole, short))


@hostile('npy', 'more values than the shape says')
def pickle_with_too_much_utf8(path):
    honest = todays_pickle({'conv1_1': [KERNEL, BIAS]}, 2)
    whole, long = (b'X' + struct.pack('<I', len(text)) + text for text in (bytes(KERNEL.nbytes), bytes(2 ** 28)))
    write_npy(path, honest.replace(whole, long))


@hostile('npy', "can't decode byte")
def pickle_with_broken_utf8(path):
    honest = todays_pickle({'conv1_1': [KERNEL + 1, BIAS]}, 2)
    write_npy(path, honest.replace(b'\xc2\x80', b'\xff\xff'))


HOLDER = b'\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R'
for name, pickled, *words in (
        ('pickle_of_a_system_call', b'\x80\x02cposix\nsystem\nU\x04true\x85R.', "names 'posix system'"),
        ('pickle_that_names_a_control_character', b'c\x1b[2J\n\x1b]\n.', "names '\\x1b[2J \\x1b]'"),
        ('pickle_of_a_stacked_name', b'\x80\x04\x8c\x08builtins\x8c\x04eval\x93.', "names 'builtins eval'"),
        ('pickle_that_calls_a_class', b'\x80\x02cnumpy\nndarray\nK\x01\x85R.', 'calls'),
        ('pickle_that_makes_an_instance', b'(iposix\nsystem\n.', "instruction b'i'"),
        ('pickle_of_text_lines', b"S'conv1_1'\n.", "instruction b'S'"),
        ('pickle_from_elsewhere', b'\x80\x02Pother\n.', "instruction b'P'"),
        ('pickle_of_a_long_name', b'c' + b'a' * 10 ** 7, "names 'aaa"),
        ('pickle_of_a_long_number', b'\x8b\xff\xff\xff\x7f1', "instruction b'\\x8b'"),
        ('pickle_of_a_string_beyond_the_end', b'T\xff\xff\xff\x7fa.', 'beyond the end'),
        ('pickle_of_a_string_of_negative_length', b'T\xff\xff\xff\xffa.', 'beyond the end'),
        ('pickle_of_an_endless_string', b'\x8e' + b'\xff' * 8 + b'.', 'beyond the end'),
        ('pickle_without_end', b'', "instruction b''"),
        ('pickle_of_nothing', b'.', 'damaged pickle'),
        ('pickle_that_takes_too_much', b'\x86.', 'takes more than there is'),
        ('pickle_without_a_mark', b'K\x01t.', 'damaged pickle'),
        ('pickle_of_what_is_not_in_the_memo', b'h\x07.', 'damaged pickle'),
        ('pickle_of_a_list', b'].', 'something else than one dict'),
        ('pickle_of_a_list_in_itself', b']q\x00h\x00a.', 'something else than one dict'),
        ('pickle_of_a_dict_in_itself', b'}q\x00U\x01ah\x00s.', 'something else than one dict'),
        ('pickle_of_a_million_lists', b']' * 10 ** 6 + b'.', 'more than 20,000 instructions'),
        ('pickle_of_nested_lists', b']q\x00' + b']h\x00aq\x00' * 4000 + b'.', 'something else than one dict'),
        ('pickle_of_doubled_tuples', b')q\x00' + b'h\x00h\x00\x86q\x00' * 3000 + b'.', 'something else than one dict'),
        ('pickle_with_a_tuple_as_a_key', b')q\x00' + b'h\x00h\x00\x86q\x00' * 3000 + b'}h\x00Ns.', 'a name has to be'),
        ('pickle_with_a_huge_key', b'}X\xe8\x03\x00\x00' + b'a' * 1000 + b'Ns.', 'a name has to be'),
        ('pickle_of_items_without_a_dict', b']U\x01aNs.', 'something else than a dict'),
        ('pickle_of_values_without_a_list', b'}Na.', 'something else than a list'),
        ('pickle_of_an_impossible_shape',
         HOLDER + b'(K\x01J\xff\xff\xff\xff\x85cnumpy\ndtype\nU\x02f4\x85R\x89U\x00tb.', 'impossible shape'),
        ('pickle_of_an_array_without_state', HOLDER + b'.', 'something else than one dict')):
    enter_pickle(name, pickled, *words)


@hostile('npz', 'is not a readable vgg16_weights.npz')
def text_named_npz(path):
    path.write_text('<html>not found</html>')


def write_zip(path, members, method=zipfile.ZIP_STORED):
    """Writes a zip of these members, dict of names to bytes or iterables of bytes."""
    with zipfile.ZipFile(path, 'w', method) as archive:
        for name, content in members.items():
            with archive.open(name, 'w', force_zip64=True) as file:
                for part in [content] if isinstance(content, bytes) else content:
                    file.write(part)


def npy_bytes(shape, content=b'', descr='<f4', version=(1, 0)):
    """A .npy whose header may lie."""
    header = repr({'descr': descr, 'fortran_order': False, 'shape': shape}).encode() + b'\n'
    length = struct.pack('<H' if version == (1, 0) else '<I', len(header))
    return b'\x93NUMPY' + bytes(version) + length + header + content


@hostile('npz', 'more values than the shape says')
def bomb_of_half_a_gigabyte(path):
    head = npy_bytes((3, 3, 3, 64), KERNEL.tobytes())
    write_zip(path, {'conv1_1_W.npy': [head] + [bytes(2 ** 20)] * 512, 'conv1_1_b.npy': npy_bytes((64,))},
              zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2 ** 20


@hostile('npz', 'less values than the shape says')
def array_of_too_little(path):
    write_zip(path, {'conv1_1_W.npy': npy_bytes((3, 3, 3, 64), bytes(99))})


@hostile('npz', 'weights of layer conv1_1 are float32 [65536, 65536]')
def array_with_a_shape_that_lies(path):
    write_zip(path, {'conv1_1_W.npy': npy_bytes((2 ** 16, 2 ** 16))})


@hostile('npz', 'impossible shape')
def array_of_a_thousand_dimensions(path):
    write_zip(path, {'conv1_1_W.npy': npy_bytes((1,) * 1000)})


@hostile('npz', 'conv1_1_W.npy is object')
def array_of_objects_in_a_zip(path):
    np.savez(path, conv1_1_W=np.array([Planted(str(path.parent / 'planted'))], object))


@hostile('npz', 'conv1_1_W.npy is float64')
def array_of_doubles(path):
    np.savez(path, conv1_1_W=KERNEL.astype(np.float64))


@hostile('npz', 'version')
def header_of_half_a_gigabyte(path):
    head = b'\x93NUMPY\x02\x00' + struct.pack('<I', 2 ** 29)
    write_zip(path, {'conv1_1_W.npy': [head] + [b' ' * 2 ** 20] * 512}, zipfile.ZIP_DEFLATED)


@hostile('npz', 'is not a readable vgg16_weights.npz')
def header_of_nested_brackets(path):
    header = b'(' * 9000
    write_zip(path, {'conv1_1_W.npy': b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header})


@hostile('npz', 'packed in another way')
def array_in_lzma(path):
    write_zip(path, {'conv1_1_W.npy': npy_bytes((3, 3, 3, 64), KERNEL.tobytes())}, zipfile.ZIP_LZMA)


@hostile('npz', 'where a list or a header has to be')
def zip_of_many_members(path):
    """The list of members takes more than a megabyte; gigabytes of one would take more memory than disk."""
    write_zip(path, dict.fromkeys((f'{number:0200}' for number in range(5000)), b''))


@hostile('npz', 'CRC')
def array_with_a_wrong_checksum(path):
    write_zip(path, {'conv1_1_W.npy': npy_bytes((3, 3, 3, 64), KERNEL.tobytes())})
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)


@hostile('npz', 'weights of layer conv1_1 are missing; give a vgg16_weights.npz')
def zip_of_something_else(path):
    np.savez(path, mean=BIAS)


@hostile('npz', 'biases of layer conv1_1 are missing')
def zip_without_biases(path):
    np.savez(path, conv1_1_W=KERNEL)


@hostile('npz', 'VGG16 has no layer conv3_4')
def zip_of_vgg19(path):
    np.savez(path, conv3_4_W=KERNEL)


@hostile('npz', 'is not a readable vgg16_weights.npz')
def zip_that_ends_early(path):
    np.savez(path, conv1_1_W=KERNEL, conv1_1_b=BIAS)
    path.write_bytes(path.read_bytes()[:-100])


@hostile('npz', 'encrypted')
def zip_with_a_password(path):
    np.savez(path, conv1_1_W=KERNEL)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)


@pytest.mark.parametrize('make, ending, words', CASES)
def test_one_line_and_little_memory(make, ending, words, tmp_path):
    path = tmp_path / f'bad.{ending}'
    make(path)
    before = peak_memory(reset=True)
    assert_refused(path, tmp_path, f'bad.{ending}', *words)
    assert peak_memory() - before < MEMORY_BOUND
    assert not (tmp_path / 'planted').exists()
