"""What a run reports, and that OUT/best agrees with eval.csv whenever a run is killed."""
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import read_log

from datasets import classes
from inference import crf
from inference.scores import Score
from inference.weights import checkpoint_step, find_checkpoint
from training import log, run_folder
from utils import UserError


@pytest.fixture
def writer(tmp_path):
    run_folder.make(str(tmp_path))
    (tmp_path / 'train' / 'settings.json').write_text('{}')
    with run_folder.open_events(str(tmp_path / 'train'), None, 0) as writer:
        yield writer


def test_a_line_is_the_mean_since_the_line_before(writer, tmp_path, capsys):
    training = log.TrainingLog(str(tmp_path / 'train'), writer, start_step=4, max_steps=10, batch_size=3)
    training.write(4)  # nothing happened: no line
    for loss, seconds in ((1.0, 0.5), (4.0, 1.5)):
        training.add(loss, loss / 10, 1e-4, 0, seconds)
    training.write(6)
    training.add(2.0, 0.2, 5e-5, 0, 0.25)
    training.write(7)
    assert [list(row.values()) for row in read_log(tmp_path)] == [
        ['6', '2.5', '0.25', '3', '0.0001'], ['7', '2', '0.2', '12', '5e-05']]
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith('step     6/10  loss     2.50  per pixel 0.2500  3.00 images/s  0:00:0')
    assert second.startswith('step     7/10  loss     2.00  per pixel 0.2000  12.00 images/s')


def test_a_picture_that_cannot_be_written_is_an_error_of_the_run(writer, tmp_path):
    (tmp_path / 'eval' / 'val_1_img.jpg').mkdir()
    example = {'image': np.zeros((20, 30, 3), np.uint8), 'label': np.zeros((20, 30), np.uint8), 'filename': b'a'}
    with ThreadPoolExecutor(1) as pool:
        validations = log.ValidationLog(str(tmp_path), classes.VOC, crf.DEFAULTS, pool, writer)
        validations.draw(1, example, np.full((20, 30, 21), 1 / 21, np.float32))
        with pytest.raises(OSError, match='val_1_img.jpg'):
            validations.log_finished(max_pending=0)


def test_a_drawing_process_that_was_killed_is_named(writer, tmp_path):
    with crf.start_processes(1) as pool:
        validations = log.ValidationLog(str(tmp_path), classes.VOC, crf.DEFAULTS, pool, writer)
        validations.submit(print, os._exit, 1)
        with pytest.raises(UserError, match='the process that draws validation pictures was killed'):
            validations.log_finished(max_pending=0)
        with pytest.raises(UserError, match='the process that draws validation pictures was killed'):
            validations.rebuild_page()


# ------------------------------------------------------------------------------------------- OUT/best


class Run:
    """The evaluations of a run, without the training: a graph of one variable, which holds the step."""

    def __init__(self, folder, writer):
        self.folder, self.writer = folder, writer
        self.step = tf.get_variable('step', [], collections=[tf.GraphKeys.GLOBAL_VARIABLES,
                                                             tf.GraphKeys.MODEL_VARIABLES])

    def start(self, start_step=0):
        return log.EvaluationLog(str(self.folder), self.writer, start_step)

    def add(self, evaluations, step, right):
        """Evaluates a network that has `right` of ten pixels right, all of one class."""
        score = Score(2)
        score.add(np.zeros((1, 10), np.uint8), np.uint8(np.arange(10) >= right)[np.newaxis])
        with tf.Session() as session:
            session.run(self.step.assign(step))
            evaluations.add(session, step, score, 1.0)

    def state(self):
        """Steps in eval.csv; the step that OUT/best stands for; the checkpoints there."""
        best = find_checkpoint(str(self.folder / 'best'))
        assert int(tf.train.load_variable(best, 'step')) == checkpoint_step(best)
        return ([int(row['step']) for row in read_log(self.folder, 'eval.csv')], checkpoint_step(best),
                sorted({name.split('.')[1] for name in os.listdir(self.folder / 'best') if 'ckpt' in name}))


@pytest.fixture
def run(tmp_path, writer):
    return Run(tmp_path, writer)


def test_the_first_of_the_best_stays(run):
    evaluations = run.start()
    for step, right, best in ((1, 4, 1), (2, 6, 2), (3, 6, 2), (4, 2, 2), (5, 7, 5)):
        run.add(evaluations, step, right)
        evaluations.remove_beaten()
        assert run.state() == (list(range(1, step + 1)), best, [f'ckpt-{best}'])


def test_resuming_forgets_no_best_and_repeats_no_row(run):
    evaluations = run.start()
    for step, right in ((1, 6), (2, 4)):
        run.add(evaluations, step, right)
        evaluations.remove_beaten()
    evaluations = run.start(start_step=1)  # training goes on from a checkpoint before the second evaluation
    assert run.state() == ([1], 1, ['ckpt-1'])
    run.add(evaluations, 2, 5)
    evaluations.remove_beaten()
    assert run.state() == ([1, 2], 1, ['ckpt-1'])


def test_killed_before_the_training_checkpoint_the_old_best_is_there(run):
    evaluations = run.start()
    run.add(evaluations, 1, 4)
    evaluations.remove_beaten()
    run.add(evaluations, 2, 6)
    assert run.state() == ([1, 2], 1, ['ckpt-1', 'ckpt-2'])
    evaluations = run.start(start_step=1)
    assert run.state() == ([1], 1, ['ckpt-1'])
    run.add(evaluations, 2, 5)
    evaluations.remove_beaten()
    assert run.state() == ([1, 2], 2, ['ckpt-2'])


def test_killed_after_the_training_checkpoint_the_new_best_is_there(run):
    evaluations = run.start()
    run.add(evaluations, 1, 4)
    evaluations.remove_beaten()
    run.add(evaluations, 2, 6)
    run.start(start_step=2)
    assert run.state() == ([1, 2], 2, ['ckpt-2'])
