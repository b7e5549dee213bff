"""What a training run reports: on the terminal, in its tables, in TensorBoard, in pictures; and OUT/best.

train.py decides when.
"""
import collections
import datetime
import functools
import math
import os
import shutil
import time
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np
import tensorflow.compat.v1 as tf

import utils
from inference import weights
from report import page, validation
from training import run_folder
from training.checkpoints import save
from training.watchdog import Watchdog
from utils import UserError


class TrainingLog:
    """Averages over the steps since its last line; writes the terminal's line, OUT/train/log.csv and TensorBoard.
    `start_step` is the number of steps that were done before; `writer` is a tf.summary.FileWriter."""

    COLUMNS = ('step', 'loss', 'loss_per_pixel', 'images_per_second', 'learning_rate')

    def __init__(self, train_dir, writer, start_step, max_steps, batch_size):
        self.writer, self.start_step, self.max_steps, self.batch_size = writer, start_step, max_steps, batch_size
        self.path = os.path.join(train_dir, 'log.csv')
        self.started = time.perf_counter()
        run_folder.keep_rows_up_to(self.path, self.COLUMNS, start_step)
        self.clear()

    def clear(self):
        self.losses, self.losses_per_pixel, self.seconds, self.left_out = [], [], 0.0, 0

    def add(self, loss, loss_per_pixel, learning_rate, left_out, seconds):
        """Adds one step: its losses, its learning rate, 1 if it was left out, and the time of the step alone."""
        self.losses.append(loss)
        self.losses_per_pixel.append(loss_per_pixel)
        self.learning_rate = learning_rate
        self.left_out += left_out
        self.seconds += seconds

    def write(self, step):
        """Writes one line for the steps since the last line, if there are any."""
        if not self.losses:
            return
        values = {'loss': np.mean(self.losses), 'loss_per_pixel': np.mean(self.losses_per_pixel),
                  'images_per_second': len(self.losses) * self.batch_size / self.seconds,
                  'learning_rate': self.learning_rate}
        seconds_per_step = (time.perf_counter() - self.started) / (step - self.start_step)
        left = datetime.timedelta(seconds=round(seconds_per_step * (self.max_steps - step)))
        print('step {:5d}/{}  loss {loss:8.2f}  per pixel {loss_per_pixel:.4f}  {images_per_second:.2f} images/s  '
              '{} left'.format(step, self.max_steps, left, **values)
              + f'  {self.left_out} of {len(self.losses)} steps left out (float16)' * bool(self.left_out), flush=True)
        run_folder.append_row(self.path, self.COLUMNS, [step, *(f'{value:.6g}' for value in values.values())])
        run_folder.add_scalars(self.writer, values, step)
        self.clear()


class ValidationLog:
    """Has validation pictures and the results page made in another process, and logs them when they are done.
    So the terminal's line on a picture may come some steps after the step in the picture's name. `pool` is a
    ProcessPoolExecutor of one process; `output_dir` is OUT."""

    MAX_PENDING = 2  # jobs, so that probabilities do not pile up in memory
    KILLED = ('the process that draws validation pictures was killed, perhaps because memory ran out; start again, and '
              'if this comes back, with --val_steps 0: training resumes at the last checkpoint')

    def __init__(self, output_dir, class_set, crf_parameters, pool, writer):
        self.output_dir, self.eval_dir = output_dir, os.path.join(output_dir, 'eval')
        self.class_set, self.crf_parameters, self.pool, self.writer = class_set, crf_parameters, pool, writer
        self.pending = collections.deque()  # of (job, function that logs its result)

    def draw(self, step, example, probabilities):
        """Draws an example of batches.whole_images and its prediction, float32 [H, W, C]."""
        found = [self.class_set.names[i] for i in np.unique(probabilities.argmax(axis=-1))]
        self.submit(functools.partial(self.log, step, example, found), validation.write_validation, self.eval_dir, step,
                    example['image'], example['label'], probabilities, self.class_set, self.crf_parameters)

    def rebuild_page(self):
        self.submit(lambda _: None, page.write_page, self.output_dir)

    def submit(self, log, function, *args):
        """Has the process run function(*args), and calls `log` with the result later."""
        try:
            with utils.without_stop_signals():  # which may reach all processes of a run
                self.pending.append((self.pool.submit(function, *args), log))
        except BrokenProcessPool:
            raise UserError(self.KILLED) from None

    def log_finished(self, max_pending=MAX_PENDING):
        """Logs the finished jobs; waits while more than `max_pending` are unfinished. Raises their errors."""
        while self.pending and (self.pending[0][0].done() or len(self.pending) > max_pending):
            job, log = self.pending.popleft()
            try:
                log(job.result())
            except BrokenProcessPool:
                raise UserError(self.KILLED) from None

    def log(self, step, example, found, written):
        """Puts the result of write_validation on the terminal and into TensorBoard."""
        paths, (plain, *refined) = written
        with_crf = ''.join(f', with CRF {mean_iou:.3f}' for mean_iou in refined)
        print(f'  val {example["filename"].decode(errors="replace")}: mean IoU {plain:.3f}{with_crf}, '
              f'predicted {", ".join(found)} -> {os.path.join(self.eval_dir, f"val_{step}_*")}', flush=True)
        height, width, _ = example['image'].shape
        for name, path in paths.items():
            with open(path, 'rb') as file:
                picture = tf.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.read())
            summary = tf.Summary(value=[tf.Summary.Value(tag=f'validation/{name}', image=picture)])
            run_folder.add_events(self.writer, summary, step)


class EvaluationLog:
    """The figures of --eval_steps on the terminal, in OUT/train/eval.csv and TensorBoard; and OUT/best.

    OUT/best holds the weights of the step with the highest mean IoU in eval.csv, the first of equals. A run that is
    killed at any point resumes with the two in agreement: `add` writes the new best beside the old one; only after the
    training checkpoint of that step is written does `remove_beaten` remove the old one.
    """

    COLUMNS = ('step', 'mean_iou', 'pixel_accuracy', 'mean_accuracy', 'frequency_weighted_iou', 'boundary_iou',
               'loss_per_pixel')

    @classmethod
    def holds(cls, train_dir, step):
        """Whether the table has the evaluation at a step; else it was interrupted."""
        rows = run_folder.read_rows(os.path.join(train_dir, 'eval.csv'), cls.COLUMNS, step)
        return any(int(row['step']) == step for row in rows)

    def __init__(self, output_dir, writer, start_step):
        self.writer = writer
        self.train_dir, self.best_dir = os.path.join(output_dir, 'train'), os.path.join(output_dir, 'best')
        self.path = os.path.join(self.train_dir, 'eval.csv')
        self.saver = tf.train.Saver(weights.network_variables(), max_to_keep=None)
        self.best_iou, self.best_step, self.since_best = -1.0, None, 0
        for row in run_folder.keep_rows_up_to(self.path, self.COLUMNS, start_step):
            kept = tf.train.checkpoint_exists(os.path.join(self.best_dir, f'model.ckpt-{row["step"]}'))
            self.is_best(int(row['step']), float(row['mean_iou']) if kept else math.nan)
        self.remove_beaten()

    def is_best(self, step, mean_iou):
        """Whether a step is the best so far, which is remembered; nan never is."""
        better = mean_iou > self.best_iou
        self.since_best = 0 if better else self.since_best + 1
        if better:
            self.best_iou, self.best_step = mean_iou, step
        return better

    def has_waited(self, patience):
        """Whether the last `patience` (0: never) evaluations brought no better mean IoU; this is printed."""
        if not patience or self.since_best < patience:
            return False
        print(f'--patience {patience}: no better mean IoU since step {self.best_step}; training ends here', flush=True)
        return True

    def add(self, session, step, score, loss_per_pixel):
        """Logs the result of predictor.score_record at a step, and saves the weights if they are the best so far."""
        figures = {**score.figures(), 'loss_per_pixel': loss_per_pixel}
        better = self.is_best(step, figures['mean_iou'])
        print('  eval {} images: mean IoU {mean_iou:.4f}, pixel accuracy {pixel_accuracy:.4f}, boundary IoU '
              '{boundary_iou:.4f}, loss per pixel {loss_per_pixel:.4f}'.format(len(score.image_ious), **figures)
              + (f' -> best so far, kept in {self.best_dir}' if better else ''), flush=True)
        if better:
            os.makedirs(self.best_dir, exist_ok=True)
            save(session, self.saver, self.best_dir, step, write_state=False)
            with utils.whole_file(os.path.join(self.best_dir, 'settings.json')) as partial:
                shutil.copy(os.path.join(self.train_dir, 'settings.json'), partial)
        # All digits: evaluate.py on OUT/best gives the very same figure.
        run_folder.append_row(self.path, self.COLUMNS, [step, *(figures[name] for name in self.COLUMNS[1:])])
        run_folder.add_scalars(self.writer, {f'validation/{name}': value for name, value in figures.items()}, step)

    def remove_beaten(self):
        """Makes OUT/best hold the best step alone."""
        if self.best_step is None:
            return
        best = f'model.ckpt-{self.best_step}'
        tf.train.update_checkpoint_state(os.path.abspath(self.best_dir), best)
        for name in os.listdir(self.best_dir):
            if name.startswith('model.ckpt-') and not name.startswith(best + '.'):
                os.remove(os.path.join(self.best_dir, name))


class Logs(NamedTuple):
    """All that a run reports to."""
    training: TrainingLog
    validations: ValidationLog
    evaluations: EvaluationLog
    watchdog: Watchdog
    writer: tf.summary.FileWriter
