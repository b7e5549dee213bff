"""The check of a GPU: its runs, its figures and its page."""
import numpy as np
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
    rows = [{'images_per_second': speed, 'loss_per_pixel': loss}
            for speed, loss in zip((1, 2, 30, 50, 40), (3.0, 2.5, 2.0, 1.5, 1.25))]
    assert gpu_check.format_training(rows) == ['40.0', '3.000000', '2.000000', '1.250000']


def test_rows_that_fail_give_their_reason():
    def fail():
        raise UserError('exit code 1:\nout of | memory')

    assert gpu_check.try_row('first', lambda cell: [cell, '2'], '1') == '| first | 1 | 2 |'
    assert gpu_check.try_row('second', fail) == '| second | exit code 1: out of / memory |'


def test_weights_are_compared_bit_for_bit(tmp_path):
    def save(name, weights):
        (tmp_path / name / 'train').mkdir(parents=True)
        with tf.Graph().as_default(), tf.Session() as session:
            tf.get_variable('weights', initializer=np.array(weights, np.float32))
            tf.get_variable('step', initializer=np.int64(5))
            session.run(tf.global_variables_initializer())
            tf.train.Saver().save(session, str(tmp_path / name / 'train' / 'model.ckpt'))
        return str(tmp_path / name)

    first, same, other = save('first', [1.0, 2.0]), save('same', [1.0, 2.0]), save('other', [1.0, 2.0000002])
    assert gpu_check.compare_runs(first, same) == ['2 of 2 variables are equal bit for bit']
    assert gpu_check.compare_runs(first, other) == ['1 of 2 variables are equal bit for bit']
    assert gpu_check.try_row('two', gpu_check.compare_runs, first, str(tmp_path / 'none')).startswith('| two | ')
