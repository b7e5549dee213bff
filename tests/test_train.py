"""The network, its loss, and the training program; what is around them has tests of its own in tests/training."""
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import draw_pair, encode, read_log, short_run, smaller, write_examples, write_record
from PIL import Image

import evaluate
import train
import utils
from datasets import records
from datasets.batches import training_batches
from inference.weights import find_checkpoint, network_variables, read_shapes
from train import Network
from training import watchdog
from training.log import EvaluationLog
from utils import UserError

ROOT = os.path.dirname(train.__file__)
NAMES = ['annotation', 'img', 'overlay', 'prediction', 'prediction_crfed']


def events(folder):
    """(step, summary value) of all values that a run logged for TensorBoard."""
    found = []
    for name in sorted(os.listdir(folder / 'train')):
        if name.startswith('events'):
            for event in tf.train.summary_iterator(str(folder / 'train' / name)):
                found += [(event.step, value) for value in event.summary.value]
    return found


# ------------------------------------------------------------------------------------------- the network


def test_logits_have_the_images_size(small_runs):
    image = tf.placeholder(tf.uint8, [None, None, None, 3])
    logits = train.fcn(image, Network(fc_channels=8))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for size in ((1, 1), (33, 47), (375, 500), (500, 333), (32, 64)):
            assert session.run(logits, {image: np.zeros((1, *size, 3), np.uint8)}).shape == (1, *size, 21)
        assert session.run(logits, {image: np.zeros((3, 20, 40, 3), np.uint8)}).shape == (3, 20, 40, 21)


def test_new_variables_live_under_fc8_and_start_as_they_should(full_network):
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


def test_upsampling_is_bilinear_interpolation_away_from_the_border(small_runs):
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


def test_skips_add_the_scores_of_the_pools(small_runs):
    """A bias of pool4's score spreads over the image as it is: bilinear kernels keep a constant."""
    logits = train.fcn(tf.zeros([1, 96, 96, 3]), Network(fc_channels=8))
    biases = {name: tf.trainable_variables(f'vgg_16/fc8/{name}/biases')[0] for name in ('conv_pool4', 'conv_pool3')}
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        session.run([biases['conv_pool4'].assign(np.arange(21.0)), biases['conv_pool3'].assign(np.full(21, 0.5))])
        middle = session.run(logits)[0, 32:-32, 32:-32]
    np.testing.assert_allclose(middle, np.broadcast_to(np.arange(21) + 0.5, middle.shape), atol=1e-4)


def test_the_mean_is_removed_from_raw_rgb(small_runs):
    train.fcn(tf.constant(np.full((1, 32, 32, 3), (123.68, 116.78, 103.94)), tf.float32), Network(fc_channels=8))
    first = tf.get_default_graph().get_tensor_by_name('vgg_16/conv1/conv1_1/Relu:0')
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        np.testing.assert_allclose(session.run(first), 0, atol=1e-4)


def run_network(network, initialise, images):
    """Logits after initialise(session), from the same random start for any network of the family."""
    with tf.Graph().as_default():
        tf.set_random_seed(3)
        logits = train.fcn(tf.constant(images), network)
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            initialise(session)
            return session.run(logits)


def test_a_skip_is_scaled_before_its_scores(small_runs):
    """A score of weight w on a pool scaled by 0.25 equals one of weight w / 4 on the pool itself."""
    def set_scores(weight):
        def initialise(session):
            [kernel] = tf.trainable_variables('vgg_16/fc8/conv_pool3/weights')
            kernel.load(np.full(kernel.shape.as_list(), weight), session)
        return initialise

    images = np.random.RandomState(0).randint(0, 256, (2, 70, 50, 3)).astype(np.uint8)
    scaled = run_network(Network(fc_channels=8, skip_scales=(1, 0.25)), set_scores(1.0), images)
    plain = run_network(Network(fc_channels=8), set_scores(0.25), images)
    assert np.abs(scaled).max() > 1
    np.testing.assert_allclose(scaled, plain, rtol=1e-5)


@pytest.mark.parametrize('model, skips', [('fcn_32s', []), ('fcn_16s', ['pool4']), ('fcn_8s', ['pool4', 'pool3'])])
def test_a_checkpoint_shows_its_network(model, skips, small_runs, tmp_path):
    path = str(tmp_path / 'model.ckpt')

    def save(session):
        tf.train.Saver(network_variables()).save(session, path, write_meta_graph=False)

    run_network(Network(model, number_of_classes=5, fc_channels=8), save, np.zeros((1, 32, 32, 3), np.uint8))
    assert [pool for pool in ('pool4', 'pool3') if f'vgg_16/fc8/conv_{pool}/weights' in read_shapes(path)] == skips
    assert train.read_network(path) == Network(model, number_of_classes=5, fc_channels=8)


def test_a_checkpoint_of_another_program_shows_no_network(tmp_path):
    with tf.Session() as session:
        session.run(tf.get_variable('vgg_16/fc6/weights', [7, 7, 1, 1]).initializer)
        tf.train.Saver().save(session, str(tmp_path / 'model.ckpt'), write_meta_graph=False)
    with pytest.raises(UserError, match='model.ckpt: variable vgg_16/fc8/weights is missing; take a checkpoint of tr'):
        train.read_network(str(tmp_path / 'model.ckpt'))


# ------------------------------------------------------------------------------------------- the loss


def run_loss(logits, labels, *settings):
    """What segmentation_loss returns, with None for None."""
    tensors = train.segmentation_loss(tf.constant(logits, tf.float32), tf.constant(labels, tf.int32), *settings)
    with tf.Session() as session:
        return [tensor if tensor is None else session.run(tensor) for tensor in tensors]


def test_loss_of_logits_that_know_nothing():
    labels = np.zeros((2, 4, 6))
    labels[0, 0, :3] = 255
    loss, per_pixel, weight, pixels = run_loss(np.zeros((2, 4, 6, 21)), labels)
    assert per_pixel == pytest.approx(np.log(21), rel=1e-6)
    assert loss == pytest.approx(np.log(21) * (2 * 4 * 6 - 3) / (2 * 4), rel=1e-6)  # a row's sum, mean over 8 rows
    assert (weight, pixels) == (8, 45)


def random_case():
    """Logits, labels, valid pixels, and softmax, one-hot labels and cross-entropies by NumPy."""
    random = np.random.RandomState(1)
    logits = random.randn(2, 3, 5, 4).astype(np.float32)
    labels = random.choice([0, 1, 2, 3, 255], size=(2, 3, 5)).astype(np.int32)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    valid = labels != 255
    onehot = np.eye(4)[np.where(valid, labels, 0)]
    return logits, labels, valid, softmax, onehot, -np.log((softmax * onehot).sum(axis=-1)) * valid


def test_loss_and_gradient_against_numpy():
    logits, labels, valid, softmax, onehot, entropy = random_case()
    tensor = tf.constant(logits)
    loss, per_pixel, _, _ = train.segmentation_loss(tensor, tf.constant(labels))
    with tf.Session() as session:
        loss, per_pixel, gradient = session.run([loss, per_pixel, tf.gradients(loss, tensor)[0]])
    assert loss == pytest.approx(entropy.sum(axis=-1).mean(), rel=1e-5)
    assert per_pixel == pytest.approx(entropy.sum() / valid.sum(), rel=1e-5)
    np.testing.assert_allclose(gradient, (softmax - onehot) * valid[..., np.newaxis] / 6, atol=1e-6)
    assert not gradient[~valid].any()


def test_the_other_reductions_and_class_weights_against_numpy():
    logits, labels, valid, _, onehot, entropy = random_case()
    class_weights = np.array([0.5, 2, 1, 3], np.float32)
    weights = (onehot @ class_weights) * valid
    assert run_loss(logits, labels, 'sum')[2] is None  # losses of parts add up
    assert run_loss(logits, labels, 'sum')[0] == pytest.approx(entropy.sum(), rel=1e-5)
    assert run_loss(logits, labels, 'mean')[0] == pytest.approx(entropy.sum() / valid.sum(), rel=1e-5)
    found = run_loss(logits, labels, 'mean', class_weights)
    assert found == pytest.approx([(entropy * weights).sum() / weights.sum(), entropy.sum() / valid.sum(),
                                   weights.sum(), valid.sum()], rel=1e-5)
    found = run_loss(logits, labels, 'rows', class_weights)
    assert found == pytest.approx([(entropy * weights).sum() / 6, entropy.sum() / valid.sum(), 6, valid.sum()],
                                  rel=1e-5)


@pytest.mark.parametrize('class_weights', [None, np.array([0.5, 2, 1, 3], np.float32)])
def test_the_loss_of_the_hardest_pixels_against_numpy(class_weights):
    """Of each image, the quarter of the counted pixels with the largest cross-entropy; void is never among them."""
    logits, labels, valid, softmax, onehot, entropy = random_case()
    weights = valid * (1.0 if class_weights is None else onehot @ class_weights)
    of_pixel = np.zeros_like(entropy)
    for image in range(2):
        order = np.argsort(np.where(valid[image], entropy[image], -1), axis=None)[::-1]
        hardest = np.unravel_index(order[:-(-valid[image].sum() // 4)], (3, 5))
        of_pixel[image][hardest] = weights[image][hardest] / weights[image][hardest].sum() * weights[image].sum()
    assert 4 <= (of_pixel > 0).sum() <= 8 < valid.sum()
    tensor = tf.constant(logits)
    loss, per_pixel, weight, _ = train.segmentation_loss(tensor, tf.constant(labels), 'ohem', class_weights)
    with tf.Session() as session:
        found = session.run([loss, per_pixel, weight])
        gradient = session.run(tf.gradients(loss, tensor)[0])
    assert found == pytest.approx([(entropy * of_pixel).sum() / weights.sum(), entropy.sum() / valid.sum(),
                                   weights.sum()], rel=1e-5)
    np.testing.assert_allclose(gradient, (softmax - onehot) * (of_pixel / weights.sum())[..., np.newaxis], atol=1e-6)


def test_equally_hard_pixels_all_count():
    """At the start all scores are zero: then no corner of the image is preferred."""
    labels = np.zeros((1, 4, 4), np.int32)
    tensor = tf.zeros((1, 4, 4, 3))
    loss, *_ = train.segmentation_loss(tensor, tf.constant(labels), 'ohem')
    with tf.Session() as session:
        gradient = session.run(tf.gradients(loss, tensor)[0])
    np.testing.assert_allclose(gradient[..., 0], (1 / 3 - 1) / 16 * np.ones((1, 4, 4)), rtol=1e-6)


def test_loss_of_a_batch_that_is_all_void_is_zero():
    for reduction in ('rows', 'mean', 'sum', 'ohem'):
        loss, per_pixel, _, pixels = run_loss(np.ones((1, 2, 2, 21)), np.full((1, 2, 2), 255), reduction)
        assert (loss, per_pixel, pixels) == (0, 0, 0)


# ------------------------------------------------------------------------------------------- a run


def test_a_run_leaves_checkpoints_settings_and_a_log(trained):
    files = os.listdir(trained / 'train')
    assert {'model.ckpt-2.index', 'model.ckpt-3.index', 'checkpoint', 'settings.json', 'log.csv'} <= set(files)
    settings = json.loads((trained / 'train' / 'settings.json').read_text())
    assert settings['batch_size'] == 2 and settings['learning_rate'] == 1e-4 and settings['seed'] == 0
    assert settings['recipe'] == 'default' and settings['augment'] == ['flip'] and settings['momentum'] == 0.9
    rows = read_log(trained)
    assert [int(row['step']) for row in rows] == [1, 2, 3]
    assert float(rows[0]['loss_per_pixel']) == pytest.approx(np.log(21), rel=1e-4)  # all scores start at zero
    assert all(float(row['images_per_second']) > 0 for row in rows)


def test_validation_pictures_are_at_true_size(trained, pairs):
    folder = trained / 'eval'
    assert sorted(os.listdir(folder)) == sorted(
        [f'val_2_{name}.jpg' for name in NAMES]
        + [f'val_2_{name}.png' for name in ('annotation', 'prediction', 'prediction_crfed')])
    image, label = pairs[0]
    for name in os.listdir(folder):
        assert Image.open(folder / name).size == (label.shape[1], label.shape[0])
    np.testing.assert_array_equal(np.array(Image.open(folder / 'val_2_annotation.png')), label)
    drawn = np.array(Image.open(folder / 'val_2_annotation.jpg')).astype(int)
    assert np.abs(drawn[label == 255] - (224, 224, 192)).mean() < 8  # void in VOC's colour
    assert np.abs(np.array(Image.open(folder / 'val_2_img.jpg')).astype(int) - image).mean() < 4


def test_tensorboard_gets_scalars_histograms_and_pictures(trained):
    found = {(step, value.tag) for step, value in events(trained)}
    assert {(step, tag) for step in (1, 2, 3) for tag in ('loss', 'loss_per_pixel', 'learning_rate')} <= found
    assert (3, 'vgg_16/conv1/conv1_1/weights/gradient') in found and (3, 'vgg_16/fc8/t_conv_x8/gradient') in found
    assert not any(step != 3 for step, tag in found if tag.endswith('/gradient'))
    assert {tag for step, tag in found if tag.startswith('validation/')} == {f'validation/{name}' for name in NAMES}


@pytest.mark.slow
def test_the_first_step_of_adam_and_weight_decay(small_runs, trained, record, tmp_path):
    """Adam's first step is learning_rate * sign(gradient); fc8's biases start at zero, and all have a gradient.

    A pixel's gradient cannot reach fc7 in the first step, because fc8 is zero; what moves fc7 is the decay.
    """
    train.main(short_run(record, tmp_path, '--max_steps', 1, '--weight_decay', 0.1))
    plain, decayed = (tf.train.load_checkpoint(str(run / 'train' / 'model.ckpt-1'))
                      for run in (trained, tmp_path))
    np.testing.assert_allclose(np.abs(plain.get_tensor('vgg_16/fc8/biases')), 1e-4, rtol=1e-3)
    plain, decayed = (reader.get_tensor('vgg_16/fc7/weights') for reader in (plain, decayed))
    np.testing.assert_allclose(plain - decayed, 1e-4 * np.sign(plain), atol=1e-6)


@pytest.mark.slow
def test_training_lowers_the_loss(small_runs, record, tmp_path, monkeypatch, capsys):
    """And the watchdog, which looks every 6 steps, has nothing to say."""
    monkeypatch.setattr(watchdog.Watchdog, 'WINDOW', 6)
    train.main(short_run(record, tmp_path, '--max_steps', 30, '--learning_rate', 3e-4))
    losses = [float(row['loss_per_pixel']) for row in read_log(tmp_path)]
    assert losses[0] > 3 and losses[-1] < 2.9
    assert 'watchdog' not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize('recipe', ['adamw', 'poly'])
def test_frozen_blocks_stay_and_have_no_gradient(small_runs, record, recipe):
    """Also their weight decay, decoupled or in the loss, is none."""
    args = train.parse_args(['--recipe', recipe, '--dataset_train', record, '--batch_size', '1', '--crop_size', '32',
                             '--weight_decay', '0.1', '--learning_rate', '0.01', '--freeze', 'conv3'])
    ops = train.build_training(args, train.Network(fc_channels=8), 5, 0)
    backward = {op.name for op in tf.get_default_graph().get_operations() if 'Backprop' in op.type}
    assert any('conv4_1' in name for name in backward)
    assert not any(f'conv{number}_1' in name for name in backward for number in (1, 2, 3))
    variables = {variable.op.name: variable for variable in tf.trainable_variables()}
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        before = session.run(variables)
        session.run(ops.train_op)
        after = session.run(variables)
    moved = {name for name in variables if '/weights' in name and (before[name] != after[name]).any()}
    assert moved >= {f'vgg_16/{layer}/weights' for layer in ('conv4/conv4_1', 'conv5/conv5_1', 'fc6', 'fc7')}
    assert not any(name.split('/')[1] in ('conv1', 'conv2', 'conv3') for name in moved)


def test_a_dry_run_draws_the_crops_and_trains_nothing(record, tmp_path, capsys):
    """The crops are those of the first batches."""
    argv = short_run(record, tmp_path, '--dry_run', '--augment', 'flip', 'scale')
    train.main(argv)
    assert '--dry_run: nothing is trained' in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path / 'train')) == ['crops_img.jpg', 'crops_overlay.jpg', 'lock', 'settings.json']
    page = (tmp_path / 'index.html').read_text()
    assert 'train/crops_img.jpg' in page and 'train/crops_overlay.jpg' in page
    args = train.parse_args(argv)
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(args.seed)
        batches = training_batches(train.sampling_of(args, 5, 21))
        images, _, _ = session.run(tf.data.make_one_shot_iterator(batches).get_next())
    sheet = np.array(Image.open(tmp_path / 'train' / 'crops_img.jpg')).astype(int)
    assert sheet.shape == (4 * 36 - 4, 4 * 36 - 4, 3)
    for image, left in zip(images, (0, 36)):
        assert np.abs(sheet[:32, left:left + 32] - image).mean() < 6


@pytest.mark.slow
def test_patience_ends_a_run_and_a_resume_remembers(small_runs, record, tmp_path, monkeypatch, capsys):
    """At a learning rate of 0 no score is better than the first."""
    argv = short_run(record, tmp_path, '--max_steps', 20, '--eval_steps', 2, '--patience', 2, '--learning_rate', 0,
                     '--log_steps', 4)
    for _ in range(2):
        train.main(argv)
        assert '--patience 2: no better mean IoU since step 2; training ends here' in capsys.readouterr().out
    assert [row['step'] for row in read_log(tmp_path, 'eval.csv')] == ['2', '4', '6']
    assert [row['step'] for row in read_log(tmp_path)] == ['1', '4', '6']
    train.main([*argv, '--patience', '3'])
    assert [row['step'] for row in read_log(tmp_path, 'eval.csv')] == ['2', '4', '6', '8']


def test_patience_needs_scores(capsys):
    with pytest.raises(SystemExit):
        train.parse_args(['--patience', '3'])
    assert '--patience: counts the scores of --eval_steps' in capsys.readouterr().err


@pytest.mark.slow
def test_the_papers_upsampling_and_scales_are_not_trained_but_kept(small_runs, record, tmp_path):
    train.main(short_run(record, tmp_path, '--max_steps', 2, '--eval_steps', 2, '--recipe', 'paper',
                         '--learning_rate', 1e-5))
    for folder in ('train', 'best'):
        reader = tf.train.load_checkpoint(str(tmp_path / folder))
        np.testing.assert_array_equal(reader.get_tensor('vgg_16/fc8/t_conv_x8'), utils.bilinear_upsample_weights(8, 21))
        assert [reader.get_tensor(f'vgg_16/fc8/scale_{pool}') for pool in ('pool4', 'pool3')] == [
            np.float32(1e-2), np.float32(1e-4)]
        assert reader.get_tensor('vgg_16/fc8/biases').any()


@pytest.mark.slow
def test_staged_training_by_the_command_line(small_runs, record, tmp_path, capsys):
    """32s, from its run 16s, from that 8s."""
    start = []
    for model in ('fcn_32s', 'fcn_16s', 'fcn_8s'):
        train.main(short_run(record, tmp_path / model, '--max_steps', 1, '--model', model, *start))
        start = ['--checkpoint_path', tmp_path / model]
        assert json.loads((tmp_path / model / 'train' / 'settings.json').read_text())['model'] == model
    printed = capsys.readouterr().out
    assert 'scores of pool4 start at zero' in printed and 'scores of pool3 start at zero' in printed
    assert train.read_network(find_checkpoint(str(tmp_path / 'fcn_8s'))).model == 'fcn_8s'


@pytest.fixture(scope='module')
def evaluated(record, tmp_path_factory):
    """The folder of a run of 5 steps that scores the validation record three times; and what it printed."""
    folder, printed = tmp_path_factory.mktemp('evaluated'), io.StringIO()
    with smaller(), tf.Graph().as_default(), contextlib.redirect_stdout(printed):
        train.main(short_run(record, folder, '--max_steps', 5, '--eval_steps', 2, '--learning_rate', 1e-3))
    return folder, printed.getvalue()


def find_highest(rows):
    return max(rows, key=lambda row: float(row['mean_iou']))


def test_best_holds_the_step_with_the_highest_mean_iou(small_runs, evaluated, record):
    folder, printed = evaluated
    rows = read_log(folder, 'eval.csv')
    assert [int(row['step']) for row in rows] == [2, 4, 5]
    best = find_checkpoint(str(folder / 'best'))
    assert best.endswith(f'model.ckpt-{find_highest(rows)["step"]}')
    assert sorted(os.listdir(folder / 'best')) == ['checkpoint', *(
        f'{os.path.basename(best)}.{ending}' for ending in ('data-00000-of-00001', 'index')), 'settings.json']

    found = evaluate.evaluate(best, record)
    for name, value in found.scores['plain'].figures().items():
        assert value == float(find_highest(rows)[name])  # to the last digit
    assert read_shapes(best).keys() == {
        name for name in read_shapes(find_checkpoint(str(folder / 'train')))
        if 'Adam' not in name and name not in ('global_step', 'beta1_power', 'beta2_power')}

    logged = {(step, value.tag): value.simple_value for step, value in events(folder)}
    for row in rows:
        for name in EvaluationLog.COLUMNS[1:]:
            assert logged[int(row['step']), f'validation/{name}'] == pytest.approx(float(row[name]), rel=1e-6)


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_scores(small_runs, evaluated, record, tmp_path):
    folder = shutil.copytree(evaluated[0], tmp_path / 'run')
    train.main(short_run(record, folder, '--max_steps', 6, '--eval_steps', 3))
    resumed = read_log(folder, 'eval.csv')
    assert resumed[:3] == read_log(evaluated[0], 'eval.csv') and [int(row['step']) for row in resumed] == [2, 4, 5, 6]
    assert find_checkpoint(str(folder / 'best')).endswith(f'model.ckpt-{find_highest(resumed)["step"]}')


def test_without_eval_steps_nothing_is_scored(trained):
    assert not os.path.exists(trained / 'best') and not os.path.exists(trained / 'train' / 'eval.csv')


@pytest.mark.slow
def test_pictures_are_drawn_while_training_goes_on(small_runs, record, tmp_path, monkeypatch, capsys):
    """With a picture every step, more come than may wait; each is there in the end, in order, with its own line."""
    monkeypatch.setattr(watchdog.Watchdog, 'WINDOW', 3)
    train.main(short_run(record, tmp_path, '--max_steps', 6, '--val_steps', 1, '--learning_rate', 0.01))
    printed = capsys.readouterr().out
    assert re.findall(r'val image(\d): .*val_(\d)_', printed) == [
        ('0', '1'), ('1', '2'), ('2', '3'), ('3', '4'), ('4', '5'), ('0', '6')]
    assert len(list((tmp_path / 'eval').glob('val_*_prediction_crfed.png'))) == 6
    assert 'watchdog: step 6: the loss per pixel is' in printed


# ------------------------------------------------------------------------------------------- what ends a run


def test_an_output_folder_that_is_a_file(record, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='file'):
        train.main(short_run(record, tmp_path / 'file', '--max_steps', 1))


def write_class_30(path):
    return write_record(path, [(np.zeros((40, 40, 3), np.uint8), np.full((40, 40), 30, np.uint8))])


def write_truncated_jpeg(path):
    image, label = draw_pair(200, 200, 0)
    encoded = encode(image, format='JPEG')[:700]  # of 1483; the header is intact
    return write_examples(path, [records.make_example(b'a', encoded, encode(label, format='PNG'), 200, 200)])


@pytest.mark.slow
@pytest.mark.parametrize('write, reason', [
    (write_truncated_jpeg, 'JPEG'), (write_class_30, 'class in the label of')])
def test_a_record_that_cannot_be_trained_on_is_named(small_runs, tmp_path, write, reason):
    bad = write(tmp_path / 'bad.record')
    with pytest.raises(UserError, match=rf'bad.record: cannot be read or decoded \(.*{reason}.*\)') as raised:
        train.main(short_run(bad, tmp_path / 'run', '--max_steps', 1))
    assert '\n' not in str(raised.value)


def test_memory_that_does_not_suffice_ends_with_the_cure(monkeypatch):
    def fail(*_):
        raise tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating')

    monkeypatch.setattr(train, 'train', fail)
    with pytest.raises(UserError, match='^out of memory: lower --batch_size or --crop_size, or end other programs'):
        train.main([])


# ------------------------------------------------------------------------------------------- the program


@pytest.mark.parametrize('flags', [['--batchsize', '4'], ['--max_steps', '-1']])
def test_a_wrong_flag_ends_with_one_line(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(flags)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert ('unrecognized arguments: --batchsize' in line) or ('--max_steps: -1 is not a number from 1 up' in line)


def test_a_missing_checkpoint_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='no.ckpt: no checkpoint there'):
        train.main(['--output_dir', 'out', '--checkpoint_path', 'no.ckpt'])
    assert not os.listdir(tmp_path)


def test_the_program_ends_mistakes_with_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['train.py', '--dataset_train', 'no.record'])
    with pytest.raises(SystemExit, match='^train.py: error: no.record: no such file; write it with convert'):
        utils.run_program(train.main)
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_the_script_trains_one_step_and_draws_a_picture(record, tmp_path):
    """With all of VGG16's convolutions, and the process that draws."""
    program = [sys.executable, os.path.join(ROOT, 'train.py'), *short_run(record, tmp_path, '--max_steps', 1,
                                                                          '--val_steps', 1)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'step     1/1  loss' in done.stdout and 'per pixel 3.04' in done.stdout
    assert os.path.exists(tmp_path / 'train' / 'model.ckpt-1.index')
    assert os.path.exists(tmp_path / 'eval' / 'val_1_overlay.jpg') and os.path.exists(tmp_path / 'index.html')
