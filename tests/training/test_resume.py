"""Runs that are killed, stopped, damaged and started again.

Run as a program, this file is a server that has imported train.py already, and runs it in forks of itself: tests that
start it dozens of times would else wait for TensorFlow most of the time.
"""
import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import draw_pair, limit_file_size, mount_disk, write_examples, write_record
from test_train import read_log, short_run

import train
import utils
from datasets import batches as input_pipeline
from inference import crf
from training import checkpoints, run_folder
from utils import UserError

ROOT = os.path.dirname(train.__file__)
KILLS = int(os.environ.get('KILLS', 10))  # KILLS=50 TERMINATIONS=20 pytest tests/test_resume.py: the long version
TERMINATIONS = int(os.environ.get('TERMINATIONS', 3))

# ------------------------------------------------------------------------------------------- the server


def serve():
    """For each line on stdin, JSON of fork_run's arguments: writes the process's number, then its exit code."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            fork_run(**json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def fork_run(argv, output, notes):
    """Runs train.py in this process, which ends with it. What it prints goes to the file `output`."""
    for number, path in enumerate((os.devnull, output, output)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    sys.argv[0] = 'train.py'
    note_examples(notes)
    utils.run_program(lambda: train.main(argv))


def note_examples(path):
    """Has every step add [step, ids of its batch] to a file, as a line of JSON."""
    run_step = train.run_step

    def noting(session, ops, record, histogram_writer, step, recent):
        result = run_step(session, ops, record, histogram_writer, step, recent)
        with open(path, 'a') as file:
            file.write(json.dumps([step, [each.decode() for each in recent[-1][1]]]) + '\n')
        return result
    train.run_step = noting


class Life:
    """A run of train.py in the server, one at a time."""

    def __init__(self, server, folder, argv):
        self.server, self.folder, self.output, self.notes = server, folder, f'{folder}.out', f'{folder}.notes'
        self.steps_before = len(self.steps())
        order = {'argv': argv, 'output': self.output, 'notes': self.notes}
        server.stdin.write(json.dumps(order) + '\n')
        server.stdin.flush()
        self.process = int(server.stdout.readline())
        self.code = None
        self.waiting = threading.Thread(target=self.note_end)
        self.waiting.start()

    def note_end(self):
        self.code = int(self.server.stdout.readline())

    def wait(self):
        """The exit code; minus the signal's number for one that was killed."""
        self.waiting.join()
        return self.code

    def send(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, number)

    def steps(self):
        """[step, ids] of all steps noted so far, in all lives."""
        if not os.path.exists(self.notes):
            return []
        with open(self.notes) as file:
            return [json.loads(line) for line in file.read().splitlines()]

    def new_steps(self):
        return len(self.steps()) - self.steps_before

    def is_writing(self):
        """Whether a checkpoint is being written."""
        train_dir = os.path.join(self.folder, 'train')
        return os.path.isdir(train_dir) and any('.tempstate' in name for name in os.listdir(train_dir))

    def until(self, condition, seconds=60):
        """Waits until a condition holds. Returns whether it did before the run ended."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.code is not None:
                return False
            assert time.monotonic() < deadline, 'nothing has happened'
            time.sleep(0.001)
        return True

    def printed(self):
        with open(self.output) as file:
            return file.read()


@pytest.fixture(scope='module')
def server():
    with subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, 'PYTHONPATH': ROOT}) as process:
        yield process
        process.stdin.close()


def read_all(checkpoint):
    reader = tf.train.load_checkpoint(str(checkpoint))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def assert_equal_checkpoints(one, other):
    one, other = read_all(one), read_all(other)
    assert one.keys() == other.keys() and len(one) > 100  # weights, Adam's moments and powers, the step
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), name


# ------------------------------------------------------------------------------------------- killed


def moments(life, dice):
    """Where a kill can fall: name to a function that returns once it is there."""
    def in_the_start():
        time.sleep(dice.uniform(0, 2.5))

    def in_a_step():
        steps = dice.randint(1, 3)
        life.until(lambda: life.new_steps() >= steps)
        time.sleep(dice.uniform(0, 0.15))

    def in_a_checkpoint():
        life.until(lambda: life.new_steps() and life.is_writing())
        time.sleep(dice.uniform(0, 0.3))

    def after_a_checkpoint():
        life.until(lambda: life.new_steps() and life.is_writing())
        life.until(lambda: not life.is_writing())
        time.sleep(dice.uniform(0, 0.01))

    def in_validation():
        before = life.steps()[-1:] or [[0, []]]
        life.until(lambda: life.new_steps() and life.steps()[-1][0] % 3 == 0 and life.steps()[-1] != before[0])
        time.sleep(dice.uniform(0, 0.3))
    return [in_the_start, in_a_step, in_a_checkpoint, after_a_checkpoint, in_validation]


def test_killed_at_random_moments_it_ends_as_if_it_had_run_through(server, record, tmp_path):
    steps = 4 + 2 * KILLS
    argv = ['--max_steps', steps, '--deterministic', '--save_steps', 2, '--val_steps', 3, '--eval_steps', 8,
            '--log_steps', 1, '--summary_steps', 4]
    through = Life(server, tmp_path / 'through', short_run(record, tmp_path / 'through', *argv))
    assert through.wait() == 0, through.printed()

    dice, killed = random.Random(KILLS), []
    while True:
        life = Life(server, tmp_path / 'killed', short_run(record, tmp_path / 'killed', *argv))
        if len(killed) == KILLS:
            break
        moment = moments(life, dice)[len(killed) % 5]
        moment()
        writing = life.is_writing()
        life.send(signal.SIGKILL)
        assert life.wait() == -signal.SIGKILL, life.printed()
        killed.append(f'{moment.__name__}, {life.new_steps()} steps{", while it was written" if writing else ""}')
    assert life.wait() == 0, life.printed()
    print(*killed, sep='\n')

    expected = dict(through.steps())
    assert list(expected) == list(range(1, steps + 1)) and len(set(map(str, expected.values()))) > 5
    seen = life.steps()
    assert len(seen) > steps and set(step for step, _ in seen) == set(expected)
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


def test_stopped_while_a_checkpoint_is_written_it_always_resumes(server, record, tmp_path):
    argv = short_run(record, tmp_path / 'run', '--max_steps', 1000, '--save_steps', 1)
    dice = random.Random(TERMINATIONS)
    for number in range(1, TERMINATIONS + 1):
        life = Life(server, tmp_path / 'run', argv)
        steps = dice.randint(1, 3)
        assert life.until(lambda life=life, steps=steps: life.is_writing() and life.new_steps() >= steps)
        time.sleep(dice.uniform(0, 0.1))
        life.send(signal.SIGTERM)
        if number % 2:
            time.sleep(dice.uniform(0, 0.1))
            life.send(signal.SIGTERM)  # a second one changes nothing
        assert life.wait() == 143, life.printed()
        last = life.steps()[-1][0]
        assert f'train.py: stopped by SIGTERM after step {last}, kept in' in life.printed().splitlines()[-1]
        assert checkpoints.find_resume(str(tmp_path / 'run' / 'train'))[1] == last
    assert life.printed().count('resumed from') == TERMINATIONS - 1 and 'Traceback' not in life.printed()
    assert [step for step, _ in life.steps()] == list(range(1, last + 1))  # no step was lost or done again


# ------------------------------------------------------------------------------------------- stopped


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_the_step_and_ends_with_its_code(server, record, tmp_path, number, code):
    """Before the first checkpoint, with a picture under way; the resumed run then scores what was not scored yet."""
    argv = ['--save_steps', 100, '--log_steps', 10, '--eval_steps', 4, '--val_steps', 2, '--max_steps', 4]
    life = Life(server, tmp_path / 'run', short_run(record, tmp_path / 'run', *argv))
    assert life.until(lambda: life.new_steps() == 4)  # which is evaluated next
    life.send(number)
    assert life.wait() == code, life.printed()
    assert re.fullmatch(rf'train.py: stopped by {number.name} after step 4, kept in .*: the same command goes on there',
                        life.printed().splitlines()[-1])
    assert 'Traceback' not in life.printed()
    assert sorted(row['step'] for row in read_log(tmp_path / 'run')) == ['1', '4']
    assert os.path.exists(tmp_path / 'run' / 'eval' / 'val_4_overlay.jpg')
    stopped_in_evaluation = not read_log(tmp_path / 'run', 'eval.csv')

    life = Life(server, tmp_path / 'run', short_run(record, tmp_path / 'run', *argv))
    assert life.wait() == 0
    assert [row['step'] for row in read_log(tmp_path / 'run', 'eval.csv')] == ['4']
    assert train.find_checkpoint(str(tmp_path / 'run' / 'best')).endswith('model.ckpt-4')
    assert life.new_steps() == 0 and ('nothing left to do' in life.printed()) != stopped_in_evaluation


def test_a_signal_before_the_first_step_ends_the_run(server, record, tmp_path):
    life = Life(server, tmp_path / 'run', short_run(record, tmp_path / 'run', '--max_steps', 3))
    assert life.until(lambda: os.path.exists(tmp_path / 'run' / 'train' / 'lock'))
    life.send(signal.SIGTERM)
    assert life.wait() == 143
    assert life.printed().splitlines()[-1].startswith('train.py: stopped by SIGTERM') and not life.new_steps()
    assert 'Traceback' not in life.printed()
    assert not checkpoints.list_steps(str(tmp_path / 'run' / 'train'))


def living(group):
    """The processes of a group that have not ended."""
    listed = subprocess.run(['ps', '-eo', 'pgid=,stat=,args='], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [row for row in rows if int(row[0]) == group and not row[1].startswith('Z')]


def test_a_signal_to_all_processes_of_a_run(record, tmp_path):
    """As a terminal sends Ctrl-C, and a machine that goes down SIGTERM: the pictures under way are drawn, all end."""
    program = [sys.executable, os.path.join(ROOT, 'train.py'),
               *short_run(record, tmp_path, '--max_steps', 100000, '--val_steps', 1, '--save_steps', 100000)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as run:
        for line in run.stdout:
            if line.startswith('  val '):
                break
        os.killpg(run.pid, signal.SIGTERM)
        printed, complained = run.communicate(timeout=60)
    assert run.returncode == 143
    step = int(re.fullmatch(r'train.py: stopped by SIGTERM after step (\d+), .*', complained.splitlines()[-1]).group(1))
    assert 'Traceback' not in complained and os.path.exists(tmp_path / 'train' / f'model.ckpt-{step}.index')
    assert os.path.exists(tmp_path / 'eval' / f'val_{step}_overlay.jpg')
    deadline = time.monotonic() + 10
    while living(run.pid):
        assert time.monotonic() < deadline, living(run.pid)
        time.sleep(0.01)


def test_ctrl_c_before_the_program_has_begun_leaves_no_traceback(tmp_path):
    program = [sys.executable, os.path.join(ROOT, 'train.py'), '--dataset_train', 'none', '--output_dir', str(tmp_path)]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as run:
        loaded = ''
        while 'libtensorflow' not in loaded and run.poll() is None:  # its import takes some seconds from here
            with open(f'/proc/{run.pid}/maps') as file:
                loaded = file.read()
        run.send_signal(signal.SIGINT)
        assert 'Traceback' not in run.communicate()[1] and run.returncode == -signal.SIGINT


def test_signals_raise_at_once_or_when_it_suits():
    with utils.StopSignals() as signals:
        with pytest.raises(utils.Stopped, match='stopped by SIGTERM') as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        assert stopped.value.number == 15
    with utils.StopSignals() as signals:
        signals.hold()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(utils.Stopped, match='stopped by SIGINT'):
            signals.check()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ------------------------------------------------------------------------------------------- damaged checkpoints


def write_steps(folder, steps):
    """A run's folder of checkpoints of one variable, which holds the step. Returns the saver."""
    value = tf.get_variable('step', [1000])
    saver = tf.train.Saver(max_to_keep=checkpoints.MAX_TO_KEEP, save_relative_paths=True)
    with tf.Session() as session:
        for step in steps:
            session.run(value.assign(np.full(1000, step)))
            checkpoints.save(session, saver, str(folder), step)
    return saver


def truncate(path):
    os.truncate(path, os.path.getsize(path) // 2)


def flip_a_bit(path):
    with open(path, 'r+b') as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))


DATA, INDEX = 'data-00000-of-00001', 'index'


@pytest.mark.parametrize('damage, ending, told', [
    (truncate, DATA, 'damaged'), (flip_a_bit, DATA, 'damaged'), (os.remove, DATA, ''),
    (truncate, INDEX, 'damaged'), (flip_a_bit, INDEX, 'damaged'), (os.remove, INDEX, 'not there'),
    (lambda path: os.truncate(path, 0), INDEX, 'damaged'), (lambda path: os.truncate(path, 0), DATA, 'damaged')])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(tmp_path, capsys, damage, ending, told):
    write_steps(tmp_path, (2, 4, 6))
    damage(tmp_path / f'model.ckpt-6.{ending}')
    assert checkpoints.find_resume(str(tmp_path)) == (str(tmp_path / 'model.ckpt-4'), 4)
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f'{tmp_path}/model.ckpt-6: {told}') and line.endswith('left out for the one before')


def test_what_is_whole_is_taken_without_a_word(tmp_path, capsys):
    write_steps(tmp_path, (2, 4, 6))
    assert checkpoints.find_resume(str(tmp_path)) == (str(tmp_path / 'model.ckpt-6'), 6)
    assert not capsys.readouterr().out


def test_weights_that_are_not_finite_are_no_checkpoint_to_resume_from(tmp_path, capsys):
    write_steps(tmp_path, (2, 4))
    value = tf.global_variables()[0]
    with tf.Session() as session:
        session.run(value.assign([*range(999), np.nan]))
        tf.train.Saver().save(session, str(tmp_path / 'model.ckpt'), 6, write_meta_graph=False)
    assert checkpoints.find_resume(str(tmp_path))[1] == 4
    assert 'model.ckpt-6: step is not finite' in capsys.readouterr().out


def test_without_a_whole_checkpoint_the_run_is_not_started_anew(tmp_path):
    write_steps(tmp_path, (2, 4))
    for step in (2, 4):
        truncate(tmp_path / f'model.ckpt-{step}.{DATA}')
    with pytest.raises(UserError, match='names no checkpoint of train.py that is there and whole; bring it back'):
        checkpoints.find_resume(str(tmp_path))


@pytest.mark.parametrize('text', [None, '', 'no state'])
def test_without_the_state_file_the_newest_checkpoint_is_taken(tmp_path, text):
    write_steps(tmp_path, (2, 4, 10))
    os.remove(tmp_path / 'checkpoint')
    if text is not None:
        (tmp_path / 'checkpoint').write_text(text)
    assert checkpoints.find_resume(str(tmp_path))[1] == 10


def test_an_earlier_checkpoint_that_the_state_file_names_is_taken(tmp_path):
    write_steps(tmp_path, (2, 4, 6))
    (tmp_path / 'checkpoint').write_text('model_checkpoint_path: "model.ckpt-4"\n')
    assert checkpoints.find_resume(str(tmp_path))[1] == 4


def test_a_damaged_checkpoint_is_the_first_to_go(tmp_path, capsys):
    saver = write_steps(tmp_path, (2, 4, 6))
    truncate(tmp_path / f'model.ckpt-6.{DATA}')
    resume_from, _ = checkpoints.find_resume(str(tmp_path))
    checkpoints.take_over(saver, str(tmp_path), resume_from)
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / 'model.ckpt-4')
    capsys.readouterr()
    assert checkpoints.find_resume(str(tmp_path))[1] == 4 and not capsys.readouterr().out  # said once
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        checkpoints.save(session, saver, str(tmp_path), 5)
    assert checkpoints.list_steps(str(tmp_path)) == [2, 4, 5]
    assert sorted(name for name in os.listdir(tmp_path) if name.endswith(DATA)) == [
        f'model.ckpt-{step}.{DATA}' for step in (2, 4, 5)]


def test_what_a_killed_program_left_is_removed(tmp_path):
    (tmp_path / 'train').mkdir()
    (tmp_path / 'eval').mkdir()
    write_steps(tmp_path / 'train', (2, 4))
    dead = subprocess.Popen(['true'])
    dead.wait()
    stay = {'train/mine.data-00000-of-00001', f'eval/partial-{os.getpid()}-val_1_img.jpg', 'eval/val_1_img.jpg',
            *(f'train/{name}' for name in os.listdir(tmp_path / 'train'))}
    go = {f'train/model.ckpt-6.{DATA}', f'train/model.ckpt-8.{DATA}.tempstate123',
          'train/model.ckpt-8.index.tempstate9', 'train/checkpoint.tmp' + 32 * 'a', f'partial-{dead.pid}-index.html',
          f'train/partial-{dead.pid}-log.csv', f'eval/partial-{dead.pid}-val_1_img.jpg'}
    for name in stay | go:
        if not os.path.exists(tmp_path / name):
            (tmp_path / name).write_text('')
    run_folder.remove_leftovers(str(tmp_path))
    for name in stay | go:
        assert os.path.exists(tmp_path / name) == (name in stay), name


def test_a_run_resumes_before_a_truncated_checkpoint(server, record, tmp_path):
    argv = ['--deterministic', '--save_steps', 2, '--log_steps', 1, '--max_steps']
    assert Life(server, tmp_path / 'run', short_run(record, tmp_path / 'run', *argv, 4)).wait() == 0
    for ending in (DATA, INDEX):
        shutil.copy(tmp_path / 'run' / 'train' / f'model.ckpt-4.{ending}', tmp_path)
    truncate(tmp_path / 'run' / 'train' / f'model.ckpt-4.{DATA}')
    life = Life(server, tmp_path / 'run', short_run(record, tmp_path / 'run', *argv, 4))
    assert life.wait() == 0
    told = [line for line in life.printed().splitlines() if 'left out for the one before' in line]
    assert len(told) == 1 and 'model.ckpt-4: damaged (' in told[0] and life.new_steps() == 2
    assert_equal_checkpoints(tmp_path / 'model.ckpt-4', tmp_path / 'run' / 'train' / 'model.ckpt-4')


# ------------------------------------------------------------------------------------------- one at a time


def test_a_second_run_is_refused_while_the_first_lives(record, tmp_path):
    (tmp_path / 'train').mkdir()
    with run_folder.lock(str(tmp_path / 'train')):
        with pytest.raises(UserError, match=rf'{tmp_path}/train: process {os.getpid()} on .* trains there; wait'):
            train.main(short_run(record, tmp_path, '--max_steps', 1))
        assert os.listdir(tmp_path / 'train') == ['lock']
    with run_folder.lock(str(tmp_path / 'train')):  # the file is still there, and in nobody's way
        pass


def test_a_lock_ends_with_its_program_whatever_that_has_started(tmp_path):
    with crf.start_processes(1) as pool:
        with run_folder.lock(str(tmp_path)):
            assert pool.submit(os.getpid).result() != os.getpid()  # is started now, and lives on
        with run_folder.lock(str(tmp_path)):
            pass


# ------------------------------------------------------------------------------------------- not finite


def test_the_examples_of_a_loss_that_is_not_finite_are_named(record, tmp_path):
    with pytest.raises(UserError, match='not finite at step') as raised:
        train.main(short_run(record, tmp_path, '--max_steps', 9, '--learning_rate', 1e30))
    message = str(raised.value)
    assert '\n' not in message
    step = int(re.match(r'the loss is not finite at step (\d): ', message).group(1))
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(0)
        batches = input_pipeline.training_batches(input_pipeline.Sampling(record, 5, 2, 32, (0, 0, 0), seed=0))
        ids = tf.data.make_one_shot_iterator(batches).get_next()[2]
        by_step = [[each.decode() for each in session.run(ids)] for _ in range(step)]
    for number, (one, other) in ((step - 1, by_step[-2]), (step, by_step[-1])):
        assert f'step {number} {one}, {other}' in message
    assert not checkpoints.list_steps(str(tmp_path / 'train'))


def spoil(monkeypatch, at_step, name, value):
    """Has an update spoil one value of a variable, which the loss of that step cannot know."""
    run_step = train.run_step

    def spoiling(session, ops, record, histogram_writer, step, recent):
        result = run_step(session, ops, record, histogram_writer, step, recent)
        if step == at_step:
            [variable] = [each for each in tf.global_variables() if each.op.name == name]
            variable.load(np.full(variable.shape.as_list(), value), session)
        return result
    monkeypatch.setattr(train, 'run_step', spoiling)


@pytest.mark.parametrize('name, flags', [
    ('vgg_16/fc7/biases/Adam_1', []), ('vgg_16/fc8/conv_pool3/biases', ['--eval_steps', 4])])
def test_weights_that_are_not_finite_are_never_kept(record, tmp_path, monkeypatch, name, flags):
    spoil(monkeypatch, 4, name, np.inf)
    with pytest.raises(UserError, match='not finite at step 4, by an update after step 2 ') as raised:
        train.main(short_run(record, tmp_path, '--max_steps', 6, '--save_steps', 2, *flags))
    message = str(raised.value)
    assert name in message and re.search(r'examples of step 3 image\d, image\d; step 4 image\d, image\d\.', message)
    assert checkpoints.find_resume(str(tmp_path / 'train'))[1] == 2
    assert not os.path.exists(tmp_path / 'best')


def test_xla_does_not_drop_the_check(server, record, tmp_path):
    """In a process of its own: XLA's settings cannot be taken back."""
    code = ('import numpy as np, tensorflow.compat.v1 as tf, train, sys; args = train.parse_args(sys.argv[1:]);'
            'train.prepare_arithmetic(args); tf.disable_eager_execution();'
            'ops = train.build_training(args, train.Network(fc_channels=8), 5, 0);'
            'session = tf.Session(config=train.session_config(args)); session.run(tf.global_variables_initializer());'
            'session.run(ops.check_finite); variable = tf.trainable_variables("vgg_16/fc7/biases")[0];'
            'variable.load(np.full(8, np.nan), session); train.check_finite(session, ops, 0, [(1, [b"a"])])')
    done = subprocess.run([sys.executable, '-c', code, *short_run(record, tmp_path), '--xla'], capture_output=True,
                          text=True, cwd=ROOT)
    assert 'utils.UserError: the weights are not finite at step 1' in done.stderr.splitlines()[-1], done.stderr


# ------------------------------------------------------------------------------------------- full disks, lost records


def small_files(folder, size):
    """A limit on the size of files, which is to a program much as a full disk."""
    return limit_file_size(size)


full_disk = pytest.mark.parametrize('limit, number', [(small_files, errno.EFBIG), (mount_disk, errno.ENOSPC)])


@full_disk
def test_a_table_grows_by_whole_rows(tmp_path, limit, number):
    with limit(tmp_path, 16384):
        path = str(tmp_path / 'log.csv')
        with pytest.raises(OSError) as raised:
            for step in range(10000):
                run_folder.append_row(path, [step, 'x' * 50])
        assert raised.value.errno == number and raised.value.filename == path
        with open(path) as file:
            rows = file.read().splitlines()
        assert 200 < len(rows) == step and all(row == f'{i},{"x" * 50}' for i, row in enumerate(rows))


@full_disk
def test_tensorboards_file_grows_by_whole_events(tmp_path, limit, number):
    with limit(tmp_path, 16384):
        writer = run_folder.EventWriter(str(tmp_path), tf.get_default_graph())
        with pytest.raises(OSError) as raised:
            for step in range(1, 1000):
                summary = tf.Summary(value=[tf.Summary.Value(tag='x' * 300, simple_value=step)])
                writer.add_summary(summary if step % 2 else summary.SerializeToString(), step)
        assert raised.value.errno == number and raised.value.filename == writer.path
        events = list(tf.train.summary_iterator(writer.path))  # an error if the last were not whole
    assert events[0].file_version == 'brain.Event:2' and len(events) == 2 + (step - 1) > 40
    assert [event.summary.value[0].simple_value for event in events[2:]] == list(range(1, step))


@full_disk
@pytest.mark.parametrize('name, write', [
    ('a.jpg', lambda path: utils.save_image(path, np.random.RandomState(0).randint(0, 256, (300, 300, 3), np.uint8))),
    ('a.png', lambda path: utils.save_labels(path, np.random.RandomState(0).randint(0, 256, (300, 300), np.uint8),
                                             utils.voc_palette())),
    ('a.html', lambda path: utils.save_text(path, 'x' * 100000))])
def test_a_file_that_does_not_fit_leaves_the_one_before(tmp_path, limit, number, name, write):
    with limit(tmp_path, 16384):
        (tmp_path / name).write_text('before')
        with pytest.raises(OSError) as raised:
            write(str(tmp_path / name))
        assert raised.value.errno == number and raised.value.filename == str(tmp_path / name)
        assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == 'before'


def test_a_run_on_a_full_disk_keeps_what_it_has_and_goes_on_with_more_space(server, record, tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    argv = short_run(record, folder, '--max_steps', 4, '--save_steps', 1, '--log_steps', 1)
    with mount_disk(folder, 450 << 20):  # room for two checkpoints of 177 MB
        life = Life(server, folder, argv)
        assert life.wait() == 1
        assert re.fullmatch(r'train.py: error: .*/model.ckpt-3: cannot be written \(.*[Nn]o space left.*\); free some '
                            'space .*', life.printed().splitlines()[-1])
        assert not [name for name in os.listdir(folder / 'train') if 'ckpt-3' in name or 'temp' in name]
        assert checkpoints.find_resume(str(folder / 'train'))[1] == 2
        subprocess.run(['mount', '-o', 'remount,size=800m', str(folder)], check=True)
        life = Life(server, folder, argv)
        assert life.wait() == 0, life.printed()
        assert [row['step'] for row in read_log(folder)] == ['1', '2', '3', '4']


@pytest.mark.parametrize('number, message', [
    (errno.ENOSPC, 'a/b: No space left on device; free some space and start again'),
    (errno.EACCES, 'a/b: Permission denied; make it accessible, or name another')])
def test_what_the_system_refuses_ends_a_program_with_one_line(monkeypatch, number, message):
    def fail():
        raise OSError(number, os.strerror(number), 'a/b')
    monkeypatch.setattr(sys, 'argv', ['train.py'])
    with pytest.raises(SystemExit, match=f'^train.py: error: {message}$'):
        utils.run_program(fail)


def delete(path):
    os.remove(path)


def empty(path):
    os.truncate(path, 0)


def cut_off_the_last(path):
    """Cuts between two examples, where nothing but their number tells that some are missing."""
    write_examples(path, list(tf.io.tf_record_iterator(path))[:-1])


@pytest.mark.parametrize('which', ['train', 'val'])
@pytest.mark.parametrize('harm', [delete, empty, truncate, cut_off_the_last])
def test_a_record_that_is_lost_while_it_is_read(tmp_path, which, harm):
    pairs = [draw_pair(40, 40, number) for number in range(3)]
    records = {name: write_record(tmp_path / f'{name}.record', pairs) for name in ('train', 'val')}
    with tf.Session() as session:
        batches = input_pipeline.training_batches(input_pipeline.Sampling(records['train'], 3, 1, 32, (0, 0, 0), 0))
        next_batch = tf.data.make_one_shot_iterator(batches).get_next()
        reader = train.build_reader(records['val'], 3)
        session.run(reader.initializer)
        fetch = next_batch if which == 'train' else reader.next_example
        train.run_input(session, fetch, records[which])
        harm(records[which])
        with pytest.raises(UserError, match=rf'{which}.record: cannot be read or decoded \(.*\); write it again with '):
            for _ in range(100):
                train.run_input(session, fetch, records[which])


if __name__ == '__main__':
    serve()
