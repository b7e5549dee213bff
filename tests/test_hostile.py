"""Damaged and hostile input of every kind: each ends in one clear line, within bounded memory, and leaves nothing.

The table: a maker's name says what is wrong, its decorator the program, the line expected and the exit code.
"""
import contextlib
import os
import pickle
import struct
import sys
import zlib

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import draw_pair, encode, mount_disk, write_examples

import convert_fcn_dataset
import evaluate
import predict
import train
import utils
from datasets import records

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


# ------------------------------------------------------------------------------------------- data sets


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


@hostile('convert', 'b.png: is a link that leads out of the data folder')
def mask_that_is_a_link_out(folder):
    mask_of(folder).unlink()
    mask_of(folder).symlink_to('../../../../../../etc/passwd')


@hostile('convert', 'b.jpg: is a link that leads out of the data folder')
def image_that_is_a_link_to_an_endless_device(folder):
    image_of(folder).unlink()
    image_of(folder).symlink_to('/dev/zero')


@hostile('convert', 'b.jpg: is larger than 256 MB')
def image_that_is_huge(folder):
    os.truncate(image_of(folder), 10 ** 12)


@hostile('convert', 'b.jpg: more than 67 million pixels')
def image_that_claims_60000_x_60000(folder):
    image_of(folder).write_bytes(jpeg(claimed=(60000, 60000)))


@hostile('convert', 'b.png: more than 67 million pixels')
def mask_of_100_million_pixels_in_100_kilobytes(folder):
    mask_of(folder).write_bytes(png(10000, 10000, chunk(b'IDAT', zlib.compress(bytes(10001 * 10000)))))


@hostile('convert', 'b.jpg: is not a JPEG file')
def image_that_is_a_page(folder):
    image_of(folder).write_text('<html><script>alert(1)</script>')


# ------------------------------------------------------------------------------------------- records


def write_example(folder, **features):
    """Writes folder/bad.record of one example, black and grey, with some features (without image/) replaced."""
    values = {'filename': b'black', 'image_bytes': jpeg(), 'height': 50, 'width': 70,
              'label_png_bytes': encode(np.zeros((50, 70), np.uint8), format='PNG'), **features}
    write_examples(folder / 'bad.record', [records.make_example(**values)])


@hostile('evaluate', 'bad.record: not a TFRecord file, or damaged after example 0')
def record_that_ends_early(folder):
    write_example(folder)
    os.truncate(folder / 'bad.record', os.path.getsize(folder / 'bad.record') - 1)


@hostile('train', 'bad.record: cannot be read (is not a file); write it with convert')
def record_that_is_a_pipe(folder):
    os.mkfifo(folder / 'bad.record')


@hostile('evaluate', 'bad.record: example 0: its image/encoded is 70 x 40 pixels')
def example_whose_height_is_not_its_images(folder):
    write_example(folder, image_bytes=jpeg(70, 40))


@hostile('evaluate', 'bad.record: example 0: 60000 x 60000 pixels are more than the ')
def example_of_60000_x_60000(folder):
    write_example(folder, image_bytes=jpeg(claimed=(60000, 60000)), height=60000, width=60000)


@hostile('train', 'bad.record: example 0: 60000 x 60000 pixels are more than the 67 million that an image may have')
def example_of_60000_x_60000_to_train_on(folder):
    example_of_60000_x_60000(folder)


@hostile('evaluate', 'bad.record: cannot be read or decoded (assertion failed: [a value that is not a class in the')
def label_of_a_class_too_high(folder):
    write_example(folder, label_png_bytes=encode(np.full((50, 70), 99, np.uint8), format='PNG'))


@hostile('train', 'bad.record: cannot be read or decoded (assertion failed: [a value that is not a class in the')
def label_of_a_class_too_high_to_train_on(folder):
    label_of_a_class_too_high(folder)


@hostile('evaluate', 'bad.record: cannot be read or decoded (')
def example_whose_image_ends_early(folder):
    write_example(folder, image_bytes=encode(draw_pair(50, 70, 0)[0], format='JPEG')[:-100])


# ------------------------------------------------------------------------------------------- photos


@hostile('predict', 'photo: 60000 x 60000 pixels need ')
def photo_of_60000_x_60000(folder):
    (folder / 'photo').write_bytes(png(60000, 60000, chunk(b'IDAT', zlib.compress(bytes(99)))))


@hostile('predict', 'photo: ')  # needs more memory than there is, or ends early
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


def write_checkpoint(folder, version=tf.train.SaverDef.V2):
    """Writes folder/bad.ckpt with one variable; V1 is one file, as the published weights are. Returns its path."""
    path = folder / 'bad.ckpt'
    with tf.Session() as session:
        variable = tf.Variable(tf.random.uniform([9000]), name='vgg_16/fc6/weights')
        session.run(variable.initializer)
        tf.train.Saver([variable], write_version=version).save(session, str(path), write_meta_graph=False)
    return path


DAMAGED = 'bad.ckpt: not a TensorFlow checkpoint, or damaged; take another'


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


@hostile('predict', 'bad.ckpt: variable vgg_16/fc8/weights is missing')
def old_checkpoint_of_another_network(folder):
    write_checkpoint(folder, tf.train.SaverDef.V1)


@hostile('train', DAMAGED)
def old_checkpoint_that_ends_early(folder):
    path = write_checkpoint(folder, tf.train.SaverDef.V1)
    os.truncate(path, path.stat().st_size // 2)


@hostile('evaluate', DAMAGED)
def old_checkpoint_with_a_wrong_checksum(folder):
    path = write_checkpoint(folder, tf.train.SaverDef.V1)
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)


@hostile('predict', DAMAGED)
def checkpoint_of_random_bytes(folder):
    (folder / 'bad.ckpt').write_bytes(np.random.RandomState(0).bytes(10 ** 5))


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
    assert len(CASES) >= 20 and len({case.id for case in CASES}) == len(CASES)


def test_the_planted_pickle_would_tell(tmp_path):
    pickle.loads(pickle.dumps(Planted(str(tmp_path / 'planted')))).close()
    assert (tmp_path / 'planted').exists()


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
    assert lines[-1] == (f'convert_fcn_dataset.py: error: {disk}/fcn_val.record: No space left on device; free some '
                         'space and start again')


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


@pytest.mark.slow
def test_a_full_disk_under_the_export(trained, small_disk, monkeypatch, capfd):
    disk = small_disk(100)
    argv = ['--checkpoint_path', str(trained / 'train'), '--export', str(disk)]
    code, lines = run(predict, argv, monkeypatch, capfd)
    assert code == 1 and os.listdir(disk) == []
    assert lines[-1].startswith(f'predict.py: error: --export {disk}: cannot be written (')
    assert 'No space left on device' in lines[-1] and len(lines[-1]) < 400
