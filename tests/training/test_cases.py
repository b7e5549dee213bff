"""What users met in training, and what must happen; each test is named after its row in the table of cases."""
import contextlib
import io
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import draw_photo, read_log, short_run, write_record
from lives import ROOT, Life

import evaluate
import predict
import train
import utils
from datasets import classes
from datasets.batches import Sampling, training_batches
from inference.weights import find_checkpoint
from tools import search_crf
from training import checkpoints, log, recipes, run_folder
from utils import UserError

# ------------------------------------------------------------------------------------------- T1 to T3: recipes

NAMES = ('vgg_16/fc8/weights', 'vgg_16/fc8/biases', 'vgg_16/fc8/conv_pool4/weights', 'vgg_16/fc8/conv_pool4/biases',
         'vgg_16/fc8/t_conv_x8', 'vgg_16/fc7/weights', 'vgg_16/fc7/biases')
VALUES = np.random.RandomState(0).uniform(0.005, 0.05, 1000).astype(np.float32)  # as large as VGG16's


def run_updates(recipe, gradient, steps, max_steps=10):
    """The variables NAMES after each of some steps, list of dicts; each has the same gradient, a number."""
    with tf.Graph().as_default(), tf.Session() as session:
        variables = {name: tf.get_variable(name, initializer=VALUES, use_resource=True) for name in NAMES}
        for name in NAMES:
            if name.endswith('/weights'):
                tf.add_to_collection(tf.GraphKeys.REGULARIZATION_LOSSES,
                                     recipes.l2_decay(recipe) * tf.nn.l2_loss(variables[name]))
        loss = gradient * tf.add_n([tf.reduce_sum(variable) for variable in variables.values()])
        step = tf.train.get_or_create_global_step()
        optimizer, _ = recipes.build_optimizer(recipe, step, max_steps)
        update = recipes.build_update(recipe, optimizer, optimizer.compute_gradients(loss), step)
        session.run(tf.global_variables_initializer())
        return [session.run(update.train_op) or session.run(variables) for _ in range(steps)]


def momentum_steps(name, gradient, rates, momentum, decay, bias_rate, head_rate):
    """NumPy's, in float32, as Caffe does it: lr_mult multiplies gradient and decay alike."""
    rate = head_rate if name.startswith('vgg_16/fc8/') and 't_conv' not in name else 1
    rate *= bias_rate if name.endswith('/biases') else 1
    decay = np.float32(decay if name.endswith('/weights') else 0)
    value, velocity = VALUES, np.zeros_like(VALUES)
    for base in rates:
        velocity = np.float32(momentum) * velocity + np.float32(rate) * (np.float32(gradient) + decay * value)
        value = value - np.float32(base) * velocity
        yield value


def adam_steps(name, rates, decays):
    """NumPy's, in float32. A gradient that stays has the two averages cancel: Adam moves by the rate."""
    value = VALUES
    for rate, decay in zip(rates, decays, strict=True):
        value = value - np.float32(decay if name.endswith('/weights') else 0) * value - np.float32(rate)
        yield value


@pytest.mark.parametrize('recipe, gradient, expected', [
    ('default', 1.0, lambda name: adam_steps(name, [1e-4] * 2, [0] * 2)),
    ('adamw', 1.0, lambda name: adam_steps(name, [1e-5] * 2, [1e-6] * 2)),
    ('paper', 1e4, lambda name: momentum_steps(name, 1e4, [1e-10] * 2, 0.99, 5e-4, 2, 1)),  # summed over 187,500 pixels
    ('poly', 0.1, lambda name: momentum_steps(name, 0.1, [1e-3, 1e-3 * 0.9 ** 0.9], 0.9, 5e-4, 2, 10))])
def test_t1_t3_each_recipes_own_numbers_move_each_weight(recipe, gradient, expected):
    found = run_updates(recipes.RECIPES[recipe], gradient, 2)
    for name in NAMES:
        before = VALUES
        for values, wanted in zip(found, expected(name), strict=True):
            assert (values[name] != before).all()
            np.testing.assert_allclose(values[name], wanted, rtol=3e-7, atol=0 if recipe == 'paper' else 3e-9)
            before = values[name]


def test_t1_adamw_takes_a_millionth_of_each_kernel_at_each_step():
    """With no gradient, only the decay moves weights: w - 1e-6 * w, in float32, and nothing else."""
    wanted = VALUES
    for found in run_updates(recipes.RECIPES['adamw'], 0.0, 3):
        wanted = wanted - np.float32(1e-6) * wanted
        for name in NAMES:
            assert (found[name] == (wanted if name.endswith('/weights') else VALUES)).all()
    assert (wanted < VALUES).all()


def test_t1_decoupled_decay_falls_with_the_schedule():
    recipe = recipes.RECIPES['adamw']._replace(schedule='poly', weight_decay=0.1, learning_rate=0.0)
    wanted = VALUES.astype(np.float64)
    for step, found in enumerate(run_updates(recipe, 1.0, 3, max_steps=4)):
        wanted = wanted * (1 - 0.1 * (1 - step / 4) ** 0.9)
        np.testing.assert_allclose(found['vgg_16/fc7/weights'], wanted, rtol=1e-6)


def test_t2_adamw_sees_complete_images_of_voc(tmp_path):
    """500 x 375 in a crop of 512: all of its pixels, and void around them."""
    label = np.random.RandomState(0).randint(0, 21, (375, 500)).astype(np.uint8)
    record = write_record(tmp_path / 'one.record', [(draw_photo(375, 500), label)])
    crop_size = train.parse_args(['--recipe', 'adamw']).recipe.crop_size
    batches = training_batches(Sampling(record, 1, 1, crop_size, (0, 0, 0), 0, []))
    with tf.Session() as session:
        _, labels, _ = session.run(tf.data.make_one_shot_iterator(batches).get_next())
    rows, columns = np.nonzero(labels[0] != 255)
    assert labels.shape == (1, 512, 512)
    assert (labels[0][rows.min():rows.max() + 1, columns.min():columns.max() + 1] == label).all()


def test_t3_the_head_rate_is_printed():
    assert 'biases learn 2 times as fast, new layers 10 times' in recipes.describe(recipes.RECIPES['poly'])
    assert 'new layers' not in recipes.describe(recipes.RECIPES['paper'])


# ------------------------------------------------------------------------------------------- T4: mixed precision


@pytest.mark.parametrize('flags', [['--recipe', 'paper'], ['--loss', 'sum']])
def test_t4_a_summed_loss_is_refused_in_float16(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        train.parse_args([*flags, '--mixed_precision'])
    [line] = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and '--mixed_precision: gradients of --loss sum' in line and '--loss mean' in line


def test_t4_a_mean_loss_of_the_paper_is_not_refused():
    assert train.parse_args(['--recipe', 'paper', '--loss', 'mean', '--mixed_precision']).mixed_precision


@pytest.mark.parametrize('recipe', recipes.RECIPES)
def test_t4_in_a_step_that_is_left_out_all_stands_still(recipe):
    """Also the decoupled decay, the optimizer's averages and the step that the schedule counts."""
    recipe = recipes.RECIPES[recipe]._replace(schedule='poly', weight_decay=0.1)
    variable = tf.get_variable('vgg_16/fc8/weights', initializer=VALUES, use_resource=True)
    size = tf.placeholder(tf.float32, [])
    step = tf.train.get_or_create_global_step()
    optimizer, learning_rate = recipes.build_optimizer(recipe, step, 4, mixed_precision=True)
    gradients = optimizer.compute_gradients(tf.reduce_sum(variable) * size)
    update = recipes.build_update(recipe, optimizer, gradients, step)
    watched = [each for each in tf.global_variables() if each.op.name not in checkpoints.LOSS_SCALE]
    left_out = []
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for gradient in (1e37, 1.0, 1e37, 1e37, 1.0):  # times the loss scale, 2 ** 15, the largest are infinite
            before, rate = session.run([watched, learning_rate])
            left_out.append(session.run([update.left_out, update.train_op], {size: gradient})[0])
            changed = [(one != other).any() for one, other in zip(before, session.run(watched), strict=True)]
            assert any(changed) != bool(left_out[-1])
            assert (session.run(learning_rate) == rate) == bool(left_out[-1])
        assert left_out == [1, 0, 1, 1, 0] and session.run(step) == 2


def test_t4_steps_that_are_left_out_are_counted_in_the_log_line(tmp_path, capsys):
    with run_folder.open_events(str(tmp_path), tf.get_default_graph(), 0) as writer:
        training = log.TrainingLog(str(tmp_path), writer, 0, 10, 2)
        for step, left_out in enumerate((1, 1, 0, 0), start=1):
            training.add(3.0, 0.5, 1e-4, left_out, 0.1)
            if step % 2 == 0:
                training.write(step)
        training.add(3.0, 0.5, 1e-4, 0, 0.1)
        training.write(5)
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.endswith('left  2 of 2 steps left out (float16)')
    assert second.endswith('left') and third.endswith('left')


# ------------------------------------------------------------------------------------------- T5: other flags

SETTINGS = train.settings_of(train.parse_args([]))


@pytest.mark.parametrize('name, value, line', [
    ('seed', 1, 'changed seed: 0 -> 1'), ('batch_size', 8, 'changed batch_size: 16 -> 8'),
    ('weight_decay', 5e-4, 'changed weight_decay: 0.0 -> 0.0005'),
    ('learning_rate', 1e-5, 'changed learning_rate: 0.0001 -> 1e-05'),
    ('max_steps', 3000, 'changed max_steps: 1500 -> 3000'),
    ('augment', [], "changed augment: ['flip'] -> []"),
    ('class_weights', 'median_frequency', 'changed class_weights: none -> median_frequency'),
    ('dataset_train', 'b.record', 'changed dataset_train: data/fcn_train.record -> b.record'),
    ('checkpoint_path', 'b.ckpt', 'changed checkpoint_path: None -> b.ckpt (not used: the run resumes)'),
    ('output_dir', 'moved', None)])
def test_t5_each_changed_flag_is_printed(tmp_path, capsys, name, value, line):
    run_folder.save_settings(str(tmp_path), SETTINGS, classes.VOC, None, resumed=False)
    run_folder.check_settings(str(tmp_path), {**SETTINGS, name: value}, classes.VOC, 'a.record')
    assert capsys.readouterr().out.splitlines() == ([line] if line else [])


def test_t5_more_steps_under_poly_move_the_rate(tmp_path, capsys):
    settings = {**SETTINGS, 'schedule': 'poly'}
    run_folder.save_settings(str(tmp_path), settings, classes.VOC, None, resumed=False)
    run_folder.check_settings(str(tmp_path), {**settings, 'max_steps': 3000}, classes.VOC, 'a.record')
    assert capsys.readouterr().out == 'changed max_steps: 1500 -> 3000 (moves the learning rate)\n'


@pytest.mark.slow
def test_t5_another_loss_is_another_run(small_runs, record, trained, tmp_path, capsys):
    folder = copy_run(trained, tmp_path / 'run')
    with pytest.raises(UserError, match='its run has loss rows, now it is mean; give the same flags, or start anew'):
        train.main(short_run(record, folder, '--max_steps', 4, '--loss', 'mean'))
    capsys.readouterr()
    train.main(short_run(record, folder, '--max_steps', 4, '--seed', 1, '--save_steps', 100))
    printed = capsys.readouterr().out
    assert 'changed seed: 0 -> 1\n' in printed and 'changed max_steps: 3 -> 4\n' in printed
    assert [row['step'] for row in read_log(folder)] == ['1', '2', '3', '4']


# ------------------------------------------------------------------------------------------- T6: skip_scales


def copy_run(source, target):
    subprocess.run(['cp', '-r', source, target], check=True)
    return target


@pytest.mark.slow
def test_t6_skip_scales_are_used_on_a_run(small_runs, record, trained, tmp_path):
    """The kernels are scaled the other way: scores stay what they were."""
    train.main(short_run(record, tmp_path, '--max_steps', 1, '--checkpoint_path', trained, '--recipe', 'paper',
                         '--learning_rate', 0, '--upsampling', 'learned'))
    before, after = (tf.train.load_checkpoint(find_checkpoint(str(folder))) for folder in (trained, tmp_path))
    for pool, scale in (('pool4', 1e-2), ('pool3', 1e-4)):
        assert after.get_tensor(f'vgg_16/fc8/scale_{pool}') == np.float32(scale)
        kernel = before.get_tensor(f'vgg_16/fc8/conv_{pool}/weights')
        assert kernel.any()
        np.testing.assert_allclose(after.get_tensor(f'vgg_16/fc8/conv_{pool}/weights') * scale, kernel, rtol=1e-6)


# ------------------------------------------------------------------------------------------- T7: paths

PATTERNS = ('run[1]', 'run[', 'run*', 'run?', 'run\\1')


@pytest.mark.parametrize('name', PATTERNS)
def test_t7_a_folder_that_is_a_pattern_is_refused_before_the_first_step(small_runs, record, tmp_path, name):
    with pytest.raises(UserError, match='takes .* in a path for a pattern; rename it'):
        train.main(short_run(record, tmp_path / name / 'out', '--max_steps', 1))
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize('name', PATTERNS)
@pytest.mark.parametrize('main, flags', [
    (train.main, ['--dataset_train', 'RECORD', '--dataset_val', 'RECORD', '--output_dir', 'OUT']),
    (evaluate.main, ['--dataset', 'RECORD', '--output_dir', 'OUT']),
    (predict.main, ['--images', 'OUT', '--output_dir', 'OUT']), (search_crf.main, ['--dataset', 'RECORD'])])
def test_t7_a_checkpoint_that_is_a_pattern_is_refused(record, trained, tmp_path, main, flags, name):
    folder = copy_run(trained, tmp_path / name)
    flags = [{'RECORD': record, 'OUT': str(tmp_path / 'out')}.get(flag, flag) for flag in flags]
    for path in (folder, folder / 'train' / 'model.ckpt-3'):
        with pytest.raises(UserError, match='takes .* in a path for a pattern; rename it'):
            main([*flags, '--checkpoint_path', str(path)])


def test_t7_an_export_that_is_a_pattern_is_refused(small_runs, trained, tmp_path):
    with pytest.raises(UserError, match='in a path for a pattern'):
        predict.main(['--checkpoint_path', str(trained), '--export', str(tmp_path / 'net[1]')])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_t7_inside_such_a_folder_all_works(small_runs, record, tmp_path, monkeypatch):
    """Relative paths do not name it. Old checkpoints are removed after a resume too; records are read from there."""
    inside = tmp_path / 'a[1]' / 'b\\c' / 'd*?'
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    own = str(inside / 'own.record')
    os.link(record, own)
    for steps in (4, 6):
        with tf.Graph().as_default():
            train.main(short_run(own, 'out', '--max_steps', steps, '--save_steps', 1, '--eval_steps', 2))
    assert checkpoints.list_steps('out/train') == [4, 5, 6]
    assert find_checkpoint('out') == 'out/train/model.ckpt-6' and os.path.exists(find_checkpoint('out/best') + '.index')


@pytest.mark.slow
def test_t7_a_closing_bracket_is_not_a_pattern(small_runs, record, tmp_path):
    train.main(short_run(record, tmp_path / 'run]', '--max_steps', 1))
    assert find_checkpoint(str(tmp_path / 'run]')).endswith('model.ckpt-1')


# ------------------------------------------------------------------------------------------- T8, T9: signals


@pytest.mark.slow
def test_t8_a_closed_terminal_keeps_the_step(server, record, tmp_path):
    life = Life(server, tmp_path / 'run', short_run(record, tmp_path / 'run', '--max_steps', 10000))
    assert life.until(lambda: life.new_steps() >= 3)
    life.send(signal.SIGHUP, to_all=True)
    assert life.wait() == 129, life.printed()
    last = life.steps()[-1][0]
    assert f'stopped by SIGHUP after step {last}, kept in' in life.printed() and 'Traceback' not in life.printed()
    assert checkpoints.find_resume(str(tmp_path / 'run' / 'train'))[1] == last


@contextlib.contextmanager
def closed(kind):
    """A stream whose other end is closed: a pipe's reader, or a terminal."""
    other, end = os.pipe() if kind == 'pipe' else os.openpty()
    os.close(other)
    with io.TextIOWrapper(io.BufferedWriter(io.FileIO(end, 'w')), line_buffering=True) as stream:
        yield stream


@pytest.mark.slow
@pytest.mark.parametrize('kind, number', [pytest.param('pipe', signal.SIGPIPE, marks=pytest.mark.slow),
                                          ('terminal', signal.SIGHUP)])
def test_t8_a_closed_output_keeps_the_step(small_runs, record, tmp_path, monkeypatch, kind, number):
    """Closed while the second step is run, whose log line then fails."""
    run_step = train.run_step
    with closed(kind) as stream:
        def closing(run, step):
            if step == 2:
                sys.stdout.stream = stream
            return run_step(run, step)
        monkeypatch.setattr(train, 'run_step', closing)
        with pytest.raises(utils.Stopped, match=f'stopped by {number.name} after step 2, kept in') as stopped:
            train.main(short_run(record, tmp_path, '--max_steps', 9, '--log_steps', 1))
    assert stopped.value.number == number
    assert checkpoints.find_resume(str(tmp_path / 'train'))[1] == 2
    assert [row['step'] for row in read_log(tmp_path)] == ['1', '2']


@pytest.mark.parametrize('body', ['[print(i) for i in range(99999)]', 'print(1)', 'print(1, flush=True)'])
def test_t8_programs_end_quietly_when_their_pipe_is_closed(body):
    program = f'import sys, utils; sys.stdin.read(); utils.run_program(lambda: ({body}, None)[1])'
    with subprocess.Popen([sys.executable, '-c', program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == '' and process.wait() == 141


@pytest.mark.parametrize('number', utils.STOP_SIGNALS)
def test_t9_a_signal_that_is_ignored_stays_so(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with utils.StopSignals() as signals:
            os.kill(os.getpid(), number)
            signals.check()
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.slow
def test_t9_nohup_ignores_ctrl_c_while_tensorflow_is_imported():
    with subprocess.Popen([sys.executable, 'train.py', '--help'], cwd=ROOT, stdout=subprocess.PIPE,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) as process:
        for _ in range(20):
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        assert b'--recipe' in process.stdout.read() and process.wait() == 0
