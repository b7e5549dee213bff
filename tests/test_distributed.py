"""Towers, and machines: several devices train as one."""
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import draw_pair, write_record

import distributed
import input_pipeline
import recipes
import train
import vgg
from utils import UserError

NETWORK = train.Network(fc_channels=8)
RATES = {'owner': 1e-4, 'paper': 1e-6, 'adamw': 1e-4, 'poly': 1e-2}  # at which one step moves weights visibly
CLASS_WEIGHTS = np.linspace(0.2, 3, 21).astype(np.float32)


@pytest.fixture(scope='module')
def uneven_record(tmp_path_factory):
    """Images that are void but for 16, 26, ... columns: parts of a batch differ in what counts."""
    pairs = [draw_pair(70, 80, number) for number in range(6)]
    for number, (_, label) in enumerate(pairs):
        label[:, 16 + 10 * number:] = 255
    return write_record(tmp_path_factory.mktemp('uneven') / 'uneven.record', pairs)


def take_steps(args, start, class_weights=None, steps=2):
    """Losses, losses per pixel and weights (dict by name) after steps from the weights `start`, or from random ones."""
    with tf.Graph().as_default():
        ops = train.build_training(args, NETWORK, 6, 0, class_weights,
                                   distributed.place_here(args.num_gpus, args.batch_size))
        variables = tf.trainable_variables()
        with tf.Session(config=train.session_config(args)) as session:
            session.run(tf.global_variables_initializer())
            for variable in variables if start else ():
                variable.load(start[variable.op.name], session)
            before = {variable.op.name: session.run(variable) for variable in variables}
            found = [session.run([ops.loss, ops.loss_per_pixel, ops.train_op])[:2] for _ in range(steps)]
            return before, np.array(found), {variable.op.name: session.run(variable) for variable in variables}


@pytest.mark.parametrize('recipe, more', [
    *((recipe, []) for recipe in recipes.RECIPES), ('poly', ['--class_weights', 'median_frequency'])])
def test_two_towers_are_one_of_the_whole_batch(monkeypatch, uneven_record, recipe, more):
    monkeypatch.setattr(vgg, 'dropout', lambda inputs, *_: inputs)
    args = [train.parse_args(['--recipe', recipe, '--batch_size', '4', '--dataset_train', uneven_record,
                              '--learning_rate', str(RATES[recipe]), '--num_gpus', number, *more,
                              *(['--crop_size', '64'] if recipe != 'paper' else [])]) for number in '12']
    class_weights = CLASS_WEIGHTS if more else None
    start, losses, expected = take_steps(args[0], None, class_weights)
    _, found_losses, found = take_steps(args[1], start, class_weights)
    np.testing.assert_allclose(found_losses, losses, rtol=1e-5)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
        moved = np.linalg.norm(expected[name] - start[name])  # not so little that all would look alike
        assert np.linalg.norm(found[name] - expected[name]) <= 0.03 * moved + 1e-6, name


def test_the_towers_of_a_test_differ_in_what_counts(uneven_record):
    batches = input_pipeline.training_batches(uneven_record, 6, 4, 64, (0, 0, 0), seed=0)
    _, labels, _ = tf.data.make_one_shot_iterator(batches).get_next()
    with tf.Session() as session:
        counted = (session.run(labels) != 255).sum(axis=(1, 2))
    assert not 0.8 < counted[:2].sum() / counted[2:].sum() < 1.25


def test_towers_drop_different_places(monkeypatch, uneven_record):
    seeds = []
    monkeypatch.setattr(vgg, 'dropout', lambda inputs, layer, keep, training, seed: seeds.append(seed) or inputs)
    args = train.parse_args(['--batch_size', '4', '--crop_size', '32', '--dataset_train', uneven_record, '--num_gpus',
                             '2', '--seed', '7'])
    train.build_training(args, NETWORK, 6, 0, placement=distributed.place_here(2, 4))
    with tf.Session(config=train.session_config(args)) as session:
        session.run(tf.global_variables_initializer())
        found = session.run(seeds)
    assert [seed.tolist() for seed in found] == [[7, 0], [7, 0], [7, 1 << 32], [7, 1 << 32]]


def test_machines_read_the_parts_of_one_batch(uneven_record):
    def read(part):
        batches = input_pipeline.training_batches(uneven_record, 6, 5, 48, (0, 0, 0), seed=3, start_step=2, part=part)
        return tf.data.make_one_shot_iterator(batches).get_next()

    whole, *parts = read(None), read((0, 2)), read((2, 5))
    with tf.Session() as session:
        for _ in range(4):
            expected, first, second = session.run([whole, *parts])
            for tensor, *pieces in zip(expected, first, second):
                np.testing.assert_array_equal(np.concatenate(pieces), tensor)


def test_a_batch_that_does_not_divide_is_named():
    with pytest.raises(UserError, match='--batch_size 4 is the total of 3 devices, and does not divide by 3'):
        distributed.place_here(3, 4)


def test_one_device_is_left_to_tensorflow():
    assert distributed.place_here(None, 5) == distributed.place_here(1, 5) == distributed.HERE


def test_variables_go_where_least_is_held():
    with tf.device(distributed.VariablesApart(['/device:CPU:0', '/device:CPU:1'])):
        sizes = [tf.get_variable(f'v{number}', [size]) for number, size in enumerate((5, 3, 1, 2, 1))]
    assert [variable.device[-1] for variable in sizes] == list('01110')
