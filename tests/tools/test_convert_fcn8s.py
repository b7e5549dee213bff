"""Tests of tools/convert_fcn8s.py on random narrow networks, against what OpenCV computes from the same files.

caffe_files.py writes OpenCV's outputs; its docstring has the command.
"""
import json
import os
import struct
import subprocess
import sys

import caffe_files
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import read_log

import evaluate
import predict
import train
import utils
import vgg
from datasets import classes
from inference import weights
from tools import convert_fcn8s


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(vgg, 'BLOCKS', caffe_files.BLOCKS)


def convert(folder, blobs):
    """The run folder, as str, of a network that is written to a file first."""
    caffe_files.write_caffemodel(folder / 'a.caffemodel', blobs)
    convert_fcn8s.main(['--source', str(folder / 'a.caffemodel'), '--output_dir', str(folder / 'fcn8s')])
    return str(folder / 'fcn8s')


@pytest.mark.parametrize('seed', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_scores_are_those_of_opencv(tmp_path, seed):
    """Interior: 40 pixels from the upper and left edges, and 112 from the others, beyond which the image is filled up
    to multiples of 32. At the edges, cells differ."""
    checkpoint = weights.find_checkpoint(convert(tmp_path, caffe_files.random_blobs(seed)))
    expected = np.load(caffe_files.OUTPUTS)
    with tf.Graph().as_default(), tf.Session() as session:
        image = tf.placeholder(tf.uint8, [1, None, None, 3])
        logits = train.fcn(image, train.read_network(checkpoint))
        weights.restore(session, checkpoint, weights.network_variables())
        for height, width in caffe_files.SIZES:
            texture = caffe_files.draw_texture(height, width, seed)
            scores = session.run(logits, {image: texture[np.newaxis]})[0]
            name = f'{seed}_{height}x{width}'
            labels, largest = expected[f'{name}_classes'], expected[f'{name}_largest']
            share = (scores.argmax(axis=-1) == labels).mean()
            rows, columns = (np.arange(0, side, caffe_files.STEP) for side in (height, width))
            rows, columns = (kept[(kept >= 40) & (kept < kept_end)] for kept, kept_end in
                             ((rows, height - 112), (columns, width - 112)))
            kept = expected[f'{name}_scores'][np.ix_(rows // caffe_files.STEP, columns // caffe_files.STEP)]
            difference = np.abs(scores[np.ix_(rows, columns)] - kept).max() / largest
            print(f'{name}: interior to {difference:.1e} of the largest score, {share:.2%} of all pixels equal')
            assert kept.size > 100 and difference < 1e-3
            assert share > 0.96
            assert np.bincount(labels.ravel()).max() < 0.6 * labels.size  # otherwise equal classes would mean little


def test_the_run_folder(tmp_path):
    blobs = caffe_files.random_blobs(1)
    folder = convert(tmp_path, blobs)
    assert sorted(os.listdir(f'{folder}/train')) == ['checkpoint', 'model.ckpt-0.data-00000-of-00001',
                                                     'model.ckpt-0.index', 'settings.json']
    checkpoint = weights.find_checkpoint(folder)
    assert train.read_network(checkpoint) == train.Network(fc_channels=16, border=99,
                                                           border_colour=[122.67892, 116.66877, 104.00699])
    assert weights.find_classes(checkpoint) == classes.VOC
    with open(f'{folder}/train/settings.json') as file:
        assert json.load(file)['vgg_weights_from'] == str(tmp_path / 'a.caffemodel')
    stored = tf.train.load_checkpoint(checkpoint)
    kernel, bias = blobs['conv1_1']
    for channel in range(3):  # RGB from BGR
        np.testing.assert_array_equal(stored.get_tensor('vgg_16/conv1/conv1_1/weights')[1, 2, channel],
                                      kernel[:, 2 - channel, 1, 2])
    # The layer gives the same for a grey of 100, each library with its own mean.
    theirs = (kernel * np.subtract(100, caffe_files.BGR_MEAN)[:, np.newaxis, np.newaxis]).sum((1, 2, 3)) + bias
    ours = (stored.get_tensor('vgg_16/conv1/conv1_1/weights') * np.subtract(100, vgg.RGB_MEAN)[:, np.newaxis]).sum(
        (0, 1, 2)) + stored.get_tensor('vgg_16/conv1/conv1_1/biases')
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)
    with pytest.raises(utils.UserError, match='fcn8s: holds a run already; remove it, or name another'):
        convert(tmp_path, blobs)


def test_blobs_of_old_files():
    """Four numbers for a shape, and values one by one instead of packed: field 5, wire type 5."""
    blob = convert_fcn8s.message_class('BlobProto').FromString(
        b'\x08\x01\x10\x01\x18\x01\x20\x03' + b''.join(b'\x2d' + struct.pack('<f', value) for value in (1, 2, 3)))
    np.testing.assert_array_equal(convert_fcn8s.read_blob(blob), np.float32([[[[1, 2, 3]]]]))
    blobs = change(other=[np.ones(3, np.float32)])  # a layer that is not used
    old = {name: [kernel, *(bias.reshape(1, 1, 1, -1) for bias in others)] for name, (kernel, *others) in blobs.items()}
    new, converted = (convert_fcn8s.convert_blobs(each, 'a.caffemodel') for each in (blobs, old))
    assert all(np.array_equal(new[name], converted[name]) for name in new)


@pytest.mark.parametrize('change_bytes', [lambda whole: whole[:-100], lambda whole: whole[:200],
                                          lambda _: b'<html></html>'])
def test_a_file_that_is_damaged(tmp_path, change_bytes):
    caffe_files.write_caffemodel(tmp_path / 'whole', {'conv1_1': [np.ones((8, 3, 3, 3), np.float32)]})
    (tmp_path / 'a.caffemodel').write_bytes(change_bytes((tmp_path / 'whole').read_bytes()))
    with pytest.raises(utils.UserError, match='a.caffemodel: is not a caffemodel, or not complete; remove it and '):
        convert_fcn8s.main(['--source', str(tmp_path / 'a.caffemodel'), '--output_dir', str(tmp_path / 'fcn8s')])
    assert not (tmp_path / 'fcn8s').exists()


def change(**changed):
    """The layers of a random network but for some, which have other arrays, or are left out for None."""
    blobs = caffe_files.random_blobs(1) | changed
    return {layer: arrays for layer, arrays in blobs.items() if arrays is not None}


@pytest.mark.parametrize('blobs, words', [
    (lambda: {}, r'weights of conv1_1 are missing or not \[3, 3, 3, \d+\]; give fcn8s-heavy-pascal.caffemodel'),
    (lambda: change(upscore8=None), 'weights of upscore8 are missing'),
    (lambda: change(fc7=[np.ones((16, 16, 1, 1))]), 'biases of fc7 are missing'),
    (lambda: change(score_fr=[np.ones((60, 16, 1, 1)), np.ones(60)]),
     r'weights of score_fr are missing or not \[1, 1, 16, 21\]'),
    (lambda: change(scale_pool4=[np.ones(16)]), 'is the "at once" model')])
def test_a_file_of_another_network(blobs, words):
    with pytest.raises(utils.UserError, match=f'^a.caffemodel: {words}'):
        convert_fcn8s.convert_blobs(blobs(), 'a.caffemodel')


@pytest.mark.slow
def test_a_damaged_file_ends_the_program_in_one_line(tmp_path):
    (tmp_path / 'a.caffemodel').write_bytes(b'\xff' * 100)
    done = subprocess.run([sys.executable, 'tools/convert_fcn8s.py', '--source', str(tmp_path / 'a.caffemodel')],
                          capture_output=True, text=True, cwd=os.path.dirname(train.__file__))
    assert done.returncode == 1 and done.stdout == ''
    assert done.stderr == (f'convert_fcn8s.py: error: {tmp_path}/a.caffemodel: is not a caffemodel, or not complete; '
                           'remove it and fetch it again\n')


@pytest.mark.slow
def test_the_programs_take_the_run_folder(tmp_path, record, capsys):
    """predict.py, evaluate.py, and ten steps of train.py, whose own run has no border."""
    folder = convert(tmp_path, caffe_files.random_blobs(1))
    utils.save_image(str(tmp_path / 'photo.png'), caffe_files.draw_texture(186, 250, 1))
    predict.main(['--checkpoint_path', folder, '--images', str(tmp_path / 'photo.png'), '--output_dir',
                  str(tmp_path / 'predictions')])
    predicted = np.array(utils.Image.open(tmp_path / 'predictions' / 'photo.png'))
    assert (predicted == np.load(caffe_files.OUTPUTS)['1_186x250_classes']).mean() > 0.96

    evaluate.main(['--checkpoint_path', folder, '--dataset', record])
    with open(f'{folder}/evaluation/metrics.json') as file:
        metrics = json.load(file)
    assert metrics['images'] == 5 and metrics['scorecard']['settings']['border'] == 99
    assert os.path.exists(f'{folder}/index.html')

    capsys.readouterr()
    train.main(['--checkpoint_path', folder, '--output_dir', str(tmp_path / 'tuned'), '--dataset_train', record,
                '--dataset_val', record, '--fc_channels', '16', '--batch_size', '2', '--crop_size', '64',
                '--max_steps', '10', '--val_steps', '10', '--log_steps', '1', '--learning_rate', '1e-3'])
    assert f'network restored from {folder}/train/model.ckpt-0\n' in capsys.readouterr().out
    losses = [float(row['loss_per_pixel']) for row in read_log(tmp_path / 'tuned')]
    assert len(losses) == 10 and np.mean(losses[-3:]) < np.mean(losses[:3])
    tuned = weights.find_checkpoint(str(tmp_path / 'tuned'))
    assert train.read_network(tuned) == train.Network(fc_channels=16)
