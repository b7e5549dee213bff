"""--xla and --mixed_precision change the arithmetic, and neither the losses nor the checks."""
import math
import os
import shutil

import pytest
import tensorflow.compat.v1 as tf
from conftest import read_log, short_run
from lives import Life

import train
from training import session


def run_in_a_process(server, record, folder, *flags):
    """For --xla, whose settings cannot be taken back."""
    life = Life(server, folder, short_run(record, folder, '--log_steps', 1, '--max_steps', 3, *flags))
    assert life.wait() == 0, life.printed()
    return read_log(folder), life.printed()


def test_t13_xla_is_asked_for_before_tensorflow_looks_for_devices(monkeypatch):
    """TensorFlow reads the flag once, at that moment."""
    seen = []
    monkeypatch.setenv('TF_XLA_FLAGS', '--tf_xla_min_cluster_size=2')
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda _: seen.append(os.environ['TF_XLA_FLAGS']) or [])
    session.prepare_process(1, deterministic=False, xla=True, mixed_precision=True)
    assert seen and set(seen) == {'--tf_xla_min_cluster_size=2 --tf_xla_cpu_global_jit'}


@pytest.mark.slow
@pytest.mark.parametrize('more', [[], ['--mixed_precision']], ids=['plain', 't13'])
def test_xla_compiles_and_gives_the_same_losses(server, record, tmp_path, more):
    plain, printed = run_in_a_process(server, record, tmp_path / 'plain')
    assert 'Compiled cluster using XLA' not in printed
    compiled, printed = run_in_a_process(server, record, tmp_path / 'xla', '--xla', *more)
    assert 'Compiled cluster using XLA' in printed
    # Dropout draws other numbers in step 1, but the scores it acts upon are still all zero.
    assert float(compiled[0]['loss_per_pixel']) == pytest.approx(math.log(21), abs=1e-4)
    assert float(compiled[0]['loss']) == pytest.approx(float(plain[0]['loss']), rel=1e-4)
    assert float(compiled[2]['loss']) == pytest.approx(float(plain[2]['loss']), rel=0.02)


@pytest.mark.slow
def test_xla_does_not_drop_the_check(server, record, tmp_path):
    life = Life(server, tmp_path / 'run', short_run(record, tmp_path / 'run', '--max_steps', 1, '--xla'),
                spoil=[1, 'vgg_16/fc7/biases', math.nan])
    assert life.wait() == 1
    assert life.printed().splitlines()[-1].startswith('train.py: error: the weights are not finite at step 1, ')


@pytest.mark.slow
def test_mixed_precision_scales_the_loss_and_trains(small_runs, trained, record, tmp_path, capsys):
    train.main(short_run(record, tmp_path, '--log_steps', 1, '--max_steps', 3, '--mixed_precision'))
    assert '\n--mixed_precision: ' in capsys.readouterr().out
    mixed, plain = ([float(row['loss']) for row in read_log(folder)] for folder in (tmp_path, trained))
    assert mixed == pytest.approx(plain, rel=0.02)
    reader = tf.train.load_checkpoint(str(tmp_path / 'train'))
    assert reader.get_tensor('current_loss_scale') == 2 ** 15 and reader.get_tensor('good_steps') == 3


@pytest.mark.slow
def test_a_run_may_take_up_mixed_precision_and_leave_it(small_runs, trained, record, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / 'run')
    for max_steps, flags in ((4, ['--mixed_precision']), (5, [])):
        train.main(short_run(record, run, '--max_steps', max_steps, *flags))
        assert 'resumed from' in capsys.readouterr().out
    assert [row['step'] for row in read_log(run)] == ['1', '2', '3', '4', '5']


@pytest.mark.slow
def test_gradients_beyond_float16_are_no_cause_to_stop(small_runs, record, tmp_path, monkeypatch):
    """A loss scale of 2^120 makes infinite gradients: the step is left out, the scale halved, training goes on."""
    scaled = tf.mixed_precision.MixedPrecisionLossScaleOptimizer
    monkeypatch.setattr(
        tf.mixed_precision, 'MixedPrecisionLossScaleOptimizer',
        lambda optimizer, _: scaled(optimizer, tf.mixed_precision.DynamicLossScale(initial_loss_scale=2.0 ** 120)))
    train.main(short_run(record, tmp_path, '--summary_steps', 1, '--max_steps', 2, '--mixed_precision'))
    reader = tf.train.load_checkpoint(str(tmp_path / 'train'))
    assert reader.get_tensor('current_loss_scale') == 2.0 ** 118
    assert not reader.get_tensor('vgg_16/fc8/weights').any()  # as it started
