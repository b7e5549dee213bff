"""Towers: several devices train as one."""
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import draw_pair, randomize_pool3, write_record

import train
import vgg
from datasets import batches
from inference import weights
from inference.predictor import build_predictor
from training import towers
from training.session import session_config
from utils import UserError

NETWORK = train.Network(fc_channels=8)
RATES = {'default': 1e-4, 'paper': 1e-6, 'adamw': 1e-4, 'poly': 1e-2}  # at which one step moves weights visibly
CLASS_WEIGHTS = np.linspace(0.2, 3, 21).astype(np.float32)


@pytest.fixture(autouse=True)
def no_dropout(monkeypatch):
    """No dropout: the arithmetic is the same."""
    monkeypatch.setattr(vgg, 'dropout', lambda inputs, *_: inputs)


@pytest.fixture(scope='module')
def uneven_record(tmp_path_factory):
    """Images that are void but for 16, 26, ... columns: parts of a batch differ in their number of counted pixels."""
    pairs = [draw_pair(70, 80, number) for number in range(6)]
    for number, (_, label) in enumerate(pairs):
        label[:, 16 + 10 * number:] = 255
    return write_record(tmp_path_factory.mktemp('uneven') / 'uneven.record', pairs)


def set_variables(session, values):
    """Sets all trainable variables from a dict by name in one call."""
    variables = {variable.op.name: variable for variable in tf.trainable_variables()}
    session.run([variable.initializer for variable in variables.values()],
                {variable.initializer.inputs[1]: values[name] for name, variable in variables.items()})


def take_steps(args, start, class_weights=None, steps=2):
    """Weights before (dict by name), losses, and weights after steps from the weights `start`, or from random ones."""
    with tf.Graph().as_default():
        tf.set_random_seed(0)
        ops = train.build_training(args, NETWORK, 6, 0, class_weights,
                                   towers.place_here(args.num_gpus, args.recipe.batch_size))
        variables = {variable.op.name: variable for variable in tf.trainable_variables()}
        with tf.Session(config=session_config(args.num_gpus)) as session:
            session.run(tf.global_variables_initializer())
            if start:
                set_variables(session, start)
            before = session.run(variables)
            losses = [session.run([ops.loss, ops.loss_per_pixel, ops.train_op])[:2] for _ in range(steps)]
            return before, np.array(losses), session.run(variables)


@pytest.mark.slow
@pytest.mark.parametrize('recipe, more', [
    ('default', []), ('paper', []), ('adamw', []), ('poly', ['--class_weights', 'median_frequency']),
    ('poly', ['--class_weights', 'median_frequency', '--loss', 'ohem'])])
def test_towers_train_as_one_on_the_complete_batch(uneven_record, recipe, more):
    """Each recipe has another loss or optimiser; poly's is the mean loss of adamw, here with class weights."""
    crop = [] if recipe == 'paper' else ['--crop_size', '64']
    args = [train.parse_args(['--recipe', recipe, '--batch_size', '4', '--dataset_train', uneven_record,
                              '--learning_rate', str(RATES[recipe]), *crop, *more, *split.split()])
            for split in ('', '--num_gpus 2', '--accumulate 4 --batch_size 1',
                          '--accumulate 2 --batch_size 2 --num_gpus 2')]
    class_weights = CLASS_WEIGHTS if more else None
    start, losses, expected = take_steps(args[0], None, class_weights)
    for split in args[1:]:
        _, found_losses, found = take_steps(split, start, class_weights)
        np.testing.assert_allclose(found_losses, losses, rtol=1e-5)
        for name in expected:
            # Adam moves a weight by the learning rate even if its gradient is only rounding noise.
            assert np.isclose(found[name], expected[name], rtol=1e-5, atol=1e-5).mean() > 0.9999, name
            moved = np.linalg.norm(expected[name] - start[name])  # large enough to show a difference
            assert np.linalg.norm(found[name] - expected[name]) <= 0.03 * moved + 1e-6, name


def test_the_towers_of_a_test_differ_in_what_counts(uneven_record):
    dataset = batches.training_batches(batches.Sampling(uneven_record, 6, 4, 64, (0, 0, 0), seed=0))
    _, labels, _ = tf.data.make_one_shot_iterator(dataset).get_next()
    with tf.Session() as session:
        counted = (session.run(labels) != 255).sum(axis=(1, 2))
    assert not 0.8 < counted[:2].sum() / counted[2:].sum() < 1.25


@pytest.mark.slow
def test_towers_drop_different_units(monkeypatch, uneven_record):
    seeds = []
    monkeypatch.setattr(vgg, 'dropout', lambda inputs, layer, training, seed: seeds.append(seed) or inputs)
    args = train.parse_args(['--batch_size', '4', '--crop_size', '32', '--dataset_train', uneven_record, '--num_gpus',
                             '2', '--seed', '7'])
    train.build_training(args, NETWORK, 6, 0, placement=towers.place_here(2, 4))
    with tf.Session(config=session_config(2)) as session:
        session.run(tf.global_variables_initializer())
        found = session.run(seeds)
    assert [seed.tolist() for seed in found] == [[7, 0], [7, 0], [7, 1 << 32], [7, 1 << 32]]


def test_machines_read_the_parts_of_one_batch(uneven_record):
    def read(part):
        sampling = batches.Sampling(uneven_record, 6, 5, 48, (0, 0, 0), seed=3)
        dataset = batches.training_batches(sampling, start_step=2, part=part)
        return tf.data.make_one_shot_iterator(dataset).get_next()

    complete, *parts = read(None), read((0, 2)), read((2, 5))
    with tf.Session() as session:
        for _ in range(4):
            expected, first, second = session.run([complete, *parts])
            for tensor, *pieces in zip(expected, first, second):
                np.testing.assert_array_equal(np.concatenate(pieces), tensor)


def test_a_batch_must_be_divisible():
    with pytest.raises(UserError, match='--batch_size 4 cannot be divided equally over 3 devices; give a mult'):
        towers.place_here(3, 4)


def test_tensorflow_chooses_a_single_device():
    assert towers.place_here(1, 5) == towers.HERE


def test_variables_are_balanced_over_devices():
    with tf.device(towers.balance_variables(['/device:CPU:0', '/device:CPU:1'])):
        sizes = [tf.get_variable(f'v{number}', [size]) for number, size in enumerate((5, 3, 1, 2, 1))]
    assert [variable.device[-1] for variable in sizes] == list('01110')


@pytest.mark.slow
@pytest.mark.parametrize('recipe', ['adamw', 'poly'])
def test_partitioned_variables_train_alike_and_share_checkpoints(tmp_path, uneven_record, recipe):
    """fc6 in two parts: restored from the checkpoint of an undivided one, it is trained alike and saved alike."""
    args = train.parse_args(['--recipe', recipe, '--batch_size', '2', '--dataset_train', uneven_record,
                             '--learning_rate', str(RATES[recipe]), '--weight_decay', '0.1', '--num_gpus', '2',
                             '--crop_size', '32'])
    together = towers.place_here(2, 2)
    found = {}
    for number, parameters in ((1, ['/CPU:0']), (2, ['/CPU:0', '/CPU:1'])):
        with tf.Graph().as_default():
            ops = train.build_training(args, NETWORK, 6, 0, placement=together._replace(parameters=parameters))
            build_predictor(train.fcn, NETWORK)
            assert sum('fc6/weights' in variable.op.name for variable in tf.trainable_variables()) == number
            saver = tf.train.Saver()
            with tf.Session(config=session_config(2)) as session:
                session.run(tf.global_variables_initializer())
                if found:
                    weights.restore(session, str(tmp_path / 'start-0'), tf.global_variables())
                else:
                    saver.save(session, str(tmp_path / 'start'), 0, write_meta_graph=False)
                session.run([ops.train_op, ops.ids])
                saver.save(session, str(tmp_path / str(number)), 1, write_meta_graph=False)
        reader = tf.train.load_checkpoint(str(tmp_path / f'{number}-1'))
        found[number] = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
    assert found[1].keys() == found[2].keys()
    for key, value in found[1].items():
        np.testing.assert_allclose(found[2][key], value, rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.slow
def test_the_chief_predicts_with_copies_of_remote_variables():
    remote = towers.HERE._replace(home='/CPU:0', parameters=['/CPU:1', '/CPU:2'])
    towers.partition_fc6(2)
    near = build_predictor(train.fcn, NETWORK)
    far, fetch_weights = towers.build_at_home(remote, lambda: build_predictor(train.fcn, NETWORK))
    assert towers.build_at_home(towers.HERE, lambda: 'built') == ('built', [])
    assert len(fetch_weights) == len(weights.network_variables()) - 1  # fc6's two parts have one copy
    assert not any('copy' in variable.name for variable in tf.global_variables())
    image = np.random.RandomState(0).randint(0, 256, (1, 40, 50, 3))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for seed in range(2):
            randomize_pool3(session, seed, spread=0.1)
            session.run(fetch_weights)
            found, expected = (session.run(one.probabilities, {one.image: image}) for one in (far, near))
            np.testing.assert_allclose(found, expected, atol=1e-6)
            assert expected.std() > 1e-3
