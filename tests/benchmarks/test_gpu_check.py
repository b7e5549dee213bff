"""The check of a GPU: its runs, its figures and its page."""
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from benchmarks import gpu_check
from utils import UserError


def test_runs_for_each_number_of_gpus():
    names = {gpus: [name for name, _, _ in gpu_check.choose_trainings(gpus)] for gpus in (0, 1, 2)}
    assert names[0] == ['float32', 'XLA', 'deterministic', 'deterministic again']
    assert names[1] == ['TF32', 'float32', 'mixed precision', 'XLA', 'XLA, mixed precision', 'deterministic',
                        'deterministic again']
    assert set(names[2]) - set(names[1]) == {'2 GPUs'}
    runs = {name: (flags, environment) for name, flags, environment in gpu_check.choose_trainings(2)}
    assert runs['TF32'] == ([], {})
    assert runs['float32'] == ([], {'NVIDIA_TF32_OVERRIDE': '0'})
    assert runs['2 GPUs'] == (['--num_gpus', '2'], {})


def test_speed_is_the_median_without_the_first_two_lines():
    rows = [{'images_per_second': str(speed), 'loss_per_pixel': str(loss)}
            for speed, loss in zip((1, 2, 30, 50, 40), (3.0, 2.5, 2.0, 1.5, 1.25))]
    assert gpu_check.format_training(rows) == ['40.0', '30.0 to 50.0', '3.000000', '2.000000', '1.250000']


def test_rows_that_fail_or_come_too_late_give_their_reason(tmp_path):
    page = gpu_check.Page(str(tmp_path / 'page.md'))

    def fail():
        raise UserError('exit code 1:\nout of | memory')

    page.try_row('first', lambda cell: [cell, '2'], '1')
    page.try_row('second', fail)
    page.started -= gpu_check.LAST_START
    page.try_row('third', fail)
    assert (tmp_path / 'page.md').read_text().splitlines() == [
        '| first | 1 | 2 |', '| second | exit code 1: out of / memory |', '| third | left out: no time |']


def test_failing_program_is_quoted(tmp_path, capsys):
    with pytest.raises(UserError, match='^exit code 3: the last line$'):
        gpu_check.run_program(['-c', 'print("a line\\nthe last line"); raise SystemExit(3)'], str(tmp_path / 'log'))
    assert capsys.readouterr().out == 'a line\nthe last line\n'


def test_environment_reaches_the_program(tmp_path):
    log = tmp_path / 'log'
    gpu_check.run_program(['-c', 'import os; print(os.environ["NVIDIA_TF32_OVERRIDE"])'], str(log), gpu_check.NO_TF32)
    assert log.read_text() == '0\n'


def test_weights_are_compared_bit_for_bit(tmp_path):
    def save(name, weights):
        with tf.Graph().as_default(), tf.Session() as session:
            tf.get_variable('weights', initializer=np.array(weights, np.float32))
            tf.get_variable('step', initializer=np.int64(5))
            session.run(tf.global_variables_initializer())
            return tf.train.Saver().save(session, str(tmp_path / name))

    first, same, other = save('first', [1.0, 2.0]), save('same', [1.0, 2.0]), save('other', [1.0, 2.0000002])
    assert gpu_check.find_differences(first, same) == (0, 2, 0.0)
    different, total, largest = gpu_check.find_differences(first, other)
    assert (different, total) == (1, 2)
    assert largest == pytest.approx(2.0 ** -22)


def test_run_without_checkpoint_is_said(tmp_path):
    with pytest.raises(UserError):
        gpu_check.choose_first(str(tmp_path))
