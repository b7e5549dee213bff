"""Runs that are killed, stopped, damaged and started again.

KILLS=50 TERMINATIONS=20 pytest tests/training/test_resume.py: the long version.
"""
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import mount_disk, read_log, short_run
from lives import PATIENCE, ROOT, Life, spoiling

import train
from datasets import classes
from datasets.batches import Sampling, training_batches
from inference.weights import find_checkpoint, read_settings
from training import checkpoints
from utils import UserError

KILLS = int(os.environ.get('KILLS', 5))
TERMINATIONS = int(os.environ.get('TERMINATIONS', 3))
LARGE = ['--fc_channels', 1024]  # checkpoints of 30 MB, whose writing a signal can meet


def read_all(checkpoint):
    reader = tf.train.load_checkpoint(str(checkpoint))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def assert_equal_checkpoints(one, other):
    one, other = read_all(one), read_all(other)
    # Of each of the 23 variables that are trained Adam's two moments as well; two scales, Adam's powers, the step.
    assert one.keys() == other.keys() and len(one) == 3 * 23 + 2 + 2 + 1
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), name


# ------------------------------------------------------------------------------------------- killed


def in_the_start(life, dice):
    time.sleep(dice.uniform(0, 2.5))


def in_a_step(life, dice):
    steps = dice.randint(1, 3)
    life.until(lambda: life.new_steps() >= steps)
    time.sleep(dice.uniform(0, 0.05))


def in_a_checkpoint(life, dice):
    life.until(lambda: life.new_steps() and life.is_writing())
    time.sleep(dice.uniform(0, 0.05))


def after_a_checkpoint(life, dice):
    life.until(lambda: life.new_steps() and life.is_writing())
    life.until(lambda: not life.is_writing())
    time.sleep(dice.uniform(0, 0.01))


def in_validation(life, dice):
    before = life.steps()[-1:] or [[0, []]]
    life.until(lambda: life.new_steps() and life.steps()[-1][0] % 3 == 0 and life.steps()[-1] != before[0])
    time.sleep(dice.uniform(0, 0.3))


MOMENTS = (in_the_start, in_a_step, in_a_checkpoint, after_a_checkpoint, in_validation)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_if_it_had_run_through(server, record, tmp_path):
    steps = 4 + 2 * KILLS
    argv = ['--max_steps', steps, '--deterministic', '--save_steps', 2, '--log_steps', 1, '--val_steps', 3,
            '--eval_steps', 8, '--summary_steps', 4, *LARGE]
    through = Life(server, tmp_path / 'through', short_run(record, tmp_path / 'through', *argv))
    assert through.wait() == 0, through.printed()

    dice, killed = random.Random(KILLS), []
    while True:
        life = Life(server, tmp_path / 'killed', short_run(record, tmp_path / 'killed', *argv))
        if len(killed) == KILLS:
            break
        moment = MOMENTS[len(killed) % len(MOMENTS)]
        moment(life, dice)
        writing = life.is_writing()
        life.send(signal.SIGKILL)
        assert life.wait() == -signal.SIGKILL, life.printed()
        killed.append(f'{moment.__name__}, {life.new_steps()} steps{", while it was written" if writing else ""}')
    assert life.wait() == 0, life.printed()
    print(*killed, sep='\n')

    expected = dict(through.steps())
    assert list(expected) == list(range(1, steps + 1)) and len(set(map(str, expected.values()))) > min(5, KILLS)
    seen = life.steps()
    assert len(seen) >= steps and set(step for step, _ in seen) == set(expected)
    assert all(ids == expected[step] for step, ids in seen)
    assert 'damaged' not in life.printed() and 'Traceback' not in life.printed()

    last = f'model.ckpt-{steps}'
    assert_equal_checkpoints(tmp_path / 'through' / 'train' / last, tmp_path / 'killed' / 'train' / last)
    assert read_log(tmp_path / 'through', 'eval.csv') == read_log(tmp_path / 'killed', 'eval.csv')
    losses = [[(row['step'], row['loss']) for row in read_log(tmp_path / run)] for run in ('through', 'killed')]
    assert losses[0] == losses[1] and len(losses[0]) == steps
    names = [sorted(name for name in os.listdir(tmp_path / run / 'train') if not name.startswith('events'))
             for run in ('through', 'killed')]
    assert names[0] == names[1]  # the same three checkpoints, and nothing half-written
    assert sorted(os.listdir(tmp_path / 'through' / 'eval')) == sorted(os.listdir(tmp_path / 'killed' / 'eval'))


@pytest.mark.slow
def test_stopped_while_a_checkpoint_is_written_it_always_resumes(server, record, tmp_path):
    argv = short_run(record, tmp_path / 'run', '--max_steps', 100000, '--save_steps', 1, *LARGE)
    dice = random.Random(TERMINATIONS)
    for number in range(1, TERMINATIONS + 1):
        life = Life(server, tmp_path / 'run', argv)
        steps = dice.randint(1, 3)
        assert life.until(lambda life=life, steps=steps: life.is_writing() and life.new_steps() >= steps)
        time.sleep(dice.uniform(0, 0.03))
        life.send(signal.SIGTERM)
        if number % 2:
            time.sleep(dice.uniform(0, 0.03))
            life.send(signal.SIGTERM)  # a second one changes nothing
        assert life.wait() == 143, life.printed()
        last = life.steps()[-1][0]
        assert f'train.py: stopped by SIGTERM after step {last}, kept in' in life.printed().splitlines()[-1]
        assert checkpoints.find_resume(str(tmp_path / 'run' / 'train'))[1] == last
    assert life.printed().count('resumed from') == TERMINATIONS - 1 and 'Traceback' not in life.printed()
    assert [step for step, _ in life.steps()] == list(range(1, last + 1))  # no step was lost or done again


# ------------------------------------------------------------------------------------------- stopped


def list_living(group):
    """The processes of a group that have not ended."""
    listed = subprocess.run(['ps', '-eo', 'pgid=,stat=,args='], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [row for row in rows if int(row[0]) == group and not row[1].startswith('Z')]


@pytest.mark.slow
@pytest.mark.parametrize('number, code, to_all', [
    (signal.SIGTERM, 143, True), (signal.SIGINT, 130, False)])
def test_a_signal_keeps_the_step_and_ends_with_its_code(server, record, tmp_path, number, code, to_all):
    """Before the first checkpoint, with a picture under way; the resumed run then scores what was not scored yet.

    `to_all`: to all processes, as a terminal sends Ctrl-C, and a machine that goes down SIGTERM. All end all the same.
    """
    argv = ['--save_steps', 100, '--log_steps', 10, '--eval_steps', 4, '--val_steps', 2, '--max_steps', 4]
    life = Life(server, tmp_path / 'run', short_run(record, tmp_path / 'run', *argv))
    assert life.until(lambda: life.new_steps() == 4)  # which is evaluated next
    assert len(list_living(life.process)) >= 2  # the one that draws as well
    life.send(number, to_all)
    assert life.wait() == code, life.printed()
    assert re.fullmatch(rf'train.py: stopped by {number.name} after step 4, kept in .*: the same command continues '
                        'there', life.printed().splitlines()[-1])
    assert 'Traceback' not in life.printed()
    assert sorted(row['step'] for row in read_log(tmp_path / 'run')) == ['1', '4']
    assert os.path.exists(tmp_path / 'run' / 'eval' / 'val_4_overlay.jpg')
    stopped_in_evaluation = not os.path.exists(tmp_path / 'run' / 'train' / 'eval.csv')
    deadline = time.monotonic() + PATIENCE
    while list_living(life.process):
        assert time.monotonic() < deadline, list_living(life.process)
        time.sleep(0.01)

    life = Life(server, tmp_path / 'run', short_run(record, tmp_path / 'run', *argv))
    assert life.wait() == 0
    assert [row['step'] for row in read_log(tmp_path / 'run', 'eval.csv')] == ['4']
    assert find_checkpoint(str(tmp_path / 'run' / 'best')).endswith('model.ckpt-4')
    assert life.new_steps() == 0 and ('nothing left to do' in life.printed()) != stopped_in_evaluation


@pytest.mark.slow
def test_a_signal_before_the_first_step_ends_the_run(server, record, tmp_path):
    life = Life(server, tmp_path / 'run', short_run(record, tmp_path / 'run', '--max_steps', 3))
    assert life.until(lambda: os.path.exists(tmp_path / 'run' / 'train' / 'lock'))
    life.send(signal.SIGTERM)
    assert life.wait() == 143
    assert life.printed().splitlines()[-1].startswith('train.py: stopped by SIGTERM') and not life.new_steps()
    assert 'Traceback' not in life.printed()
    assert not checkpoints.list_steps(str(tmp_path / 'run' / 'train'))


@pytest.mark.slow
def test_ctrl_c_before_the_program_has_begun_leaves_no_traceback(tmp_path):
    program = [sys.executable, os.path.join(ROOT, 'train.py'), '--dataset_train', 'none', '--output_dir', str(tmp_path)]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as run:
        loaded = ''
        while 'libtensorflow' not in loaded and run.poll() is None:  # its import takes some seconds from here
            with open(f'/proc/{run.pid}/maps') as file:
                loaded = file.read()
        run.send_signal(signal.SIGINT)
        assert 'Traceback' not in run.communicate()[1] and run.returncode == -signal.SIGINT


# ------------------------------------------------------------------------------------------- resumed


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run `trained`: as if it had been moved there."""
    return shutil.copytree(trained, tmp_path / 'run')


def test_a_run_goes_on_after_its_checkpoint_up_to_max_steps_in_all(small_runs, run, record, capsys):
    """It was killed between two checkpoints, and left a damaged line."""
    for name in os.listdir(run / 'train'):
        if name.startswith('model.ckpt-3'):
            os.remove(run / 'train' / name)
    (run / 'train' / 'checkpoint').write_text('model_checkpoint_path: "model.ckpt-2"\n')
    with open(run / 'train' / 'log.csv', 'ab') as file:
        file.write(b'2,1,2,3,4,5,6\n\0\0\0\n1,,,,\n3,0.5')
    train.main(short_run(record, run, '--max_steps', 5, '--log_steps', 1, '--val_steps', 2, '--save_steps', 1))
    out = capsys.readouterr().out
    assert f'resumed from {run}/train/model.ckpt-2' in out and 'at random' not in out
    assert [int(row['step']) for row in read_log(run)] == [1, 2, 3, 4, 5]
    assert 'val image1:' in out  # step 2 showed image0
    assert tf.train.latest_checkpoint(str(run / 'train')).endswith('model.ckpt-5')
    assert tf.train.load_variable(str(run / 'train'), 'global_step') == 5
    assert checkpoints.list_steps(str(run / 'train')) == [3, 4, 5]  # 2 is gone
    files = [str(run / 'train' / name) for name in os.listdir(run / 'train') if name.startswith('events')]
    starts = [event.step for path in files for event in tf.train.summary_iterator(path)
              if event.session_log.status == tf.SessionLog.START]
    assert starts == [3]  # from where TensorBoard drops what earlier files have
    train.main(short_run(record, run, '--max_steps', 5))
    assert 'is at step 5: nothing left to do' in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_resumes_before_a_truncated_checkpoint(server, record, tmp_path):
    argv = ['--deterministic', '--save_steps', 2, '--log_steps', 1, '--max_steps', 4, *LARGE]
    assert Life(server, tmp_path / 'run', short_run(record, tmp_path / 'run', *argv)).wait() == 0
    train_dir, last = tmp_path / 'run' / 'train', 'model.ckpt-4'
    for name in (f'{last}.data-00000-of-00001', f'{last}.index'):
        shutil.copy(train_dir / name, tmp_path)
    os.truncate(train_dir / f'{last}.data-00000-of-00001', 1 << 20)
    life = Life(server, tmp_path / 'run', short_run(record, tmp_path / 'run', *argv))
    assert life.wait() == 0
    [line] = [line for line in life.printed().splitlines() if 'trying the one before it' in line]
    assert f'{last}: damaged (' in line and life.new_steps() == 2
    assert_equal_checkpoints(tmp_path / last, train_dir / last)


# ------------------------------------------------------------------------------------------- not resumed


@pytest.mark.parametrize('state', ['model_checkpoint_path: "model.ckpt-7"\n', 'model_checkpoint_path: "mine.ckpt"\n'])
def test_a_run_whose_checkpoints_are_gone_is_not_started_anew(run, record, state):
    for name in os.listdir(run / 'train'):
        if name.startswith('model.ckpt-'):
            os.rename(run / 'train' / name, run / 'train' / name.replace('model.ckpt-3', 'mine.ckpt'))
            if 'ckpt-3' not in name:
                os.remove(run / 'train' / name)
    (run / 'train' / 'checkpoint').write_text(state)
    with pytest.raises(UserError, match='names no complete checkpoint of train.py'):
        train.main(short_run(record, run, '--max_steps', 4))
    assert [int(row['step']) for row in read_log(run)] == [1, 2, 3]


@pytest.mark.parametrize('flag, value, shown', [
    ('--model', 'fcn_16s', 'model fcn_8s, now it is fcn_16s'), ('--optimizer', 'momentum', 'optimizer adam'),
    ('--fc_channels', 16, 'fc_channels 8, now it is 16'), ('--upsampling', 'fixed', 'upsampling learned')])
def test_a_run_goes_on_with_its_own_network_only(run, record, flag, value, shown):
    with pytest.raises(UserError, match=f'its run has {shown}'):
        train.main(short_run(record, run, '--max_steps', 4, '--seed', 5, flag, value))
    settings = read_settings(str(run / 'train'))  # as they were
    assert (settings['model'], settings['fc_channels'], settings['seed']) == ('fcn_8s', 8, 0)


def test_a_resumed_run_keeps_its_classes(run, record, tmp_path):
    own = str(shutil.copy(record, tmp_path / 'own.record'))
    matter = classes.make_class_set([f'matter {number}' for number in range(21)])
    classes.save_side_file(classes.side_file(own), matter, 5, np.arange(256))
    with pytest.raises(UserError, match='number 0 is matter 0; the run in .* number 0 is background'):
        train.main(short_run(own, run, '--max_steps', 4))


# ------------------------------------------------------------------------------------------- not finite


@pytest.mark.slow
def test_the_examples_of_a_loss_that_is_not_finite_are_named(small_runs, record, tmp_path):
    """And neither the record nor the histograms are blamed."""
    with pytest.raises(UserError, match='not finite at step [2-9].*--learning_rate') as raised:
        train.main(short_run(record, tmp_path, '--max_steps', 9, '--learning_rate', 1e30, '--summary_steps', 1))
    message = str(raised.value)
    assert '\n' not in message
    step = int(re.match(r'the loss is not finite at step (\d): ', message).group(1))
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(0)
        batches = training_batches(Sampling(record, 5, 2, 32, (0, 0, 0), seed=0))
        ids = tf.data.make_one_shot_iterator(batches).get_next()[2]
        by_step = [[each.decode() for each in session.run(ids)] for _ in range(step)]
    for number, (one, other) in ((step - 1, by_step[-2]), (step, by_step[-1])):
        assert f'step {number} {one}, {other}' in message
    assert not checkpoints.list_steps(str(tmp_path / 'train'))


@pytest.mark.slow
@pytest.mark.parametrize('name, flags', [
    ('vgg_16/fc8/conv_pool3/biases', ['--eval_steps', 4]), ('vgg_16/fc7/biases/Adam_1', [])])
def test_weights_that_are_not_finite_are_never_kept(small_runs, record, tmp_path, monkeypatch, name, flags):
    monkeypatch.setattr(train, 'run_step', spoiling(train.run_step, 4, name, np.inf))
    with pytest.raises(UserError, match='not finite at step 4, by an update after step 2 ') as raised:
        train.main(short_run(record, tmp_path, '--max_steps', 6, '--save_steps', 2, *flags))
    message = str(raised.value)
    assert name in message and re.search(r'examples of step 3 image\d, image\d; step 4 image\d, image\d\.', message)
    assert checkpoints.find_resume(str(tmp_path / 'train'))[1] == 2
    assert not os.path.exists(tmp_path / 'best')


# ------------------------------------------------------------------------------------------- full disks


@pytest.mark.slow
def test_a_run_on_a_full_disk_keeps_what_it_has_and_goes_on_with_more_space(server, record, tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    argv = short_run(record, folder, '--max_steps', 4, '--save_steps', 1, '--log_steps', 1, *LARGE)
    with mount_disk(folder, 85 << 20):  # room for two checkpoints of 34 MB
        life = Life(server, folder, argv)
        assert life.wait() == 1
        assert re.fullmatch(r'train.py: error: .*/model.ckpt-3: cannot be written \(.*[Nn]o space left.*\); free some '
                            'space .*', life.printed().splitlines()[-1])
        assert 'Traceback' not in life.printed()
        assert not [name for name in os.listdir(folder / 'train') if 'ckpt-3' in name or 'temp' in name]
        assert checkpoints.find_resume(str(folder / 'train'))[1] == 2
        subprocess.run(['mount', '-o', 'remount,size=200m', str(folder)], check=True)
        life = Life(server, folder, argv)
        assert life.wait() == 0, life.printed()
        assert [row['step'] for row in read_log(folder)] == ['1', '2', '3', '4']
