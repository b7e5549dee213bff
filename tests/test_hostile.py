"""Damaged and hostile input of every kind: each ends in one clear line, within bounded memory, and leaves nothing.

The table: a maker's name says what is wrong, its decorator the program, the line expected and the exit code.
"""
import contextlib
import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import draw_pair, encode, mount_disk

import convert_fcn_dataset
import evaluate
import predict
import train
import utils
from datasets import batches, records

ROOT = Path(__file__).resolve().parent.parent
MEMORY_BOUND = 2 ** 28  # bytes that an input of the table may take beyond what the program has before
CASES = []


def hostile(program, line, code=1):
    """Enters a maker of input into the table: it gets a folder, spoils or writes something there."""
    def enter(make):
        CASES.append(pytest.param(make, program, line, code, id=make.__name__))
        return make
    return enter


# ------------------------------------------------------------------------------------------- pieces of files


def chunk(name, data, length=None):
    """A chunk of a PNG; its length may be a lie."""
    return struct.pack('>I', len(data) if length is None else length) + name + data + struct.pack(
        '>I', zlib.crc32(name + data))


def png(width, height, *chunks, depth=8, colour=0):
    """A PNG of any claimed size with the given chunks."""
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + b''.join(chunks) + chunk(b'IEND', b'')


def jpeg(width=70, height=50, claimed=None, **options):
    """A grey JPEG; `claimed` (width, height) stands in its header instead of the true size."""
    data = bytearray(encode(np.full((height, width), 99, np.uint8), format='JPEG', **options))
    if claimed:
        frame = max(data.find(b'\xff\xc0'), data.find(b'\xff\xc2')) + 5
        data[frame:frame + 4] = struct.pack('>HH', claimed[1], claimed[0])
    return bytes(data)


def many_scans():
    """A progressive JPEG of 7 million pixels whose one scan for the details is repeated 30,000 times: 1 MB."""
    data = jpeg(2600, 2600, progressive=True)
    start = data.rindex(b'\xff\xda')
    return data[:start] + data[start:-2] * 30000 + data[-2:]


# ------------------------------------------------------------------------------------------- split files


def list_of(folder, name='train'):
    return folder / 'VOC' / 'ImageSets' / 'Segmentation' / f'{name}.txt'


def image_of(folder):
    return folder / 'VOC' / 'JPEGImages' / 'b.jpg'


def mask_of(folder):
    return folder / 'VOC' / 'SegmentationClass' / 'b.png'


@pytest.fixture
def folder(tmp_path):
    """A folder with VOC/, a data set of train a, b and val c, of 50 x 70 pixels."""
    for name in ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'):
        (tmp_path / 'VOC' / name).mkdir(parents=True)
    for number, name in enumerate('abc'):
        image, label = draw_pair(50, 70, number)
        (tmp_path / 'VOC' / 'JPEGImages' / f'{name}.jpg').write_bytes(encode(image, format='JPEG'))
        (tmp_path / 'VOC' / 'SegmentationClass' / f'{name}.png').write_bytes(encode(label, format='PNG'))
    list_of(tmp_path).write_text('a\nb\n')
    list_of(tmp_path, 'val').write_text('c\n')
    return tmp_path


@hostile('convert', "train.txt: '../../../secret' is not an id")
def id_that_climbs(folder):
    list_of(folder).write_text('a\n../../../secret\n')


@hostile('convert', "train.txt: '/etc/passwd' is not an id")
def id_that_is_absolute(folder):
    list_of(folder).write_text('/etc/passwd\n')


@hostile('convert', "train.txt: '..' is not an id")
def id_that_is_the_parent(folder):
    list_of(folder).write_text('..\n')


@hostile('convert', r"train.txt: 'C:\\Windows\\x' is not an id")
def id_of_another_system(folder):
    list_of(folder).write_text('C:\\Windows\\x\n')


@hostile('convert', r"train.txt: 'a\x1b[2Jb' is not an id")
def id_that_steers_the_terminal(folder):
    list_of(folder).write_text('a\x1b[2Jb\n')


@hostile('convert', "aaaa...' is not an id")
def id_without_end(folder):
    list_of(folder).write_text('a' * 10 ** 7)


@hostile('convert', 'train.txt is not UTF-8 text')
def list_that_is_a_picture(folder):
    list_of(folder).write_bytes(jpeg())


@hostile('convert', 'train.txt is larger than 32 MB')
def list_that_is_huge(folder):
    os.truncate(list_of(folder), 10 ** 12)


@hostile('convert', 'train.txt: is not a file')
def list_that_is_a_pipe(folder):
    list_of(folder).unlink()
    os.mkfifo(list_of(folder))


@hostile('convert', 'a is in both')
def list_that_shares_an_id(folder):
    list_of(folder, 'val').write_text('c\na\n')


# ------------------------------------------------------------------------------------------- images and masks


@hostile('convert', 'b.jpg: is a link that leads out of the data folder')
def image_that_is_a_link_out(folder):
    image_of(folder).rename(folder / 'secret.jpg')
    image_of(folder).symlink_to(folder / 'secret.jpg')


@hostile('convert', 'b.png: is a link that leads out of the data folder')
def mask_that_is_a_link_out(folder):
    mask_of(folder).unlink()
    mask_of(folder).symlink_to('../../../../../../etc/passwd')


@hostile('convert', 'b.jpg: is a link that leads out of the data folder')
def image_that_is_a_link_to_an_endless_device(folder):
    image_of(folder).unlink()
    image_of(folder).symlink_to('/dev/zero')


@hostile('convert', 'b.jpg: is not a file')
def image_that_is_a_pipe(folder):
    image_of(folder).unlink()
    os.mkfifo(image_of(folder))


@hostile('convert', 'b.jpg: is larger than 256 MB')
def image_that_is_huge(folder):
    os.truncate(image_of(folder), 10 ** 12)


@hostile('convert', 'b.jpg: more than 67 million pixels')
def image_that_claims_60000_x_60000(folder):
    image_of(folder).write_bytes(jpeg(claimed=(60000, 60000)))


@hostile('convert', 'b.jpg: more than 67 million pixels')
def image_that_claims_a_bit_too_much(folder):
    image_of(folder).write_bytes(jpeg(claimed=(8192, 8193)))


@hostile('convert', 'b.jpg: image file is truncated')
def image_that_ends_early(folder):
    image_of(folder).write_bytes(image_of(folder).read_bytes()[:-100])


@hostile('convert', 'b.jpg: is not a JPEG file')
def image_that_claims_no_rows(folder):
    image_of(folder).write_bytes(jpeg(claimed=(70, 0)))


@hostile('convert', 'b.jpg: is not a JPEG file')
def image_that_is_a_page(folder):
    image_of(folder).write_text('<html><script>alert(1)</script>')


@hostile('convert', 'b.jpg: is not a JPEG file')
def image_that_is_a_program_of_postscript(folder):
    image_of(folder).write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n')


@hostile('convert', 'b.jpg: has more than 1000 scans')
def image_of_endless_scans(folder):
    image_of(folder).write_bytes(many_scans())


@hostile('convert', 'b.png: more than 67 million pixels')
def mask_that_claims_60000_x_60000(folder):
    mask_of(folder).write_bytes(png(60000, 60000, chunk(b'IDAT', zlib.compress(bytes(99)))))


@hostile('convert', 'b.png: more than 67 million pixels')
def mask_that_is_a_bomb_of_100_kilobytes(folder):
    mask_of(folder).write_bytes(png(10000, 10000, chunk(b'IDAT', zlib.compress(bytes(10001 * 10000)))))


@hostile('convert', 'b.png: ')
def mask_with_a_chunk_that_claims_2_gigabytes(folder):
    mask_of(folder).write_bytes(png(70, 50, chunk(b'IDAT', b'xx', length=2 ** 31 - 1)))


@hostile('convert', 'b.png: Decompressed data too large')
def mask_with_a_bomb_in_its_text(folder):
    bomb = b'Comment\0\0' + zlib.compress(bytes(2 ** 28))
    mask_of(folder).write_bytes(png(70, 50, chunk(b'zTXt', bomb), chunk(b'IDAT', zlib.compress(bytes(71 * 50)))))


@hostile('convert', 'b.png: ')
def mask_with_a_wrong_checksum(folder):
    data = bytearray(mask_of(folder).read_bytes())
    data[data.index(b'IEND') - 5] ^= 1
    mask_of(folder).write_bytes(data)


@hostile('convert', 'b.png: is not a PNG file')
def mask_that_is_a_gif(folder):
    mask_of(folder).write_bytes(encode(np.zeros((50, 70), np.uint8), format='GIF'))


@hostile('convert', 'b.png: class 21 is neither 0..20 nor 255')
def mask_with_a_class_too_high(folder):
    mask_of(folder).write_bytes(encode(np.full((50, 70), 21, np.uint8), format='PNG'))


@hostile('convert', 'b.png: class 65535 is neither')
def mask_with_a_class_that_wraps(folder):
    mask_of(folder).write_bytes(encode(np.full((50, 70), 65535, np.uint16), format='PNG'))


@hostile('convert', 'b.png: colour (1, 2, 3) is not in the VOC colour map')
def mask_in_unknown_colours(folder):
    mask_of(folder).write_bytes(encode(np.full((50, 70, 3), (1, 2, 3), np.uint8), format='PNG'))


@hostile('convert', 'b.png: is 50 x 70 pixels, its image 70 x 50')
def mask_that_lies_on_its_side(folder):
    mask_of(folder).write_bytes(encode(np.zeros((70, 50), np.uint8), format='PNG'))


# ------------------------------------------------------------------------------------------- records


def write_example(folder, leave_out=(), **features):
    """Writes folder/bad.record of one example, black and grey, with some features (without image/) replaced."""
    values = {'encoded': jpeg(), 'label': encode(np.zeros((50, 70), np.uint8), format='PNG'), 'height': 50, 'width': 70,
              'filename': b'black', **features}
    example = tf.train.Example()
    for name, value in values.items():
        if name not in leave_out:
            kind = 'int64_list' if isinstance(value, int) else 'bytes_list'
            getattr(example.features.feature[f'image/{name}'], kind).value.append(value)
    write_payload(folder, example.SerializeToString())


def write_payload(folder, payload, length=None):
    """Writes folder/bad.record with one payload, checksums right, its length perhaps a lie."""
    head = struct.pack('<Q', (len(payload) if length is None else length) % 2 ** 64)
    with open(folder / 'bad.record', 'wb') as file:
        file.write(head + records.masked_crc(head) + payload + records.masked_crc(payload))


@hostile('evaluate', 'bad.record: not a TFRecord file, or damaged after example 0')
def record_of_100_gigabytes(folder):
    write_payload(folder, b'', length=10 ** 11)  # TensorFlow's reader crashes on this


@hostile('train', 'bad.record: not a TFRecord file, or damaged after example 0')
def record_of_a_negative_length(folder):
    write_payload(folder, b'', length=-5)


@hostile('train', 'bad.record: not a TFRecord file, or damaged after example 0')
def record_of_a_sparse_file_of_a_terabyte(folder):
    write_payload(folder, b'', length=10 ** 12 - 16)
    os.truncate(folder / 'bad.record', 10 ** 12)


@hostile('evaluate', 'bad.record: not a TFRecord file, or damaged after example 0')
def record_that_ends_early(folder):
    write_example(folder)
    os.truncate(folder / 'bad.record', os.path.getsize(folder / 'bad.record') - 1)


@hostile('evaluate', 'bad.record: example 0 is something else than tf.train.Example')
def record_of_something_else(folder):
    write_payload(folder, b'\xff' * 100)


@hostile('evaluate', 'bad.record: example 0 is something else than tf.train.Example')
def record_whose_field_is_longer_than_it(folder):
    write_payload(folder, b'\x0a\xff\xff\xff\xff\x07')


@hostile('train', 'bad.record: cannot be read (is not a file); write it with convert')
def record_that_is_a_pipe(folder):
    os.mkfifo(folder / 'bad.record')


@hostile('train', 'bad.record: example 0 lacks the feature image/label')
def example_without_a_label(folder):
    write_example(folder, leave_out=['label'])


@hostile('evaluate', 'bad.record: example 0: the feature image/height is not one int64 value')
def example_whose_height_is_text(folder):
    write_example(folder, height=b'50')


@hostile('train', 'bad.record: example 0: is 70 x -50 pixels')
def example_of_negative_height(folder):
    write_example(folder, height=-50)


@hostile('train', 'bad.record: example 0: its image/encoded is 70 x 50 pixels, by image/width and image/height it is')
def example_of_endless_height(folder):
    write_example(folder, height=2 ** 40)


@hostile('evaluate', 'bad.record: example 0: its image/encoded is 70 x 40 pixels')
def example_whose_height_is_not_its_images(folder):
    write_example(folder, encoded=jpeg(70, 40))


@hostile('train', 'bad.record: example 0: its image/label is 50 x 70 pixels')
def example_whose_label_has_another_size(folder):
    write_example(folder, label=encode(np.zeros((70, 50), np.uint8), format='PNG'))


@hostile('evaluate', 'bad.record: example 0: 60000 x 60000 pixels are more than the ')
def example_of_60000_x_60000(folder):
    write_example(folder, encoded=jpeg(claimed=(60000, 60000)), height=60000, width=60000,
                  label=png(60000, 60000, chunk(b'IDAT', zlib.compress(bytes(99)))))


@hostile('train', 'bad.record: example 0: 60000 x 60000 pixels are more than the 67 million that an image may have')
def example_of_60000_x_60000_to_train_on(folder):
    example_of_60000_x_60000(folder)


@hostile('evaluate', 'bad.record: example 0: its image/label is no PNG')
def example_whose_label_is_a_gif(folder):
    write_example(folder, label=encode(np.zeros((50, 70), np.uint8), format='GIF'))


@hostile('train', 'bad.record: example 0: its image/filename is no text')
def example_whose_name_steers_the_terminal(folder):
    write_example(folder, filename=b'\x1b]0;mine\x07')


@hostile('evaluate', 'bad.record: cannot be read or decoded (assertion failed: [a value that is no class in the label')
def label_of_a_class_too_high(folder):
    write_example(folder, label=encode(np.full((50, 70), 99, np.uint8), format='PNG'))


@hostile('train', 'bad.record: cannot be read or decoded (assertion failed: [a value that is no class in the label')
def label_of_a_class_too_high_to_train_on(folder):
    label_of_a_class_too_high(folder)


@hostile('evaluate', 'bad.record: cannot be read or decoded (')
def example_whose_image_ends_early(folder):
    write_example(folder, encoded=jpeg(70, 50, quality=95)[:300])


@hostile('evaluate', 'bad.record: example 0: its image/encoded has more than 1000 scans')
def example_of_endless_scans(folder):
    write_example(folder, encoded=many_scans(), height=2600, width=2600,
                  label=encode(np.zeros((2600, 2600), np.uint8), format='PNG'))


# ------------------------------------------------------------------------------------------- photos


@hostile('predict', 'photo: more than 178 million pixels; scale it down')
def photo_of_60000_x_60000(folder):
    (folder / 'photo').write_bytes(png(60000, 60000, chunk(b'IDAT', zlib.compress(bytes(99)))))


@hostile('predict', 'photo: more than 178 million pixels; scale it down')
def photo_that_is_a_tiff_of_a_billion_pixels(folder):
    data = bytearray(encode(np.zeros((1, 1), np.uint8), format='TIFF'))
    for tag in (256, 257):  # width and height
        value = data.index(struct.pack('<H', tag), 8) + 8
        data[value:value + 4] = struct.pack('<I', 2 ** 15)
    (folder / 'photo').write_bytes(data)


@hostile('predict', 'photo: ')
def photo_with_a_chunk_that_claims_2_gigabytes(folder):
    (folder / 'photo').write_bytes(png(70, 50, chunk(b'IDAT', b'xx', length=2 ** 31 - 1)))


@hostile('predict', 'photo: is not a file')
def photo_that_is_a_pipe(folder):
    os.mkfifo(folder / 'photo')


@hostile('predict', 'photo: not an image')
def photo_that_is_a_program_of_postscript(folder):
    (folder / 'photo').write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n')


@hostile('predict', 'photo: image file is truncated')
def photo_that_ends_early(folder):
    (folder / 'photo').write_bytes(jpeg(700, 500)[:-100])


# ------------------------------------------------------------------------------------------- checkpoints


def table(entries):
    """A table of LevelDB, as a checkpoint's index is one, of (key, value) pairs; its checksums are right."""
    data = b''

    def add(block_entries):
        nonlocal data
        content = b''.join(b'\0' + records._varint(len(key)) + records._varint(len(value)) + key + value
                           for key, value in block_entries) + struct.pack('<II', 0, 1)
        handle = records._varint(len(data)) + records._varint(len(content))
        data += content + b'\0' + records.masked_crc(content + b'\0')
        return handle

    index = add([(b'\xff', add(entries))])
    return data + (add([]) + index).ljust(40, b'\0') + struct.pack('<Q', 0xdb4775248b80fb57)


def write_checkpoint(folder, **fields):
    """Writes folder/bad.ckpt with one tensor, [1, 1, 2] unless `fields` of its BundleEntryProto say otherwise."""
    from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto
    entry = BundleEntryProto(**{'dtype': 1, 'size': 8, **fields})
    if 'shape' not in fields:
        entry.shape.dim.add(size=2)
    header = BundleHeaderProto(num_shards=1)
    header.version.producer = 1
    (folder / 'bad.ckpt.index').write_bytes(
        table([(b'', header.SerializeToString()), (b'vgg_16/fc6/weights', entry.SerializeToString())]))
    (folder / 'bad.ckpt.data-00000-of-00001').write_bytes(bytes(8))


def shape_of(*sizes):
    return {'dim': [{'size': size} for size in sizes]}


DAMAGED = 'bad.ckpt: not a TensorFlow checkpoint, or damaged; take another'


@hostile('predict', DAMAGED)
def checkpoint_of_a_negative_shape(folder):
    write_checkpoint(folder, shape=shape_of(-5))  # on this and the next three TensorFlow's reader ends the process


@hostile('predict', DAMAGED)
def checkpoint_of_an_endless_shape(folder):
    write_checkpoint(folder, shape=shape_of(2 ** 40, 2 ** 40, 2 ** 40))


@hostile('predict', DAMAGED)
def checkpoint_of_300_dimensions(folder):
    write_checkpoint(folder, shape=shape_of(*[1] * 300), size=4)


@hostile('evaluate', DAMAGED)
def checkpoint_of_an_unknown_type(folder):
    write_checkpoint(folder, dtype=999)


@hostile('evaluate', DAMAGED)
def checkpoint_of_impossible_slices(folder):
    write_checkpoint(folder, slices=[{'extent': [{'start': -5, 'length': -7}]}])


@hostile('train', DAMAGED)
def checkpoint_whose_index_is_text(folder):
    write_checkpoint(folder)
    (folder / 'bad.ckpt.index').write_text('not an index' * 10)


@hostile('train', DAMAGED)
def checkpoint_whose_index_ends_early(folder):
    write_checkpoint(folder)
    os.truncate(folder / 'bad.ckpt.index', 60)


@hostile('predict', 'bad.ckpt: variable ')
def checkpoint_of_another_network(folder):
    write_checkpoint(folder)


@hostile('predict', DAMAGED)
def checkpoint_that_is_a_pickle(folder):
    (folder / 'bad.ckpt').write_bytes(pickle.dumps(Planted(str(folder / 'planted'))))


def write_old_checkpoint(folder):
    """Writes folder/bad.ckpt in the old form, one file, as the published weights have it; returns its path."""
    path = folder / 'bad.ckpt'
    with tf.Session() as session:
        variable = tf.Variable(tf.random.uniform([9000]), name='vgg_16/fc6/weights')
        session.run(variable.initializer)
        saver = tf.train.Saver([variable], write_version=tf.train.SaverDef.V1)
        saver.save(session, str(path), write_meta_graph=False)
    return path


@hostile('predict', 'bad.ckpt: variable vgg_16/fc8/weights is missing')
def old_checkpoint_of_another_network(folder):
    write_old_checkpoint(folder)


@hostile('train', DAMAGED)
def old_checkpoint_that_ends_early(folder):
    path = write_old_checkpoint(folder)
    os.truncate(path, path.stat().st_size // 2)


@hostile('evaluate', DAMAGED)
def old_checkpoint_with_a_wrong_checksum(folder):
    path = write_old_checkpoint(folder)
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)


@hostile('predict', DAMAGED)
def checkpoint_of_random_bytes(folder):
    (folder / 'bad.ckpt').write_bytes(np.random.RandomState(0).bytes(10 ** 5))


@hostile('evaluate', DAMAGED)
def checkpoint_that_is_a_pipe(folder):
    os.mkfifo(folder / 'bad.ckpt')


# ------------------------------------------------------------------------------------------- weight files


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


# ------------------------------------------------------------------------------------------- all of them


PROGRAMS = {'convert': convert_fcn_dataset, 'train': train, 'evaluate': evaluate, 'predict': predict}


def make_argv(program, folder, run_folder, record):
    """The flags that lead a program to the input in `folder`: all else is sound."""
    bad_record = folder / 'bad.record'
    dataset_path = bad_record if os.path.lexists(bad_record) else record
    bad_checkpoint = folder / 'bad.ckpt'
    is_checkpoint = any(name.startswith('bad.ckpt') for name in os.listdir(folder))
    checkpoint = bad_checkpoint if is_checkpoint else run_folder / 'train'
    out = folder / 'out'
    return [str(word) for word in {
        'convert': ['--data_dir', folder / 'VOC', '--output_dir', out],
        'train': ['--dataset_train', dataset_path, '--dataset_val', record, '--output_dir', out, '--fc_channels', 8,
                  '--batch_size', 1, '--crop_size', 32, '--max_steps', 1, '--val_steps', 0,
                  *(['--checkpoint_path', checkpoint] if is_checkpoint else [])],
        'evaluate': ['--checkpoint_path', checkpoint, '--dataset', dataset_path, '--output_dir', out],
        'predict': ['--checkpoint_path', checkpoint, '--images', folder / 'photo' if not is_checkpoint else __file__,
                    '--output_dir', out],
    }[program]]


def run(program, argv, monkeypatch, capfd):
    """Runs a program's main as its script does; returns its exit code and the lines on stderr."""
    monkeypatch.setattr(sys, 'argv', [f'{program.__name__}.py', *argv])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        utils.run_program(program.main)
    code, lines = ended.value.code, capfd.readouterr().err.splitlines()
    return (1, [*lines, code]) if isinstance(code, str) else (code or 0, lines)


def peak_memory(reset=False):
    """The most memory, bytes, that this process has held since the last reset."""
    if reset:
        with open('/proc/self/clear_refs', 'w') as file:
            file.write('5')
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith('VmHWM'))


def files_below(folder):
    return sorted(os.path.join(here, name) for here, _, names in os.walk(folder) for name in names)


@pytest.mark.parametrize('make, program, line, code', CASES)
def test_one_line_little_memory_nothing_left(make, program, line, code, folder, trained, record, monkeypatch, capfd):
    make(folder)
    argv = make_argv(program, folder, trained, record)
    before = peak_memory(reset=True)
    ended_with, lines = run(PROGRAMS[program], argv, monkeypatch, capfd)
    assert ended_with == code
    saying = [each for each in lines if line in each]
    assert len(saying) == 1, '\n'.join(lines)
    assert len(saying[0]) < 500 and '\x1b' not in saying[0]
    assert not any('Traceback' in each for each in lines)
    assert peak_memory() - before < MEMORY_BOUND
    results = [path for path in files_below(folder / 'out') if 'events.out' not in path and not path.endswith(
        ('settings.json', 'log.csv', 'lock'))]
    assert results == [] and not (folder / 'planted').exists()


def test_the_table_is_long():
    assert len(CASES) >= 40 and len({case.id for case in CASES}) == len(CASES)


def test_the_planted_pickle_would_tell(tmp_path):
    pickle.loads(pickle.dumps(Planted(str(tmp_path / 'planted')))).close()
    assert (tmp_path / 'planted').exists()


# ------------------------------------------------------------------------------------------- the largest that is taken


def test_converting_the_largest_picture_is_bounded(folder):
    """A mask and a JPEG of 67 million pixels each, 0.1 and 1 MB of file: with one thread, 1 GB is enough."""
    image_of(folder).write_bytes(jpeg(8192, 8192, progressive=True))
    mask_of(folder).write_bytes(encode(np.zeros((8192, 8192), np.uint8), format='PNG'))
    # Not ru_maxrss, in which this process, from which that one is forked, counts too.
    program = ('import sys, convert_fcn_dataset; convert_fcn_dataset.main(sys.argv[1:]); '
               'print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])')
    done = subprocess.run([sys.executable, '-c', program, '--data_dir', folder / 'VOC', '--output_dir', folder / 'out',
                           '--num_workers', '1'], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) < 2 ** 20  # kilobytes
    assert batches.count_examples(str(folder / 'out' / 'fcn_train.record')) == 2


# ------------------------------------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path):
    """Function of a size in kB to the folder of a file system of that size, empty."""
    with contextlib.ExitStack() as disks:
        def mount(kilobytes):
            folder = tmp_path / 'disk'
            folder.mkdir()
            disks.enter_context(mount_disk(folder, kilobytes << 10))
            return folder

        yield mount


def test_a_full_disk_under_the_records(folder, small_disk, monkeypatch, capfd):
    disk = small_disk(4)
    argv = ['--data_dir', str(folder / 'VOC'), '--output_dir', str(disk)]
    code, lines = run(convert_fcn_dataset, argv, monkeypatch, capfd)
    assert code == 1 and os.listdir(disk) == []
    assert lines[-1] == ('convert_fcn_dataset.py: error: cannot write fcn_train.record.json (No space left on device): '
                         'free space or name another --output_dir')


@pytest.mark.parametrize('fill, left, named', [
    (4, ['fill'], 'photo.png'), (0, ['fill', 'photo.png'], 'photo_overlay.jpg')])
def test_a_full_disk_under_the_pictures(fill, left, named, folder, trained, small_disk, monkeypatch, capfd):
    disk = small_disk(4)
    (disk / 'fill').write_bytes(bytes(1024 * fill))
    (folder / 'photo').write_bytes(jpeg(3000, 300))
    argv = ['--checkpoint_path', str(trained / 'train'), '--images', str(folder / 'photo'), '--output_dir', str(disk),
            '--max_side', '500']
    code, lines = run(predict, argv, monkeypatch, capfd)
    assert code == 1 and sorted(os.listdir(disk)) == left
    assert lines[-1] == (f'predict.py: error: {disk / named}: cannot be written (No space left on device); free some '
                         'space, or name another --output_dir')


def test_a_full_disk_under_the_export(trained, small_disk, monkeypatch, capfd):
    disk = small_disk(4000)
    argv = ['--checkpoint_path', str(trained / 'train'), '--export', str(disk)]
    code, lines = run(predict, argv, monkeypatch, capfd)
    assert code == 1 and os.listdir(disk) == []
    assert lines[-1].startswith(f'predict.py: error: --export {disk}: cannot be written (')
    assert 'No space left on device' in lines[-1] and len(lines[-1]) < 400
