"""A run's folder: one run at a time, settings, tables and events, also on a full disk."""
import json
import os
import subprocess

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import full_disk, short_run

import train
from datasets import classes
from inference import crf
from inference.weights import read_settings
from training import checkpoints, run_folder
from utils import UserError

COLUMNS = ('step', 'text')

# ------------------------------------------------------------------------------------------- one at a time


def test_a_second_run_is_refused_while_the_first_lives(record, tmp_path):
    train_dir = run_folder.make(str(tmp_path))
    with run_folder.lock(train_dir):
        with pytest.raises(UserError, match=f'{train_dir}: another run trains there; wait until it ends, or name anot'):
            train.main(short_run(record, tmp_path, '--max_steps', 1))
        assert os.listdir(train_dir) == ['lock']
    with run_folder.lock(train_dir):
        pass


def test_a_lock_ends_with_its_program_whatever_that_has_started(tmp_path):
    with crf.start_processes(1) as pool:
        with run_folder.lock(str(tmp_path)):
            assert pool.submit(os.getpid).result() != os.getpid()  # is started now, and lives on
        with run_folder.lock(str(tmp_path)):
            pass


def write_checkpoints(folder, steps):
    variable = tf.get_variable('a', [3], initializer=tf.zeros_initializer())
    with tf.Session() as session:
        session.run(variable.initializer)
        for step in steps:
            checkpoints.save(session, tf.train.Saver(), str(folder), step)


def test_what_a_killed_program_left_is_removed(tmp_path):
    run_folder.make(str(tmp_path))
    write_checkpoints(tmp_path / 'train', (2, 4))
    dead = subprocess.Popen(['true'])
    dead.wait()
    data = 'data-00000-of-00001'
    stay = {'train/mine.data-00000-of-00001', f'eval/partial-{os.getpid()}-val_1_img.jpg', 'eval/val_1_img.jpg',
            *(f'train/{name}' for name in os.listdir(tmp_path / 'train'))}
    go = {f'train/model.ckpt-6.{data}', f'train/model.ckpt-8.{data}.tempstate123',
          'train/model.ckpt-8.index.tempstate9', 'train/checkpoint.tmp' + 32 * 'a', f'partial-{dead.pid}-index.html',
          f'train/partial-{dead.pid}-log.csv', f'eval/partial-{dead.pid}-val_1_img.jpg'}
    for name in stay | go:
        if not os.path.exists(tmp_path / name):
            (tmp_path / name).write_text('')
    run_folder.remove_leftovers(str(tmp_path))
    for name in stay | go:
        assert os.path.exists(tmp_path / name) == (name in stay), name


# ------------------------------------------------------------------------------------------- settings


def test_settings_keep_where_vgg_came_from(tmp_path):
    def origin(start_from, resumed):
        run_folder.save_settings(str(tmp_path), {'checkpoint_path': start_from}, classes.VOC, start_from, resumed)
        return json.loads((tmp_path / 'settings.json').read_text())['vgg_weights_from']

    assert origin(None, resumed=False) == 'random start'
    assert origin('a.ckpt', resumed=True) == 'random start'
    assert origin('a.ckpt', resumed=False) == 'a.ckpt'  # another run in the same folder
    assert origin(None, resumed=True) == 'a.ckpt'
    settings = read_settings(str(tmp_path))
    assert settings['checkpoint_path'] is None and settings['classes'] == classes.as_json(classes.VOC)


SETTINGS = {'model': 'fcn_8s', 'fc_channels': 8, 'upsampling': 'learned', 'skip_scales': (1.0, 1.0),
            'optimizer': 'adam', 'seed': 0}


def check(train_dir, class_set=classes.VOC, **changed):
    run_folder.check_settings(str(train_dir), {**SETTINGS, **changed}, class_set, 'a.record')


def test_a_dry_run_of_a_run_is_no_other_setting(tmp_path, capsys):
    run_folder.save_settings(str(tmp_path), {**SETTINGS, 'dry_run': False}, classes.VOC, None, resumed=False)
    check(tmp_path, dry_run=True, seed=1)
    assert capsys.readouterr().out == 'changed seed: 0 -> 1\n'


@pytest.mark.parametrize('name, value, shown', [
    ('model', 'fcn_16s', 'model fcn_8s, now it is fcn_16s'), ('fc_channels', 16, 'fc_channels 8, now it is 16'),
    ('upsampling', 'fixed', 'upsampling learned, now it is fixed'),
    ('skip_scales', (0.01, 0.0001), r'skip_scales \[1.0, 1.0\], now it is \[0.01, 0.0001\]'),
    ('optimizer', 'momentum', 'optimizer adam, now it is momentum')])
def test_a_run_is_resumed_with_its_own_network_only(tmp_path, name, value, shown):
    run_folder.save_settings(str(tmp_path), SETTINGS, classes.VOC, None, resumed=False)
    check(tmp_path, seed=5)
    with pytest.raises(UserError, match=f'{tmp_path}: its run has {shown}; give the same flags, or start anew'):
        check(tmp_path, **{name: value})


def test_a_run_is_resumed_with_its_own_classes_only(tmp_path):
    run_folder.save_settings(str(tmp_path), SETTINGS, classes.make_class_set(['thing 0', 'thing 1']), None, False)
    with pytest.raises(UserError, match='number 0 is matter 0; the run in .* number 0 is thing 0'):
        check(tmp_path, classes.make_class_set(['matter 0', 'thing 1']))


# ------------------------------------------------------------------------------------------- tables


@full_disk
def test_a_table_grows_by_complete_rows(tmp_path, limit, number):
    with limit(tmp_path, 16384):
        path = str(tmp_path / 'log.csv')
        with pytest.raises(OSError) as raised:
            for step in range(10000):
                run_folder.append_row(path, COLUMNS, [step, 'x' * 50])
        assert raised.value.errno == number and raised.value.filename == path
        with open(path) as file:
            header, *rows = file.read().splitlines()
        assert header == 'step,text'
        assert 200 < len(rows) == step and all(row == f'{i},{"x" * 50}' for i, row in enumerate(rows))


def test_a_table_is_cut_back_to_a_step_and_what_is_damaged_left_out(tmp_path):
    path = str(tmp_path / 'log.csv')
    assert run_folder.keep_rows_up_to(path, COLUMNS, 3) == [] and not os.listdir(tmp_path)
    for step in (1, 2, 3, 4):
        run_folder.append_row(path, COLUMNS, [step, 'a, "b"'])
    with open(path, 'ab') as file:
        file.write(b'2,1,2,3,4,5,6\n\0\0\0\n1,\n3')
    expected = [{'step': str(step), 'text': 'a, "b"'} for step in (1, 2, 3)]
    assert run_folder.read_rows(path, COLUMNS, 3) == expected
    assert run_folder.keep_rows_up_to(path, COLUMNS, 3) == expected
    with open(path, 'rb') as file:
        assert file.read().splitlines() == [b'step,text', *(b'%d,"a, ""b"""' % step for step in (1, 2, 3))]


# ------------------------------------------------------------------------------------------- TensorBoard


def read_events(folder):
    [name] = os.listdir(folder)
    return list(tf.train.summary_iterator(str(folder / name)))


def test_events_have_their_steps_and_values(tmp_path):
    with run_folder.open_events(str(tmp_path), tf.get_default_graph(), 0) as writer:
        run_folder.add_scalars(writer, {'loss': 2.5}, 7)
        assert (read_events(tmp_path)[-1].step, read_events(tmp_path)[-1].summary.value[0].simple_value) == (7, 2.5)
    assert not [event for event in read_events(tmp_path) if event.HasField('session_log')]


def test_tensorboard_drops_what_comes_after_the_step_of_a_resume(tmp_path):
    """As it does from a SessionLog START on, all events of its step and later ones."""
    with run_folder.open_events(str(tmp_path), tf.get_default_graph(), 4):
        pass
    [start] = [event for event in read_events(tmp_path) if event.HasField('session_log')]
    assert start.step == 5 and start.session_log.status == tf.SessionLog.START


@full_disk
@pytest.mark.parametrize('size', [16384, 4096])  # the second has not even room for the graph
def test_events_on_a_full_disk_end_in_one_line(tmp_path, limit, number, size, capfd):
    tf.constant(np.zeros(2000))
    with limit(tmp_path, size), pytest.raises(
            UserError, match=rf'{tmp_path}: TensorBoard events cannot be written \(.*{os.strerror(number)}\); free'):
        with run_folder.open_events(str(tmp_path), tf.get_default_graph(), 2) as writer:
            for step in range(3, 10000):
                run_folder.add_scalars(writer, {'x' * 300: step}, step)
    assert not capfd.readouterr().err
