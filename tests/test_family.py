"""fcn_32s, fcn_16s and fcn_8s: what they share, and how a run starts from another one."""
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from test_train import short_run

import train
import utils
from datasets import classes
from train import Network
from utils import UserError

IMAGES = np.random.RandomState(0).randint(0, 256, (2, 70, 50, 3)).astype(np.uint8)


def network(model, **others):
    return Network(model, fc_channels=8, **others)


def run(network, initialise):
    """Logits of IMAGES, and the variables by name, after initialise(session)."""
    with tf.Graph().as_default():
        logits = train.fcn(tf.constant(IMAGES), network)
        with tf.Session() as session:
            initialise(session)
            return session.run([logits, {v.op.name: v.value() for v in train.network_variables()}])


def set_at_random(session):
    """All variables that can be trained at random: upsampling and scores are no longer what they start as."""
    session.run(tf.global_variables_initializer())
    random = np.random.RandomState(1)
    for variable in tf.trainable_variables('vgg_16/fc8/'):
        variable.load(session.run(variable) + random.normal(0, 0.1, variable.shape.as_list()), session)


def write_checkpoint(network, path):
    def initialise(session):
        set_at_random(session)
        tf.train.Saver(train.network_variables()).save(session, path, write_meta_graph=False)
    return run(network, initialise)


@pytest.mark.parametrize('coarse, fine, skips', [('fcn_32s', 'fcn_16s', 'pool4'), ('fcn_16s', 'fcn_8s', 'pool3'),
                                                 ('fcn_32s', 'fcn_8s', 'pool4 and pool3')])
def test_a_finer_model_starts_as_the_coarser_one_has_ended(tmp_path, capsys, coarse, fine, skips):
    """Its logits are the coarser one's own, at the image's size, whatever that has learned; the new skip is at zero."""
    path = str(tmp_path / 'model.ckpt-7')
    ended, _ = write_checkpoint(network(coarse), path)
    started, variables = run(network(fine), lambda session: train.initialise(session, None, path, classes.VOC))
    np.testing.assert_allclose(started, ended, rtol=0, atol=1e-5)
    assert np.abs(ended).max() > 0.1
    for pool in skips.split(' and '):
        assert not variables[f'vgg_16/fc8/conv_{pool}/weights'].any()
    assert f'scores of {skips} start at zero' in capsys.readouterr().out


def test_scales_of_a_coarser_run_come_with_it(tmp_path):
    path = str(tmp_path / 'model.ckpt-7')
    ended, _ = write_checkpoint(network('fcn_16s', skip_scales=(0.01, 1)), path)
    started, variables = run(network('fcn_8s', skip_scales=(1, 0.5)),
                             lambda session: train.initialise(session, None, path, classes.VOC))
    np.testing.assert_allclose(started, ended, rtol=0, atol=1e-5)
    assert [variables[f'vgg_16/fc8/scale_{pool}'] for pool in ('pool4', 'pool3')] == [np.float32(0.01), 0.5]


@pytest.mark.parametrize('model, skips', [('fcn_32s', []), ('fcn_16s', ['pool4']), ('fcn_8s', ['pool4', 'pool3'])])
def test_what_a_model_has(model, skips, tmp_path):
    path = str(tmp_path / 'model.ckpt')
    _, variables = write_checkpoint(network(model), path)
    assert [pool for pool in ('pool4', 'pool3') if f'vgg_16/fc8/conv_{pool}/weights' in variables] == skips
    assert train.read_network(path)[:3] == (model, 21, 8)


def test_a_skip_is_scaled_before_its_scores():
    """A score of weight w on a pool scaled by 0.25 is one of weight w / 4 on the pool itself."""
    def initialise(weight):
        def set_scores(session):
            session.run(tf.global_variables_initializer())
            [kernel] = tf.trainable_variables('vgg_16/fc8/conv_pool3/weights')
            kernel.load(np.full(kernel.shape.as_list(), weight), session)
        return set_scores
    tf.set_random_seed(0)
    same_start = [run_with_seed(network('fcn_8s', skip_scales=(1, 0.25)), initialise(1.0)),
                  run_with_seed(network('fcn_8s'), initialise(0.25))]
    assert np.abs(same_start[0]).max() > 1
    np.testing.assert_allclose(*same_start, rtol=1e-5)


def run_with_seed(network, initialise):
    with tf.Graph().as_default():
        tf.set_random_seed(3)
        logits = train.fcn(tf.constant(IMAGES), network)
        with tf.Session() as session:
            initialise(session)
            return session.run(logits)


# ------------------------------------------------------------------------------------------- older runs


@pytest.fixture
def older(trained, tmp_path):
    """The run `trained` as one from before there were scales and recipes has it."""
    shutil.copytree(trained, tmp_path / 'older')
    path = str(tmp_path / 'older' / 'train' / 'model.ckpt-3')
    reader = tf.train.load_checkpoint(path)
    with tf.Graph().as_default(), tf.Session() as session:
        variables = [tf.Variable(reader.get_tensor(name), name=name)
                     for name in reader.get_variable_to_shape_map() if '/scale_pool' not in name]
        session.run(tf.global_variables_initializer())
        tf.train.Saver(variables).save(session, path, write_meta_graph=False)
    settings = tmp_path / 'older' / 'train' / 'settings.json'
    known = json.loads(settings.read_text())
    settings.write_text(json.dumps({name: value for name, value in known.items() if name not in (
        'model', 'recipe', 'optimizer', 'upsampling', 'skip_scales')}))
    return tmp_path / 'older'


def test_a_run_from_before_there_were_scales_has_scales_of_1(trained, older):
    def predict(folder):
        with tf.Graph().as_default(), tf.Session() as session:
            predictor = train.load_predictor(session, train.find_checkpoint(str(folder)))
            return train.predict_image(session, predictor, IMAGES[0])

    checkpoint = train.find_checkpoint(str(older))
    assert not any('scale' in name for name in train.read_shapes(checkpoint))
    np.testing.assert_array_equal(predict(older), predict(trained))
    _, variables = run(network('fcn_8s', skip_scales=(0.25, 0.5)),
                       lambda session: train.initialise(session, None, checkpoint, classes.VOC))
    assert [variables[f'vgg_16/fc8/scale_{pool}'] for pool in ('pool4', 'pool3')] == [1, 1]
    np.testing.assert_array_equal(variables['vgg_16/fc8/conv_pool3/weights'],
                                  tf.train.load_checkpoint(checkpoint).get_tensor('vgg_16/fc8/conv_pool3/weights'))


def test_a_run_from_before_there_were_scales_is_resumed(record, older):
    flags = short_run(record, older, '--max_steps', 4)
    for flag, values, shown in (('--skip_scales', '0.25 0.5', r'\[1.0, 1.0\]'), ('--optimizer', 'adamw', 'adam')):
        with pytest.raises(UserError, match=f'its run has {flag} {shown}, now it is '):
            train.main([*flags, flag, *values.split()])
    train.main(flags)
    reader = tf.train.load_checkpoint(str(older / 'train'))
    assert reader.get_tensor('global_step') == 4
    assert [reader.get_tensor(f'vgg_16/fc8/scale_{pool}') for pool in ('pool4', 'pool3')] == [1, 1]


# ------------------------------------------------------------------------------------------- upsampling, stages


def test_fixed_upsampling_is_not_trained_but_kept(record, tmp_path):
    train.main(short_run(record, tmp_path, '--max_steps', 2, '--eval_steps', 2, '--upsampling', 'fixed',
                         '--learning_rate', 0.01))
    for folder in ('train', 'best'):
        reader = tf.train.load_checkpoint(str(tmp_path / folder))
        np.testing.assert_array_equal(reader.get_tensor('vgg_16/fc8/t_conv_x8'), utils.bilinear_upsample_weights(8, 21))
        assert reader.get_tensor('vgg_16/fc8/biases').any()


def test_staged_training_by_the_command_line(record, tmp_path, capsys):
    """32s, from its run 16s, from that 8s."""
    flags = ['--max_steps', 2]
    start = []
    for model in ('fcn_32s', 'fcn_16s', 'fcn_8s'):
        train.main(short_run(record, tmp_path / model, *flags, '--model', model, *start))
        start = ['--checkpoint_path', tmp_path / model]
        assert json.loads((tmp_path / model / 'train' / 'settings.json').read_text())['model'] == model
    printed = capsys.readouterr().out
    assert 'scores of pool4 start at zero' in printed and 'scores of pool3 start at zero' in printed
    assert train.read_network(train.find_checkpoint(str(tmp_path / 'fcn_8s'))).model == 'fcn_8s'


@pytest.mark.parametrize('flag, value, shown', [
    ('--model', 'fcn_16s', '--model fcn_8s, now it is fcn_16s'), ('--optimizer', 'momentum', '--optimizer adam'),
    ('--fc_channels', 16, '--fc_channels 8'), ('--upsampling', 'fixed', '--upsampling learned')])
def test_a_run_goes_on_with_its_own_network_only(record, trained, tmp_path, flag, value, shown):
    shutil.copytree(trained, tmp_path / 'run')
    with pytest.raises(UserError, match=shown):
        train.main([*short_run(record, tmp_path / 'run', '--max_steps', 4), flag, str(value)])


# ------------------------------------------------------------------------------------------- other classes


def save_side_file(record, names):
    class_set = classes.make_class_set(names)
    classes.save_side_file(classes.side_file(record), class_set, 5, np.arange(256))
    return class_set


@pytest.fixture
def own_record(record, tmp_path):
    """The record of the tests for 25 classes of its own, which include its values 0 to 20."""
    path = str(shutil.copy(record, tmp_path / 'own.record'))
    save_side_file(path, [f'thing {number}' for number in range(25)])
    return path


def test_own_classes_are_taken_from_the_record(own_record, tmp_path):
    train.main(short_run(own_record, tmp_path / 'run', '--max_steps', 1, '--val_steps', 1))
    checkpoint = train.find_checkpoint(str(tmp_path / 'run'))
    assert train.read_network(checkpoint).number_of_classes == 25
    assert train.find_classes(checkpoint).names == tuple(f'thing {number}' for number in range(25))


def test_other_classes_start_anew_on_the_trunk_of_a_run(own_record, trained, tmp_path, capsys):
    train.main(short_run(own_record, tmp_path / 'run', '--max_steps', 1, '--checkpoint_path', trained))
    assert 'its run has other classes: their scores start anew' in capsys.readouterr().out


def test_records_of_different_classes_are_refused(record, own_record, tmp_path):
    with pytest.raises(UserError, match='has 25 classes, of which number 0 is thing 0; .* has 21 classes, of which '
                                        'number 0 is background'):
        train.main([*short_run(own_record, tmp_path / 'run', '--max_steps', 1), '--dataset_val', record])
    assert not os.path.exists(tmp_path / 'run')


def test_a_resumed_run_keeps_its_classes(own_record, tmp_path):
    train.main(short_run(own_record, tmp_path / 'run', '--max_steps', 1))
    save_side_file(own_record, [f'matter {number}' for number in range(25)])
    with pytest.raises(UserError, match='number 0 is matter 0; the run in .* number 0 is thing 0'):
        train.main(short_run(own_record, tmp_path / 'run', '--max_steps', 2))


def test_class_weights_come_from_the_side_file(own_record, record, tmp_path):
    """Pixels 0, 1, ..., 24: the median of the 24 that occur is 12.5."""
    args = train.parse_args(['--dataset_train', own_record, '--class_weights', 'median_frequency'])
    np.testing.assert_allclose(train.find_class_weights(args), [1, *(12.5 / np.arange(1, 25))], rtol=1e-6)
    args.dataset_train = record
    with pytest.raises(UserError, match='small.record.json: missing'):
        train.find_class_weights(args)
