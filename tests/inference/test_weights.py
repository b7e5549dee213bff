"""A trained network on disk is found, looked into, and restored."""
import json
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from datasets import classes
from inference import weights
from utils import UserError


def save_values(path, values):
    """Writes a checkpoint of variables, dict of name to value."""
    with tf.Graph().as_default(), tf.Session() as session:
        variables = [tf.Variable(value, name=name) for name, value in values.items()]
        session.run(tf.global_variables_initializer())
        tf.train.Saver(variables).save(session, str(path), write_meta_graph=False, write_state=False)
    return str(path)


# ------------------------------------------------------------------------------------------- found


def test_what_is_not_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match='nothing.ckpt: no checkpoint there'):
        weights.find_checkpoint(str(tmp_path / 'nothing.ckpt'))
    with pytest.raises(UserError, match='no checkpoint there'):
        weights.find_checkpoint(str(tmp_path))
    (tmp_path / 'text.ckpt').write_text('no checkpoint')
    with pytest.raises(UserError, match='text.ckpt: not a TensorFlow checkpoint'):
        weights.find_checkpoint(str(tmp_path / 'text.ckpt'))


def test_the_run_folder_stands_for_its_checkpoint(trained):
    newest = str(trained / 'train' / 'model.ckpt-3')
    assert weights.find_checkpoint(str(trained)) == newest
    assert weights.find_checkpoint(str(trained / 'train')) == newest
    assert weights.find_checkpoint(newest) == newest


@pytest.mark.parametrize('name, step', [('a/model.ckpt-12', 12), ('a-3/vgg_16.ckpt', None)])
def test_checkpoint_step(name, step):
    assert weights.checkpoint_step(name) == step


# ------------------------------------------------------------------------------------------- restored


def test_variables_are_restored_by_name(tmp_path):
    path = save_values(tmp_path / 'a.ckpt', {'a': np.float32([1, 2]), 'b': np.float32([3]), 'other': np.float32(0)})
    assert weights.read_shapes(path) == {'a': [2], 'b': [1], 'other': []}
    variables = [tf.get_variable('b', [1]), tf.get_variable('a', [2])]
    with tf.Session() as session:
        weights.restore(session, path, variables)
        assert [value.tolist() for value in session.run(variables)] == [[3], [1, 2]]


def test_a_missing_variable_is_named(tmp_path):
    path = save_values(tmp_path / 'a.ckpt', {'a': np.float32([1, 2])})
    variables = [tf.get_variable('a', [2]), tf.get_variable('b', [1])]
    with tf.Session() as session, pytest.raises(UserError, match='a.ckpt: variable b is missing'):
        weights.restore(session, path, variables)


def test_a_misshapen_variable_is_named(tmp_path):
    path = save_values(tmp_path / 'a.ckpt', {'vgg_16/fc6/weights': np.zeros([7, 7, 2, 16], np.float32)})
    variable = tf.get_variable('vgg_16/fc6/weights', [7, 7, 2, 8])
    with tf.Session() as session, pytest.raises(
            UserError, match=r'vgg_16/fc6/weights has shape \[7, 7, 2, 16\], the network needs \[7, 7, 2, 8\] \(is '
                             r'--fc_channels the same\?\)'):
        weights.restore(session, path, [variable])


def test_a_truncated_checkpoint_is_named(tmp_path):
    path = save_values(tmp_path / 'a.ckpt', {'a': np.zeros(1000, np.float32)})
    os.truncate(f'{path}.data-00000-of-00001', 2000)
    with tf.Session() as session, pytest.raises(UserError, match='a.ckpt: damaged'):
        weights.restore(session, path, [tf.get_variable('a', [1000])])


# ------------------------------------------------------------------------------------------- settings and classes


@pytest.mark.parametrize('text', ['not JSON', '3', '[' * 100000])
def test_damaged_settings_are_named(tmp_path, text):
    (tmp_path / 'settings.json').write_text(text)
    with pytest.raises(UserError, match='settings.json: not the settings of a run; remove it'):
        weights.read_settings(str(tmp_path))
    assert weights.read_settings(str(tmp_path / 'nowhere')) == {}


def test_settings_that_are_a_pipe_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'settings.json')
    with pytest.raises(OSError, match='file'):
        weights.read_settings(str(tmp_path))


def test_classes_are_those_of_the_run(tmp_path):
    path = save_values(tmp_path / 'model.ckpt-1', {'vgg_16/fc8/weights': np.zeros([1, 1, 8, 2], np.float32)})
    with pytest.raises(UserError, match='model.ckpt-1: has 2 classes, VOC 21; name them by --classes FILE'):
        weights.find_classes(path)
    own = classes.make_class_set(['road', 'sky'])
    (tmp_path / 'settings.json').write_text(json.dumps({'classes': classes.as_json(own)}))
    assert weights.find_classes(path) == own
    other = save_values(tmp_path / 'other.ckpt', {'a': np.float32(1)})
    with pytest.raises(UserError, match='other.ckpt: variable vgg_16/fc8/weights is missing; take a checkpoint of tr'):
        weights.find_classes(other)


# ------------------------------------------------------------------------------------------- its run folder


@pytest.mark.parametrize('checkpoint, run_folder', [
    ('/runs/a/train/model.ckpt-3', '/runs/a'), ('runs/a/best/model.ckpt-3', 'runs/a'), ('train/model.ckpt-3', '.')])
def test_results_go_into_the_run_of_the_checkpoint(checkpoint, run_folder):
    assert weights.find_run_folder(checkpoint) == os.path.relpath(run_folder)
    folder = weights.choose_output_dir(checkpoint, None, 'evaluation')
    assert os.path.normpath(folder) == os.path.relpath(os.path.join(run_folder, 'evaluation'))
    assert weights.choose_output_dir(checkpoint, 'elsewhere', 'evaluation') == 'elsewhere'


def test_a_checkpoint_outside_a_run_needs_an_output_dir():
    assert weights.find_run_folder('model.ckpt-3') is None
    with pytest.raises(UserError, match='^model.ckpt-3 is not in the folder of a run; give --output_dir$'):
        weights.choose_output_dir('model.ckpt-3', None, 'evaluation')
