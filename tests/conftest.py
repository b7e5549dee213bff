"""What several tests share: small records, whose images are painted from their own labels, and small runs."""
import contextlib
import csv
import errno
import io
import os
import resource
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import lives
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from PIL import Image

import train
import utils
import vgg
from datasets import classes, records
from inference import crf
from inference.predictor import build_predictor, load_predictor
from inference.weights import find_checkpoint, network_variables
from report import page

os.environ['CUDA_VISIBLE_DEVICES'] = '-1'  # tests compute on the CPU, but for those that are about GPUs
os.environ['TF_ONEDNN_ASSUME_FROZEN_WEIGHTS'] = '0'  # the programs that predict run in one process with trainings

CAMVID = classes.make_class_set(('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign_symbol', 'fence', 'car',
                                 'pedestrian', 'bicyclist'))  # none is a background
SIZES = ((70, 50), (64, 64), (40, 90), (33, 47), (100, 60))  # height, width


FULL_BLOCKS = vgg.BLOCKS
SMALL_BLOCKS = tuple((block, 1, channels // 16) for block, _, channels in vgg.BLOCKS)


@pytest.fixture(scope='session', autouse=True)
def small_network():
    """VGG16 has 5 of its 13 convolutions, with a sixteenth of the channels: a step takes 10 ms, a checkpoint 2 MB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg, 'BLOCKS', SMALL_BLOCKS)
        yield


@pytest.fixture
def full_network(monkeypatch):
    """VGG16 is complete, for tests of the network itself."""
    monkeypatch.setattr(vgg, 'BLOCKS', FULL_BLOCKS)


# ------------------------------------------------------------------------------------------- full disks


@contextlib.contextmanager
def limit_file_size(size):
    """Files may grow to so many bytes, as on a full disk. No fixture: what pytest prints may go to a file as well."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def mount_disk(folder, size):
    """A file system of so many bytes in a folder; skips the test where none may be made."""
    made = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)], capture_output=True,
                          text=True)
    if made.returncode:
        pytest.skip(f'no small file system can be mounted here: {made.stderr.strip()}')
    try:
        yield
    finally:
        subprocess.run(['umount', '-l', str(folder)], check=True)


# Both kinds of full disk, and the error number of each.
full_disk = pytest.mark.parametrize('limit, number', [(lambda folder, size: limit_file_size(size), errno.EFBIG),
                                                      (mount_disk, errno.ENOSPC)], ids=['file size', 'disk'])


# ------------------------------------------------------------------------------------------- records


def draw_pair(height, width, number):
    """A label of 16-pixel blocks in classes 0..20 and 255, and a grey image of brightness 12 * class (void: 255)."""
    blocks = np.random.RandomState(number).choice([*range(21), 255], size=(height // 16 + 1, width // 16 + 1))
    label = np.kron(blocks, np.ones((16, 16), int))[:height, :width].astype(np.uint8)
    brightness = np.where(label == 255, 255, label.astype(int) * 12).astype(np.uint8)
    return np.repeat(brightness[:, :, np.newaxis], 3, axis=2), label


def draw_photo(height, width, seed=0):
    """A smooth random picture, uint8 RGB [height, width, 3]."""
    coarse = np.random.RandomState(seed).randint(0, 256, (4, 6, 3)).astype(np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def with_orientation(number):
    """EXIF with an orientation, 1 to 8."""
    exif = Image.Exif()
    exif[0x112] = number
    return exif


def encode(pixels, **options):
    """Bytes of an image file; options are Pillow's."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, **options)
    return file.getvalue()


def write_examples(path, examples):
    """Writes serialised examples to a record; returns its path as str."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for example in examples:
            writer.write(example)
    return str(path)


def write_record(path, pairs):
    """Writes (image, label) pairs as the examples 'image0', 'image1', ... of a record; returns the path as str."""
    return write_examples(path, [
        records.make_example(f'image{number}'.encode(), encode(image, format='JPEG', quality=95),
                             encode(label, format='PNG'), *label.shape)
        for number, (image, label) in enumerate(pairs)])


def write_png_record(path, pairs):
    """As write_record, without loss: the images are PNGs as well."""
    return write_examples(path, [
        records.make_example(f'image{number}'.encode(), encode(image, format='PNG'),
                             encode(label.astype(np.uint8), format='PNG'), *label.shape, b'png')
        for number, (image, label) in enumerate(pairs)])


def load_network(session, checkpoint):
    """A Predictor of the checkpoint's network, in the session's graph."""
    return load_predictor(session, checkpoint, train.fcn, train.read_network(checkpoint))


def randomize_pool3(session, seed, spread):
    """Gives the scores of pool3 random weights, so that the network finds many classes, with many borders."""
    [kernel] = tf.trainable_variables('vgg_16/fc8/conv_pool3/weights')
    kernel.load(np.random.RandomState(seed).normal(0, spread, kernel.shape.as_list()), session)


@pytest.fixture(autouse=True)
def interrupts():
    """Ctrl-C as at a terminal: a shell that starts the tests in the background has it ignored, and the programs' import
    of TensorFlow changes it for good."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope='session')
def pairs():
    return [draw_pair(height, width, number) for number, (height, width) in enumerate(SIZES)]


@pytest.fixture(scope='session')
def record(tmp_path_factory, pairs):
    return write_record(tmp_path_factory.mktemp('records') / 'small.record', pairs)


# ------------------------------------------------------------------------------------------- runs


def short_run(record, folder, *more):
    """Flags of a run of a narrow network on small crops."""
    return ['--dataset_train', str(record), '--dataset_val', str(record), '--output_dir', str(folder),
            '--fc_channels', '8', '--batch_size', '2', '--crop_size', '32', '--val_steps', '0', '--summary_steps', '0',
            *map(str, more)]


def read_log(folder, name='log.csv'):
    """The rows of a run's table, list of dict of column to str."""
    with open(folder / 'train' / name, newline='') as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def smaller():
    """Makes runs in this process quick: a thread draws the pictures, not a process, and there is no results page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crf, 'start_processes', ThreadPoolExecutor)
        patch.setattr(page, 'write_page', no_page)
        patch.setattr(train, 'write_page', no_page)
        yield


def no_page(folder):
    return f'{folder}/index.html'


@pytest.fixture
def small_runs():
    with smaller():
        yield


@pytest.fixture(scope='session')
def trained(tmp_path_factory, record):
    """The run folder of a small network after 3 steps; tests must not write to it."""
    folder = tmp_path_factory.mktemp('runs') / 'trained'
    with tf.Graph().as_default():
        train.main(short_run(record, folder, '--max_steps', 3, '--val_steps', 2, '--log_steps', 2, '--save_steps', 1,
                             '--summary_steps', 3))
    return folder


@pytest.fixture(scope='session')
def wild(trained, tmp_path_factory):
    """A checkpoint of the narrow network with randomize_pool3."""
    path = str(tmp_path_factory.mktemp('wild') / 'wild.ckpt')
    with tf.Graph().as_default(), tf.Session() as session:
        load_network(session, find_checkpoint(str(trained / 'train')))
        randomize_pool3(session, seed=3, spread=0.03)
        tf.train.Saver(network_variables()).save(session, path, write_meta_graph=False)
    return path


@pytest.fixture(scope='session')
def started_server():
    with lives.start_server() as server:
        yield server


@pytest.fixture
def server(started_server):
    """A server for lives.Life; what a failed test left running in it is killed."""
    yield started_server
    if started_server.life:
        started_server.life.end()


@pytest.fixture(scope='session')
def camvid_record(tmp_path_factory, pairs):
    """A record of CamVid's classes, with its side file."""
    own = [(image, np.where(label == 255, 255, label % 11).astype(np.uint8)) for image, label in pairs]
    record = write_record(tmp_path_factory.mktemp('camvid') / 'camvid.record', own)
    pixels = np.bincount(np.concatenate([label.ravel() for _, label in own]), minlength=256)
    classes.save_side_file(classes.side_file(record), CAMVID, len(own), pixels)
    return record


@pytest.fixture(scope='session')
def camvid_run(tmp_path_factory):
    """The run folder of a narrow network of CamVid's classes at random; tests must not write to it."""
    folder = tmp_path_factory.mktemp('runs') / 'camvid'
    (folder / 'train').mkdir(parents=True)
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(0)
        build_predictor(train.fcn, train.Network(fc_channels=8, number_of_classes=11))
        session.run(tf.global_variables_initializer())
        randomize_pool3(session, seed=0, spread=0.1)
        saver = tf.train.Saver(network_variables(), save_relative_paths=True)
        saver.save(session, str(folder / 'train' / 'model.ckpt'), 5, write_meta_graph=False)
    utils.save_json(str(folder / 'train' / 'settings.json'), {'classes': classes.as_json(CAMVID)})
    return folder


@pytest.fixture(autouse=True)
def fresh_graph():
    """Each test builds into a graph of its own."""
    with tf.Graph().as_default():
        yield
