import io
import os
import subprocess
import sys

import pytest
import tensorflow.compat.v1 as tf

from datasets import records

ROOT = os.path.dirname(os.path.dirname(records.__file__))


def test_make_example_holds_the_schema():
    example = records.make_example(b'2007_000001', b'jpeg bytes', b'png bytes', 375, 500)
    features = tf.train.Example.FromString(example).features.feature
    assert {name: (feature.bytes_list.value or feature.int64_list.value)[0] for name, feature in features.items()} == {
        'image/encoded': b'jpeg bytes', 'image/label': b'png bytes', 'image/height': 375, 'image/width': 500,
        'image/filename': b'2007_000001', 'image/format': b'jpeg', 'image/label_format': b'png'}
    example = records.make_example(b'2007_000001', b'png', b'png bytes', 375, 500, b'png')
    assert tf.train.Example.FromString(example).features.feature['image/format'].bytes_list.value == [b'png']


@pytest.mark.parametrize('length', [0, 1, 100, 127, 128, 16383, 16384, 300_000])
@pytest.mark.parametrize('size', [0, 1, 127, 128, 375, 65535, 2 ** 31, 2 ** 62])
def test_make_example_is_read_by_tensorflow_as_it_was_meant(length, size):
    jpeg_bytes, png_bytes = b'\0\xff\x80J' * (length // 4) + b'\xff' * (length % 4), b'P' * length
    filename = 'größe'.encode()
    example = tf.train.Example()
    for name, value in (('encoded', jpeg_bytes), ('label', png_bytes), ('filename', filename), ('format', b'jpeg'),
                        ('label_format', b'png')):
        example.features.feature[f'image/{name}'].bytes_list.value.append(value)
    for name, value in (('height', size), ('width', size // 3)):
        example.features.feature[f'image/{name}'].int64_list.value.append(value)
    assert tf.train.Example.FromString(
        records.make_example(filename, jpeg_bytes, png_bytes, size, size // 3)) == example


def test_write_example_gives_tensorflows_own_bytes(tmp_path):
    examples = [b'', b'a', bytes(range(256)), b'\xff' * 300_000]
    with tf.io.TFRecordWriter(str(tmp_path / 'theirs.record')) as writer:
        for example in examples:
            writer.write(example)
    ours = io.BytesIO()
    for example in examples:
        records.write_example(ours, example)
    assert ours.getvalue() == (tmp_path / 'theirs.record').read_bytes()


@pytest.mark.parametrize('module', ['convert_fcn_dataset', 'report', 'crf', 'crf_maps', 'dataset', 'utils',
                                    'tools.make_sample_dataset'])
def test_what_needs_no_tensorflow_does_not_import_it(module):
    program = f"import sys, {module}; assert 'tensorflow' not in sys.modules"
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
