import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import draw_pair, encode, write_examples, write_record
from PIL import Image

import evaluate
import train
import utils
import vgg
from datasets import classes, records
from inference.scores import Score
from report import validation
from train import Network
from training import checkpoints, log, watchdog
from utils import UserError

ROOT = os.path.dirname(train.__file__)
NAMES = ['annotation', 'img', 'overlay', 'prediction', 'prediction_crfed']


def short_run(record, folder, *more):
    """Arguments of a run of a narrow network on small crops."""
    return ['--dataset_train', str(record), '--dataset_val', str(record), '--output_dir', str(folder),
            '--fc_channels', '8', '--batch_size', '2', '--crop_size', '32', '--val_steps', '0', '--summary_steps', '0',
            *map(str, more)]


def read_log(folder, name='log.csv'):
    with open(folder / 'train' / name, newline='') as file:
        return list(csv.DictReader(file))


def events(folder):
    """(step, tag) of every summary value of a run, and the values by tag."""
    found = []
    for name in sorted(os.listdir(folder / 'train')):
        if name.startswith('events'):
            for event in tf.train.summary_iterator(str(folder / 'train' / name)):
                found += [(event.step, value) for value in event.summary.value]
    return found


# ------------------------------------------------------------------------------------------- the network


def test_logits_have_the_images_size():
    image = tf.placeholder(tf.uint8, [None, None, None, 3])
    logits = train.fcn(image, Network(fc_channels=8))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for size in ((1, 1), (33, 47), (375, 500), (500, 333), (32, 64)):
            assert session.run(logits, {image: np.zeros((1, *size, 3), np.uint8)}).shape == (1, *size, 21)
        assert session.run(logits, {image: np.zeros((3, 20, 40, 3), np.uint8)}).shape == (3, 20, 40, 21)


def test_new_variables_live_under_fc8_and_start_as_they_should():
    train.fcn(tf.zeros([1, 32, 32, 3]), Network(fc_channels=8))
    train.fcn(tf.zeros([1, 64, 64, 3]), Network(fc_channels=8))  # built again, it shares its variables
    new = {v.op.name: v for v in tf.global_variables() if 'fc8' in v.op.name}
    assert {name: v.shape.as_list() for name, v in new.items()} == {
        'vgg_16/fc8/weights': [1, 1, 8, 21], 'vgg_16/fc8/biases': [21],
        'vgg_16/fc8/conv_pool4/weights': [1, 1, 512, 21], 'vgg_16/fc8/conv_pool4/biases': [21],
        'vgg_16/fc8/conv_pool3/weights': [1, 1, 256, 21], 'vgg_16/fc8/conv_pool3/biases': [21],
        'vgg_16/fc8/t_conv_x2_1': [4, 4, 21, 21], 'vgg_16/fc8/t_conv_x2_2': [4, 4, 21, 21],
        'vgg_16/fc8/t_conv_x8': [16, 16, 21, 21],
        'vgg_16/fc8/scale_pool4': [], 'vgg_16/fc8/scale_pool3': []}
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        assert not session.run(new['vgg_16/fc8/conv_pool4/weights']).any()
        assert not session.run(new['vgg_16/fc8/conv_pool3/weights']).any()
        np.testing.assert_array_equal(session.run(new['vgg_16/fc8/t_conv_x8']), utils.bilinear_upsample_weights(8, 21))


def interpolate(values, factor):
    """Bilinear interpolation along the first axis, pixel centres aligned: [N, ...] -> [N * factor, ...]."""
    where = (np.arange(len(values) * factor) + 0.5) / factor - 0.5
    lower = np.clip(np.floor(where).astype(int), 0, len(values) - 2)
    share = (where - lower).reshape(-1, *[1] * (values.ndim - 1))
    return values[lower] * (1 - share) + values[lower + 1] * share


def test_upsampling_is_bilinear_interpolation_away_from_the_border():
    """With zero skips and fc8 as the identity on fc7's channels, the logits are fc7 upsampled x2, x2, x8."""
    image = tf.constant(np.random.RandomState(0).randint(0, 256, (1, 160, 192, 3)), tf.uint8)
    logits = train.fcn(image, Network(fc_channels=21))
    fc7 = tf.get_default_graph().get_tensor_by_name('vgg_16/fc7/Relu:0')
    kernel = tf.trainable_variables('vgg_16/fc8/weights')[0]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        session.run(kernel.assign(np.eye(21)[np.newaxis, np.newaxis]))
        scores, upsampled = (value[0] for value in session.run([fc7, logits]))
    assert scores.shape == (5, 6, 21) and scores.std() > 0.1
    for factor in (2, 2, 8):
        scores = interpolate(scores, factor)
        scores = np.moveaxis(interpolate(np.moveaxis(scores, 1, 0), factor), 0, 1)
    inner = np.s_[32:-32, 32:-32]
    np.testing.assert_allclose(upsampled[inner], scores[inner], rtol=1e-5, atol=1e-5)


def test_skips_add_the_scores_of_the_pools():
    """A bias of pool4's score spreads over the image as it is: bilinear kernels keep a constant."""
    logits = train.fcn(tf.zeros([1, 96, 96, 3]), Network(fc_channels=8))
    biases = {name: tf.trainable_variables(f'vgg_16/fc8/{name}/biases')[0] for name in ('conv_pool4', 'conv_pool3')}
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        session.run([biases['conv_pool4'].assign(np.arange(21.0)), biases['conv_pool3'].assign(np.full(21, 0.5))])
        middle = session.run(logits)[0, 32:-32, 32:-32]
    np.testing.assert_allclose(middle, np.broadcast_to(np.arange(21) + 0.5, middle.shape), atol=1e-4)


def test_the_mean_is_removed_from_raw_rgb():
    train.fcn(tf.constant(np.full((1, 32, 32, 3), (123.68, 116.78, 103.94)), tf.float32), Network(fc_channels=8))
    first = tf.get_default_graph().get_tensor_by_name('vgg_16/conv1/conv1_1/Relu:0')
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        np.testing.assert_allclose(session.run(first), 0, atol=1e-4)


# ------------------------------------------------------------------------------------------- the loss


def test_loss_of_logits_that_know_nothing():
    labels = np.zeros((2, 4, 6), np.int32)
    labels[0, 0, :3] = 255
    loss, per_pixel = train.segmentation_loss(tf.zeros([2, 4, 6, 21]), tf.constant(labels))
    with tf.Session() as session:
        loss, per_pixel = session.run([loss, per_pixel])
    assert per_pixel == pytest.approx(np.log(21), rel=1e-6)
    assert loss == pytest.approx(np.log(21) * (2 * 4 * 6 - 3) / (2 * 4), rel=1e-6)  # a row's sum, mean over 8 rows


def test_loss_and_gradient_against_numpy():
    random = np.random.RandomState(1)
    logits = random.randn(2, 3, 5, 4).astype(np.float32)
    labels = random.choice([0, 1, 2, 3, 255], size=(2, 3, 5)).astype(np.int32)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    valid = labels != 255
    onehot = np.eye(4)[np.where(valid, labels, 0)]
    entropy = -np.log((softmax * onehot).sum(axis=-1)) * valid

    tensor = tf.constant(logits)
    loss, per_pixel = train.segmentation_loss(tensor, tf.constant(labels))
    with tf.Session() as session:
        loss, per_pixel, gradient = session.run([loss, per_pixel, tf.gradients(loss, tensor)[0]])
    assert loss == pytest.approx(entropy.sum(axis=-1).mean(), rel=1e-5)
    assert per_pixel == pytest.approx(entropy.sum() / valid.sum(), rel=1e-5)
    np.testing.assert_allclose(gradient, (softmax - onehot) * valid[..., np.newaxis] / 6, atol=1e-6)
    assert not gradient[~valid].any()


def test_loss_of_a_batch_that_is_all_void_is_zero():
    loss, per_pixel = train.segmentation_loss(tf.ones([1, 2, 2, 21]), tf.constant(np.full((1, 2, 2), 255, np.int32)))
    with tf.Session() as session:
        assert session.run([loss, per_pixel]) == [0, 0]


# ------------------------------------------------------------------------------------------- checkpoints


def write_slim_checkpoint(path, fc_channels=8, leave_out=(), version=tf.train.SaverDef.V2, fill=None):
    """A checkpoint as tf-slim's training wrote it: vgg_16's variables with a 1000-way fc8, and a global_step.

    Returns:
        dict of variable names to values.
    """
    with tf.Graph().as_default(), tf.Session() as session:
        vgg.vgg_16(tf.zeros([1, 224, 224, 3]), fc_channels=fc_channels)
        step = tf.train.create_global_step()
        session.run(tf.global_variables_initializer())
        session.run(step.assign(77777))
        if fill is not None:
            session.run([v.assign(tf.fill(v.shape, fill)) for v in tf.trainable_variables()])
        kept = [v for v in tf.global_variables() if v.op.name not in leave_out]
        values = {v.op.name: session.run(v) for v in kept} if fill is None else None
        tf.train.Saver(kept, write_version=version).save(session, str(path), write_meta_graph=False,
                                                         write_state=False)
    return values


def restore_into_fcn(path, fc_channels=8):
    """Builds FCN-8s, restores VGG from `path`, returns all variables' values and global_step's."""
    train.fcn(tf.zeros([1, 32, 32, 3]), Network(fc_channels=fc_channels))
    step = tf.train.create_global_step()
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        train.restore_vgg(session, str(path))
        return {v.op.name: session.run(v) for v in tf.trainable_variables()}, session.run(step)


@pytest.mark.parametrize('version', [tf.train.SaverDef.V1, tf.train.SaverDef.V2])  # the published file is a V1
def test_a_slim_checkpoint_restores_by_name_up_to_fc7(tmp_path, version):
    written = write_slim_checkpoint(tmp_path / 'vgg_16.ckpt', version=version)
    assert train.find_checkpoint(str(tmp_path / 'vgg_16.ckpt'))
    restored, step = restore_into_fcn(tmp_path / 'vgg_16.ckpt')
    assert step == 0  # the checkpoint's own is none of this run's
    old = [name for name in written if name != 'global_step' and 'fc8' not in name]
    assert len(old) == 30
    for name in old:
        np.testing.assert_array_equal(restored[name], written[name])
    assert not restored['vgg_16/fc8/weights'].any() and restored['vgg_16/fc8/weights'].shape == (1, 1, 8, 21)


def test_a_slim_checkpoint_of_the_published_size_restores(tmp_path):
    write_slim_checkpoint(tmp_path / 'vgg_16.ckpt', fc_channels=4096, fill=0.25)
    assert train.read_shapes(str(tmp_path / 'vgg_16.ckpt'))['vgg_16/fc8/weights'] == [1, 1, 4096, 1000]
    restored, _ = restore_into_fcn(tmp_path / 'vgg_16.ckpt', fc_channels=4096)
    assert restored['vgg_16/fc6/weights'].shape == (7, 7, 512, 4096)
    assert all((restored[name] == 0.25).all() for name in restored if 'fc8' not in name)


def test_a_trunk_leaves_fc6_and_fc7_at_random_and_says_so(tmp_path, capsys):
    fc = [f'vgg_16/{layer}/{kind}' for layer in ('fc6', 'fc7', 'fc8') for kind in ('weights', 'biases')]
    written = write_slim_checkpoint(tmp_path / 'trunk.ckpt', leave_out=fc)
    restored, _ = restore_into_fcn(tmp_path / 'trunk.ckpt')
    np.testing.assert_array_equal(restored['vgg_16/conv5/conv5_3/weights'], written['vgg_16/conv5/conv5_3/weights'])
    assert restored['vgg_16/fc6/weights'].std() > 0
    assert 'fc6 and fc7 start at random' in capsys.readouterr().out


@pytest.mark.parametrize('missing', ['vgg_16/conv3/conv3_2/biases', 'vgg_16/fc7/weights'])
def test_a_missing_variable_is_named(tmp_path, missing):
    write_slim_checkpoint(tmp_path / 'vgg_16.ckpt', leave_out=[missing])
    with pytest.raises(UserError, match=f'vgg_16.ckpt: variable {missing} is missing'):
        restore_into_fcn(tmp_path / 'vgg_16.ckpt')


def test_a_misshapen_variable_is_named(tmp_path):
    write_slim_checkpoint(tmp_path / 'vgg_16.ckpt', fc_channels=16)
    with pytest.raises(UserError, match=r'vgg_16/fc6/weights has shape \[7, 7, 512, 16\], the network needs '
                                        r'\[7, 7, 512, 8\] \(is --fc_channels the same\?\)'):
        restore_into_fcn(tmp_path / 'vgg_16.ckpt')


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match='nothing.ckpt: no checkpoint there'):
        train.find_checkpoint(str(tmp_path / 'nothing.ckpt'))
    with pytest.raises(UserError, match='no checkpoint there'):
        train.find_checkpoint(str(tmp_path))
    (tmp_path / 'text.ckpt').write_text('no checkpoint')
    with pytest.raises(UserError, match='text.ckpt: not a TensorFlow checkpoint'):
        train.read_shapes(train.find_checkpoint(str(tmp_path / 'text.ckpt')))


def test_a_truncated_checkpoint_is_named(tmp_path):
    write_slim_checkpoint(tmp_path / 'vgg_16.ckpt')
    data = tmp_path / 'vgg_16.ckpt.data-00000-of-00001'
    with open(data, 'r+b') as file:
        file.truncate(data.stat().st_size // 2)
    with pytest.raises(UserError, match='vgg_16.ckpt: damaged'):
        restore_into_fcn(tmp_path / 'vgg_16.ckpt')


# ------------------------------------------------------------------------------------------- the program


def test_a_run_leaves_checkpoints_settings_and_a_log(trained):
    files = os.listdir(trained / 'train')
    assert {'model.ckpt-2.index', 'model.ckpt-3.index', 'checkpoint', 'settings.json', 'log.csv'} <= set(files)
    settings = json.loads((trained / 'train' / 'settings.json').read_text())
    assert settings['batch_size'] == 2 and settings['learning_rate'] == 1e-4 and settings['seed'] == 0
    rows = read_log(trained)
    assert [int(row['step']) for row in rows] == [1, 2, 3]
    assert float(rows[0]['loss_per_pixel']) == pytest.approx(np.log(21), rel=1e-4)  # all scores start at zero
    assert all(float(row['images_per_second']) > 0 for row in rows)


def test_validation_pictures_are_at_true_size(trained, pairs):
    assert sorted(os.listdir(trained / 'eval')) == sorted(
        [f'val_2_{name}.jpg' for name in NAMES]
        + [f'val_2_{name}.png' for name in ('annotation', 'prediction', 'prediction_crfed')])
    image, label = pairs[0]
    for name in os.listdir(trained / 'eval'):
        assert Image.open(trained / 'eval' / name).size == (label.shape[1], label.shape[0])
    np.testing.assert_array_equal(np.array(Image.open(trained / 'eval' / 'val_2_annotation.png')), label)
    drawn = np.array(Image.open(trained / 'eval' / 'val_2_annotation.jpg')).astype(int)
    assert np.abs(drawn[label == 255] - (224, 224, 192)).mean() < 8  # void in VOC's colour
    assert np.abs(np.array(Image.open(trained / 'eval' / 'val_2_img.jpg')).astype(int) - image).mean() < 4


def test_tensorboard_gets_scalars_histograms_and_pictures(trained):
    found = {(step, value.tag) for step, value in events(trained)}
    assert {(step, tag) for step in (1, 2, 3) for tag in ('loss', 'loss_per_pixel', 'learning_rate')} <= found
    assert (3, 'vgg_16/conv1/conv1_1/weights/gradient') in found and (3, 'vgg_16/fc8/t_conv_x8/gradient') in found
    assert not any(step != 3 for step, tag in found if tag.endswith('/gradient'))
    assert {tag for step, tag in found if tag.startswith('validation/')} == {f'validation/{name}' for name in NAMES}


def test_resume_goes_on_at_its_step_up_to_max_steps_in_all(trained, record, tmp_path, capsys):
    folder = tmp_path / 'run'
    shutil.copytree(trained, folder)
    train.main(short_run(record, folder, '--max_steps', 5, '--log_steps', 1, '--val_steps', 2))
    out = capsys.readouterr().out
    assert 'resumed from' in out and 'model.ckpt-3' in out and 'at random' not in out
    assert [int(row['step']) for row in read_log(folder)] == [1, 2, 3, 4, 5]
    assert 'val image1:' in out  # step 2 showed image0
    assert tf.train.latest_checkpoint(str(folder / 'train')).endswith('model.ckpt-5')
    assert tf.train.load_variable(str(folder / 'train'), 'global_step') == 5
    train.main(short_run(record, folder, '--max_steps', 5))
    assert 'is at step 5: nothing left to do' in capsys.readouterr().out


def test_a_run_that_was_moved_resumes_where_it_lies_now(record, tmp_path, capsys):
    train.main(short_run(record, tmp_path / 'before', '--max_steps', 2))
    shutil.move(tmp_path / 'before', tmp_path / 'after')
    train.main(short_run(record, tmp_path / 'after', '--max_steps', 3))
    assert f'resumed from {tmp_path / "after"}' in capsys.readouterr().out
    assert [int(row['step']) for row in read_log(tmp_path / 'after')] == [1, 2, 3]


def test_a_resumed_run_keeps_three_checkpoints_in_all(record, tmp_path):
    for max_steps in (3, 5):
        train.main(short_run(record, tmp_path, '--max_steps', max_steps, '--save_steps', 1))
    assert sorted(name for name in os.listdir(tmp_path / 'train') if name.endswith('.index')) == [
        'model.ckpt-3.index', 'model.ckpt-4.index', 'model.ckpt-5.index']


@pytest.mark.parametrize('state', ['model_checkpoint_path: "model.ckpt-7"\n', 'model_checkpoint_path: "mine.ckpt"\n'])
def test_a_run_whose_checkpoint_is_gone_is_not_started_anew(record, tmp_path, state):
    train.main(short_run(record, tmp_path, '--max_steps', 1))
    for name in os.listdir(tmp_path / 'train'):
        if name.startswith('model.ckpt-1.'):
            os.rename(tmp_path / 'train' / name, tmp_path / 'train' / name.replace('model.ckpt-1', 'mine.ckpt'))
    (tmp_path / 'train' / 'checkpoint').write_text(state)
    with pytest.raises(UserError, match='names no checkpoint of train.py that is there'):
        train.main(short_run(record, tmp_path, '--max_steps', 2))
    assert [int(row['step']) for row in read_log(tmp_path)] == [1]


def test_a_resume_that_fails_leaves_the_settings(record, tmp_path):
    train.main(short_run(record, tmp_path, '--max_steps', 1))
    with pytest.raises(UserError, match='its run has --fc_channels 8, now it is 16'):
        train.main(short_run(record, tmp_path, '--max_steps', 2, '--fc_channels', 16, '--seed', 5))
    settings = train.read_settings(str(tmp_path / 'train'))
    assert (settings['fc_channels'], settings['seed']) == (8, 0)


def test_a_log_that_was_damaged_is_mended_on_resume(record, tmp_path):
    train.main(short_run(record, tmp_path, '--max_steps', 2, '--log_steps', 1))
    with open(tmp_path / 'train' / 'log.csv', 'ab') as file:
        file.write(b'2,1,2,3,4,5,6\n\0\0\0\n1,,,,\n3,0.5')
    train.main(short_run(record, tmp_path, '--max_steps', 3))
    assert [int(row['step']) for row in read_log(tmp_path)] == [1, 2, 3]


def test_the_run_folder_stands_for_its_checkpoint(trained):
    assert train.find_checkpoint(str(trained)) == train.find_checkpoint(str(trained / 'train'))


def test_rows_after_the_checkpoint_are_dropped_from_the_log_on_resume(trained, record, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(trained, folder)
    for name in os.listdir(folder / 'train'):
        if name.startswith('model.ckpt-3'):
            os.remove(folder / 'train' / name)
    (folder / 'train' / 'checkpoint').write_text('model_checkpoint_path: "model.ckpt-2"\n')
    train.main(short_run(record, folder, '--max_steps', 4, '--log_steps', 2))
    assert [int(row['step']) for row in read_log(folder)] == [1, 2, 3, 4]


def test_the_first_adam_step_moves_by_the_learning_rate(record, tmp_path):
    """Adam's first step is learning_rate * sign(gradient); fc8's biases start at zero and all have a gradient."""
    train.main(short_run(record, tmp_path, '--max_steps', 1, '--learning_rate', 0.01))
    biases = tf.train.load_variable(str(tmp_path / 'train'), 'vgg_16/fc8/biases')
    np.testing.assert_allclose(np.abs(biases), 0.01, rtol=1e-3)


def test_training_lowers_the_loss(record, tmp_path):
    train.main(short_run(record, tmp_path, '--max_steps', 30, '--log_steps', 10, '--learning_rate', 1e-3))
    losses = [float(row['loss_per_pixel']) for row in read_log(tmp_path)]
    assert losses[0] > 3 and losses[-1] < 2.9


def test_weight_decay_reaches_the_update(record, tmp_path):
    """A pixel's gradient cannot reach fc7 in the first step, for fc8 is zero; what moves it is the decay."""
    for decay in (0, 0.1):
        train.main(short_run(record, tmp_path / str(decay), '--max_steps', 1, '--weight_decay', decay))
    plain, decayed = (tf.train.load_variable(str(tmp_path / decay / 'train'), 'vgg_16/fc7/weights')
                      for decay in ('0', '0.1'))
    np.testing.assert_allclose(plain - decayed, 1e-4 * np.sign(plain), atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run(record, tmp_path):
    with pytest.raises(UserError, match='not finite at step [2-9].*--learning_rate'):
        train.main(short_run(record, tmp_path, '--max_steps', 9, '--learning_rate', 1e30))


def test_write_validation_scores_the_image(tmp_path):
    label = np.array([[0, 0, 3, 255]] * 4, np.uint8)
    probabilities = np.full((4, 4, 21), 0.001, np.float32)
    probabilities[:, :, 0] = 0.98
    _, (plain, _) = validation.write_validation(str(tmp_path), 7, np.zeros((4, 4, 3), np.uint8), label, probabilities,
                                                 classes.VOC)
    assert plain == pytest.approx((8 / 12 + 0) / 2)  # background: 8 right of 12; class 3: none of 4
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / 'val_7_prediction.png')), 0)


@pytest.mark.parametrize('seconds, text', [(0.4, '0:00:00'), (59.6, '0:01:00'), (3725.4, '1:02:05')])
def test_format_seconds(seconds, text):
    assert log.format_seconds(seconds) == text


def test_settings_keep_where_vgg_came_from(tmp_path):
    def origin(*argv, resume_from=None):
        train.save_settings(train.parse_args(list(argv)), classes.VOC, str(tmp_path), resume_from)
        return json.loads((tmp_path / 'settings.json').read_text())['vgg_weights_from']

    assert origin() == 'random start'
    assert origin('--checkpoint_path', 'a.ckpt', resume_from='model.ckpt-3') == 'random start'
    assert origin('--checkpoint_path', 'a.ckpt') == 'a.ckpt'  # another run in the same folder
    assert origin(resume_from='model.ckpt-3') == 'a.ckpt'
    assert json.loads((tmp_path / 'settings.json').read_text())['checkpoint_path'] is None
    (tmp_path / 'settings.json').write_text('{"checkpoint_path": "b.ckpt"}')  # of an older train.py
    assert origin(resume_from='model.ckpt-3') == 'b.ckpt'


@pytest.mark.parametrize('text', ['not JSON', '3', '[' * 100000])
def test_damaged_settings_are_named(tmp_path, text):
    (tmp_path / 'settings.json').write_text(text)
    with pytest.raises(UserError, match='settings.json: not the settings of a run; remove it'):
        train.read_settings(str(tmp_path))
    assert train.read_settings(str(tmp_path / 'nowhere')) == {}


def test_settings_that_are_a_pipe_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'settings.json')
    with pytest.raises(OSError, match='is not a file'):
        train.read_settings(str(tmp_path))


# ------------------------------------------------------------------------------------------- scores and OUT/best


def test_best_holds_the_step_with_the_highest_mean_iou(record, tmp_path):
    train.main(short_run(record, tmp_path, '--max_steps', 5, '--eval_steps', 2, '--learning_rate', 1e-3))
    rows = read_log(tmp_path, 'eval.csv')
    assert [int(row['step']) for row in rows] == [2, 4, 5]
    highest = max(rows, key=lambda row: float(row['mean_iou']))
    best = train.find_checkpoint(str(tmp_path / 'best'))
    assert best.endswith(f'model.ckpt-{highest["step"]}')
    assert sorted(os.listdir(tmp_path / 'best')) == ['checkpoint', *(
        f'{os.path.basename(best)}.{ending}' for ending in ('data-00000-of-00001', 'index')), 'settings.json']

    found = evaluate.evaluate(best, record)
    for name, value in found.scores['plain'].figures().items():
        assert value == float(highest[name])  # to the last digit
    assert train.read_shapes(best).keys() == {
        name for name in train.read_shapes(train.find_checkpoint(str(tmp_path / 'train')))
        if 'Adam' not in name and name not in ('global_step', 'beta1_power', 'beta2_power')}

    logged = {(step, value.tag): value.simple_value for step, value in events(tmp_path)}
    for row in rows:
        for name in log.EvaluationLog.COLUMNS[1:]:
            assert logged[int(row['step']), f'validation/{name}'] == pytest.approx(float(row[name]), rel=1e-6)

    train.main(short_run(record, tmp_path, '--max_steps', 6, '--eval_steps', 3))
    resumed = read_log(tmp_path, 'eval.csv')
    assert resumed[:3] == rows and [int(row['step']) for row in resumed] == [2, 4, 5, 6]
    highest = max(resumed, key=lambda row: float(row['mean_iou']))
    assert train.find_checkpoint(str(tmp_path / 'best')).endswith(f'model.ckpt-{highest["step"]}')


def test_score_record_against_the_definition(trained, record, pairs):
    with tf.Session() as session:
        predictor = train.load_predictor(session, train.find_checkpoint(str(trained / 'train')))
        reader = train.build_reader(record, 5)
        examples = [(example['label'], probabilities)
                    for example, probabilities in train.predict_record(session, predictor, reader)]
        score, loss = train.score_record(session, predictor, reader)  # a second pass over the same reader
    entropies, hits = [], []
    for label, probabilities in examples:
        for annotated, of_classes in zip(label.ravel(), probabilities.reshape(-1, 21), strict=True):
            if annotated != 255:
                entropies.append(-math.log(of_classes[annotated]))
                hits.append(annotated == of_classes.argmax())
    assert len(hits) == sum((label != 255).sum() for _, label in pairs)
    assert loss == pytest.approx(np.mean(entropies), rel=1e-5)
    assert score.figures()['pixel_accuracy'] == pytest.approx(np.mean(hits), rel=1e-12)


def test_an_image_too_large_for_memory_is_named():
    class Session:
        def __init__(self):
            self.results = [None, {'filename': b'big', 'image': np.zeros((3, 4, 3), np.uint8)}]

        def run(self, *_):
            if not self.results:
                raise tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating')
            return self.results.pop(0)

    predictor = train.Predictor('image', 'probabilities', Network())
    reader = train.Reader('a.record', 1, 'initializer', 'next')
    with pytest.raises(UserError, match='^a.record: out of memory at big, 4 x 3 pixels; leave it out'):
        next(train.predict_record(Session(), predictor, reader))


class Run:
    """The evaluations of a run, without the training: a graph of one variable, which holds the step."""

    def __init__(self, folder):
        self.args = train.parse_args(['--output_dir', str(folder), '--eval_steps', '1'])
        train.make_run_folder(self.args)
        (folder / 'train' / 'settings.json').write_text('{}')
        self.folder, self.step = folder, tf.get_variable('step', [])

    def start(self, start_step=0):
        writer = tf.summary.FileWriterCache.get(str(self.folder / 'train'))
        return log.EvaluationLog(self.args, [self.step], writer, start_step)

    def add(self, log, step, right):
        """Evaluates a network that has `right` of ten pixels right, all of one class."""
        score = Score(2)
        score.add(np.zeros((1, 10), np.uint8), np.uint8(np.arange(10) >= right)[np.newaxis])
        with tf.Session() as session:
            session.run(self.step.assign(step))
            log.add(session, step, score, 1.0)

    def state(self):
        """Steps in eval.csv; the step that OUT/best stands for; the checkpoints there."""
        best = train.find_checkpoint(str(self.folder / 'best'))
        assert int(tf.train.load_variable(best, 'step')) == checkpoints.checkpoint_step(best)
        return ([int(row['step']) for row in read_log(self.folder, 'eval.csv')], checkpoints.checkpoint_step(best),
                sorted({name.split('.')[1] for name in os.listdir(self.folder / 'best') if 'ckpt' in name}))


def test_the_first_of_the_best_stays(tmp_path):
    run = Run(tmp_path)
    log = run.start()
    for step, right, best in ((1, 4, 1), (2, 6, 2), (3, 6, 2), (4, 2, 2), (5, 7, 5)):
        run.add(log, step, right)
        log.drop_beaten()
        assert run.state() == (list(range(1, step + 1)), best, [f'ckpt-{best}'])


def test_resuming_forgets_no_best_and_repeats_no_row(tmp_path):
    run = Run(tmp_path)
    log = run.start()
    for step, right in ((1, 6), (2, 4)):
        run.add(log, step, right)
        log.drop_beaten()
    log = run.start(start_step=1)  # training goes on from a checkpoint before the second evaluation
    assert run.state() == ([1], 1, ['ckpt-1'])
    run.add(log, 2, 5)
    log.drop_beaten()
    assert run.state() == ([1, 2], 1, ['ckpt-1'])


def test_killed_before_the_training_checkpoint_the_old_best_is_there(tmp_path):
    run = Run(tmp_path)
    log = run.start()
    run.add(log, 1, 4)
    log.drop_beaten()
    run.add(log, 2, 6)
    assert run.state() == ([1, 2], 1, ['ckpt-1', 'ckpt-2'])
    log = run.start(start_step=1)
    assert run.state() == ([1], 1, ['ckpt-1'])
    run.add(log, 2, 5)
    log.drop_beaten()
    assert run.state() == ([1, 2], 2, ['ckpt-2'])


def test_killed_after_the_training_checkpoint_the_new_best_is_there(tmp_path):
    run = Run(tmp_path)
    log = run.start()
    run.add(log, 1, 4)
    log.drop_beaten()
    run.add(log, 2, 6)
    run.start(start_step=2)
    assert run.state() == ([1, 2], 2, ['ckpt-2'])


def test_without_eval_steps_nothing_is_scored(trained):
    assert not os.path.exists(trained / 'best') and not os.path.exists(trained / 'train' / 'eval.csv')


@pytest.mark.parametrize('learning_rate, speaks', [(0.01, True), (1e-4, False)])
def test_the_watchdog_in_a_real_run(record, tmp_path, monkeypatch, capsys, learning_rate, speaks):
    monkeypatch.setattr(watchdog.Watchdog, 'WINDOW', 6)
    train.main(short_run(record, tmp_path, '--max_steps', 12, '--learning_rate', learning_rate))
    assert ('watchdog: step 12: the loss per pixel is' in capsys.readouterr().out) == speaks


# ------------------------------------------------------------------------------------------- a user's mistakes


def write_class_30(path):
    return write_record(path, [(np.zeros((40, 40, 3), np.uint8), np.full((40, 40), 30, np.uint8))])


def write_truncated_jpeg(path):
    image, label = draw_pair(40, 40, 0)
    return write_examples(path, [records.make_example(b'a', encode(image, format='JPEG')[:-200],
                                                      encode(label, format='PNG'), 40, 40)])


def test_an_output_folder_that_is_a_file(record, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='file'):
        train.main(short_run(record, tmp_path / 'file', '--max_steps', 1))


@pytest.mark.parametrize('write, reason', [
    (write_class_30, 'not a class in the label of'), (write_truncated_jpeg, 'JPEG')])
def test_a_record_that_cannot_be_trained_on_is_named(tmp_path, write, reason):
    bad = write(tmp_path / 'bad.record')
    with pytest.raises(UserError, match=rf'bad.record: cannot be read or decoded \(.*{reason}.*\)') as raised:
        train.main(short_run(bad, tmp_path / 'run', '--max_steps', 1))
    assert '\n' not in str(raised.value)


def test_a_checkpoint_that_cannot_be_written_is_named(record, tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise tf.errors.ResourceExhaustedError(None, None, 'No space left on device\nmore')

    monkeypatch.setattr(tf.train.Saver, 'save', fail)
    with pytest.raises(UserError, match=r'model.ckpt-1: cannot be written \(No space left on device\)'):
        train.main(short_run(record, tmp_path, '--max_steps', 1))


@pytest.mark.parametrize('argv, code, message', [
    (['--batchsize', '4'], 2, 'unrecognized arguments: --batchsize'),
    (['--max_steps', '-1'], 2, 'argument --max_steps: -1 is not a number from 1 up'),
    (['--dataset_train', 'no.record'], 1, 'no.record: no such file; write it with convert_fcn_dataset.py'),
    (['--checkpoint_path', 'no.ckpt'], 1, 'no.ckpt: no checkpoint there'),
])
def test_the_script_ends_mistakes_with_one_line(argv, code, message, tmp_path):
    done = subprocess.run([sys.executable, os.path.join(ROOT, 'train.py'), '--output_dir', 'out', *argv],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr.splitlines()[-1] and 'Traceback' not in done.stderr
    assert not os.listdir(tmp_path)


def test_the_script_trains_one_step(record, tmp_path):
    program = [sys.executable, os.path.join(ROOT, 'train.py'), *short_run(record, tmp_path, '--max_steps', 1)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'step     1/1  loss' in done.stdout and 'per pixel 3.04' in done.stdout
    assert os.path.exists(tmp_path / 'train' / 'model.ckpt-1.index')


def test_importing_has_no_effect():
    program = ('import tensorflow.compat.v1 as tf, train, evaluate, predict, report, convert_fcn_dataset;'
               'assert tf.executing_eagerly() and not tf.get_default_graph().get_operations()')
    subprocess.run([sys.executable, '-c', program, '--no-such-flag'], check=True, cwd=ROOT, capture_output=True)


def test_a_full_disk_leaves_no_half_checkpoint(record, tmp_path):
    """A limit on the size of files stands for a full disk: the run ends with one line that has the reason."""
    arguments = ' '.join(short_run(record, tmp_path, '--max_steps', 1))
    program = f"trap '' XFSZ; ulimit -f 20000; exec {sys.executable} train.py {arguments}"
    done = subprocess.run(['bash', '-c', program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert re.search(r'model.ckpt-1: cannot be written \(.*File too large.*\)', done.stderr.splitlines()[-1])
    assert not [name for name in os.listdir(tmp_path / 'train') if name.startswith('model')]


def test_a_gradient_that_is_not_finite_does_not_blame_the_record(record, tmp_path):
    with pytest.raises(UserError, match='not finite at step [2-9].*--learning_rate'):
        train.main(short_run(record, tmp_path, '--max_steps', 9, '--learning_rate', 1e30, '--summary_steps', 1))


# ------------------------------------------------------------------------------------------- arithmetic


SMALL_RUN = ['--fc_channels', '8', '--batch_size', '2', '--crop_size', '32', '--log_steps', '1', '--summary_steps', '1']


def run_small(record, folder, *flags):
    """train.py as a program of its own; returns its log's rows and what it printed."""
    done = subprocess.run([sys.executable, train.__file__, '--dataset_train', record, '--dataset_val', record,
                           '--output_dir', str(folder), *SMALL_RUN, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with open(folder / 'train' / 'log.csv', newline='') as file:
        return list(csv.DictReader(file)), done


def test_xla_compiles_and_gives_the_same_losses(record, tmp_path):
    plain, done = run_small(record, tmp_path / 'plain', '--max_steps', '3')
    assert 'Compiled cluster using XLA' not in done.stderr
    compiled, done = run_small(record, tmp_path / 'xla', '--max_steps', '3', '--xla')
    assert 'Compiled cluster using XLA' in done.stderr
    # Dropout draws other numbers in step 1, but the scores it acts upon are still all zero.
    assert float(compiled[0]['loss_per_pixel']) == pytest.approx(math.log(21), abs=1e-4)
    assert float(compiled[0]['loss']) == pytest.approx(float(plain[0]['loss']), rel=1e-4)
    assert float(compiled[2]['loss']) == pytest.approx(float(plain[2]['loss']), rel=0.02)


def test_mixed_precision_scales_the_loss_and_trains(record, tmp_path):
    plain, _ = run_small(record, tmp_path / 'plain', '--max_steps', '3')
    mixed, done = run_small(record, tmp_path / 'mixed', '--max_steps', '3', '--mixed_precision')
    assert done.stdout.startswith('--mixed_precision: ')
    for with_scale, without in zip(mixed, plain):
        assert float(with_scale['loss']) == pytest.approx(float(without['loss']), rel=0.02)
    reader = tf.train.load_checkpoint(str(tmp_path / 'mixed' / 'train'))
    assert reader.get_tensor('current_loss_scale') == 2 ** 15 and reader.get_tensor('good_steps') == 3


def test_a_run_may_take_up_mixed_precision_and_leave_it(record, tmp_path):
    run_small(record, tmp_path, '--max_steps', '1')
    rows, done = run_small(record, tmp_path, '--max_steps', '2', '--mixed_precision')
    assert 'resumed from' in done.stdout and [row['step'] for row in rows] == ['1', '2']
    rows, done = run_small(record, tmp_path, '--max_steps', '3')
    assert 'resumed from' in done.stdout and [row['step'] for row in rows] == ['1', '2', '3']


def test_gradients_beyond_float16_are_no_cause_to_stop(record, tmp_path, monkeypatch):
    """A loss scale of 2^120 makes infinite gradients: the step is left out, the scale halved, training goes on."""
    scaled = tf.mixed_precision.MixedPrecisionLossScaleOptimizer
    monkeypatch.setattr(
        tf.mixed_precision, 'MixedPrecisionLossScaleOptimizer',
        lambda optimizer, _: scaled(optimizer, tf.mixed_precision.DynamicLossScale(initial_loss_scale=2.0 ** 120)))
    train.main(['--dataset_train', record, '--dataset_val', record, '--output_dir', str(tmp_path), *SMALL_RUN,
                '--max_steps', '2', '--val_steps', '0', '--mixed_precision'])
    reader = tf.train.load_checkpoint(str(tmp_path / 'train'))
    assert reader.get_tensor('current_loss_scale') == 2.0 ** 118
    assert not reader.get_tensor('vgg_16/fc8/weights').any()  # as it started


# ------------------------------------------------------------------------------------------- beside the training


def test_a_picture_that_cannot_be_written_ends_the_run(record, tmp_path):
    (tmp_path / 'eval' / 'val_1_img.jpg').mkdir(parents=True)
    with pytest.raises(OSError, match='val_1_img.jpg'):
        train.main(['--dataset_train', record, '--dataset_val', record, '--output_dir', str(tmp_path), *SMALL_RUN,
                    '--max_steps', '1', '--val_steps', '1'])


def test_pictures_are_drawn_while_training_goes_on(record, tmp_path, capsys):
    """With a picture every step, more come than may wait; each is there in the end, in order, with its own line."""
    train.main(['--dataset_train', record, '--dataset_val', record, '--output_dir', str(tmp_path), *SMALL_RUN,
                '--max_steps', '6', '--val_steps', '1'])
    assert re.findall(r'val image(\d): .*val_(\d)_', capsys.readouterr().out) == [
        ('0', '1'), ('1', '2'), ('2', '3'), ('3', '4'), ('4', '5'), ('0', '6')]
    assert len(list((tmp_path / 'eval').glob('val_*_prediction_crfed.png'))) == 6
