"""Records: the schema as TensorFlow reads it, and what is refused before a picture is decoded."""
import io

import numpy as np
import psutil
import pytest
import tensorflow.compat.v1 as tf
from conftest import encode, write_examples
from PIL import Image

from datasets import records
from utils import UserError


def test_make_example_holds_the_schema():
    example = records.make_example('größe'.encode(), b'jpeg bytes', b'png bytes', 375, 500)
    features = tf.train.Example.FromString(example).features.feature
    assert {name: (feature.bytes_list.value or feature.int64_list.value)[0] for name, feature in features.items()} == {
        'image/encoded': b'jpeg bytes', 'image/label': b'png bytes', 'image/height': 375, 'image/width': 500,
        'image/filename': 'größe'.encode(), 'image/format': b'jpeg', 'image/label_format': b'png'}
    example = records.make_example(b'2007_000001', b'png', b'png bytes', 375, 500, b'png')
    assert tf.train.Example.FromString(example).features.feature['image/format'].bytes_list.value == [b'png']


def test_a_writer_that_fails_names_its_file(tmp_path):
    with pytest.raises(OSError, match='No such file') as raised, records.open_writer(str(tmp_path / 'no' / 'a')):
        pass
    assert raised.value.filename == str(tmp_path / 'no' / 'a')


def test_count_examples(record):
    assert records.count_examples(record) == 5


def corrupt(path, original):
    data = bytearray(original)
    data[len(data) // 2] ^= 0xff
    path.write_bytes(data)


@pytest.mark.parametrize('damage, message', [
    (lambda path, good: None, 'no such file'),
    (lambda path, good: path.mkdir(), 'is not a file'),
    (lambda path, good: path.write_bytes(b''), 'holds no example'),
    (lambda path, good: path.write_bytes(b'\xff\xd8 a JPEG, say' * 50), 'not a TFRecord file, or damaged after .* 0'),
    (lambda path, good: path.write_bytes(good[:-10]), 'damaged after example 4'),
    (corrupt, 'damaged after example [1-4]'),
])
def test_records_that_are_none(tmp_path, record, damage, message):
    path = tmp_path / 'bad.record'
    with open(record, 'rb') as file:
        damage(path, file.read())
    with pytest.raises(UserError, match=message) as raised:
        records.count_examples(str(path))
    assert str(raised.value).startswith(str(path)) and '\n' not in str(raised.value)


@pytest.mark.parametrize('payload, message', [
    (b'\xff not an example', 'example 0: is not a tf.train.Example'),
    (tf.train.Example().SerializeToString(), 'example 0: has no feature image/encoded'),
])
def test_records_of_something_else(tmp_path, payload, message):
    with pytest.raises(UserError, match=message):
        records.count_examples(write_examples(tmp_path / 'other.record', [payload]))


def rewrite(path, record, **features):
    """Writes the examples of a record again, features of the last one replaced (names without image/, None: left out).

    Values are lists of bytes, of ints or of floats.
    """
    examples = [tf.train.Example.FromString(one) for one in tf.io.tf_record_iterator(record)]
    for name, values in features.items():
        del examples[-1].features.feature[f'image/{name}']
        if values is not None:
            kind = {bytes: 'bytes_list', int: 'int64_list', float: 'float_list'}[type(values[0])]
            getattr(examples[-1].features.feature[f'image/{name}'], kind).value.extend(values)
    return write_examples(path, [example.SerializeToString() for example in examples])


@pytest.mark.parametrize('features, message', [
    ({'label': None}, 'has no feature image/label'),
    ({'height': [b'100']}, 'has no feature image/height with one int64 value'),
    ({'height': [100.0]}, 'has no feature image/height with one int64 value'),
    ({'width': [60, 60]}, 'has no feature image/width with one int64 value'),
    ({'encoded': [1]}, 'has no feature image/encoded with one bytes value'),
    ({'height': [-100]}, 'its image/encoded is 60 x 100 pixels, by image/width and image/height it is 60 x -100'),
    ({'height': [2 ** 62], 'width': [2 ** 62]}, 'pixels are more than the 67 million that an image may have'),
    ({'encoded': [b'']}, 'its image/encoded is not a readable JPEG or PNG'),
    ({'encoded': [encode(np.zeros((60, 100, 3), np.uint8), format='PNG')]}, 'its image/encoded is 100 x 60 pixels, by'),
    ({'label': [encode(np.zeros((100, 60), np.uint8), format='JPEG')]}, 'its image/label is not a readable PNG'),
    ({'encoded': [b'\xff\xd8' + b'\xff' * 40]}, 'its image/encoded is not a readable JPEG'),
    ({'label': [encode(np.zeros((60, 100), np.uint8), format='PNG')]}, 'its image/label is 100 x 60 pixels, by'),
])
def test_every_example_is_checked_without_decoding(tmp_path, record, features, message):
    with pytest.raises(UserError, match='bad.record: example 4: ') as raised:
        records.count_examples(rewrite(tmp_path / 'bad.record', record, **features))
    assert message in str(raised.value) and '\n' not in str(raised.value)


@pytest.mark.parametrize('options', [{}, {'progressive': True, 'exif': b'Exif\0\0' + bytes(60000)}])
@pytest.mark.parametrize('mode', ['L', 'RGB', 'CMYK'])
def test_the_size_is_found_in_every_kind_of_jpeg(tmp_path, options, mode):
    jpeg = io.BytesIO()
    Image.new(mode, (70, 31)).save(jpeg, 'JPEG', **options)
    label = encode(np.zeros((31, 70), np.uint8), format='PNG')
    path = write_examples(tmp_path / 'a', [records.make_example(b'one', jpeg.getvalue(), label, 31, 70)])
    assert records.count_examples(path) == 1
    write_examples(path, [records.make_example(b'one', jpeg.getvalue(), label, 31, 31)])
    with pytest.raises(UserError, match='image/encoded is 70 x 31 pixels, by image/width and .* 31 x 31'):
        records.count_examples(path)


def test_what_does_not_fit_into_memory_is_refused_where_images_are_complete(record, monkeypatch):
    """The fifth image has 6000 pixels, the others fewer."""
    memory = psutil.virtual_memory()._replace(total=5999 * records.BYTES_PER_PIXEL)
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: memory)
    assert records.count_examples(record) == 5
    with pytest.raises(UserError, match='example 4: 60 x 100 pixels are more than the 0 million that fit into'):
        records.count_examples(record, whole=True)
