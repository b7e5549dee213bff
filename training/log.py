"""What a training run tells of itself: on the terminal, in its tables, in TensorBoard, in pictures, and in OUT/best.

train.py says when.
"""
import collections
import functools
import os
import shutil
import signal
import time
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import tensorflow.compat.v1 as tf

import utils
from report import page as report
from report import validation
from training import run_folder
from training.checkpoints import save
from utils import UserError


class ValidationLog:
    """Has validation pictures and the results page made in a process of their own, and logs them when they are done.

    So a picture's line on the terminal may come some steps after the step that its path tells.
    """

    UNDER_WAY = 2  # jobs at most, so that probabilities do not pile up in memory
    KILLED = ('the process that draws validation pictures was killed, for lack of memory perhaps; start again: '
              'training resumes at the last checkpoint')

    def __init__(self, output_dir, eval_dir, class_set, crf_parameters, pool, writer):
        self.output_dir, self.eval_dir, self.class_set, self.crf_parameters = (
            output_dir, eval_dir, class_set, crf_parameters)
        self.pool, self.writer = pool, writer
        self.under_way = collections.deque()  # of (job, function that logs its result)

    def draw(self, step, example, probabilities):
        """Draws an example of input_pipeline.whole_images and its prediction, float32 [H, W, C]."""
        found = [self.class_set.names[i] for i in np.unique(probabilities.argmax(axis=-1))]
        self.submit(functools.partial(self.log, step, example, found), validation.write_validation, self.eval_dir, step,
                    example['image'], example['label'], probabilities, self.class_set, self.crf_parameters)

    def rebuild_page(self):
        """Makes the results page anew."""
        self.submit(lambda page: None, report.write_page, self.output_dir)

    def submit(self, log, function, *args):
        """Has function(*args) run in the process, and `log` called with its result."""
        # A process starts with the signals blocked that are blocked here. Ctrl-C, and the SIGTERM of a machine that
        # goes down, reach all processes of a run; this one shall end when its last job is done.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            self.under_way.append((self.pool.submit(function, *args), log))
        except BrokenProcessPool:
            raise UserError(self.KILLED) from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def log_finished(self, under_way=UNDER_WAY):
        """Logs what is done; waits while more than `under_way` jobs are not.

        Raises:
            OSError, UserError: a file cannot be written, or the process was killed.
        """
        while self.under_way and (self.under_way[0][0].done() or len(self.under_way) > under_way):
            job, log = self.under_way.popleft()
            try:
                log(job.result())
            except BrokenProcessPool:
                raise UserError(self.KILLED) from None

    def log(self, step, example, found, written):
        """Puts what write_validation returned on the terminal and into TensorBoard."""
        paths, (plain, refined) = written
        print(f'  val {example["filename"].decode()}: mean IoU {plain:.3f}, with CRF {refined:.3f}, '
              f'predicted {", ".join(found)} -> {os.path.join(self.eval_dir, f"val_{step}_*")}', flush=True)
        height, width, _ = example['image'].shape
        for name, path in paths.items():
            with open(path, 'rb') as file:
                picture = tf.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.read())
            self.writer.add_summary(
                tf.Summary(value=[tf.Summary.Value(tag=f'validation/{name}', image=picture)]), step)


class EvaluationLog:
    """The figures of --eval_steps on the terminal, in OUT/train/eval.csv and TensorBoard, and OUT/best.

    OUT/best holds the weights of the step with the highest mean IoU in eval.csv, the first of equals. A run that is
    killed at any point resumes with the two in agreement: `add` writes the new best beside the old one, and only
    after the training checkpoint, from which a run goes on, has that step too, `drop_beaten` removes the old one.
    """

    COLUMNS = ('step', 'mean_iou', 'pixel_accuracy', 'mean_accuracy', 'frequency_weighted_iou', 'boundary_iou',
               'loss_per_pixel')

    def __init__(self, args, variables, writer, start_step):
        self.writer = writer
        self.path = os.path.join(args.output_dir, 'train', 'eval.csv')
        self.best_dir = os.path.join(args.output_dir, 'best')
        self.saver = tf.train.Saver(variables, max_to_keep=None)
        self.best_iou, self.best_step = -1.0, None
        if args.eval_steps or os.path.exists(self.path):
            for row in run_folder.keep_rows_up_to(self.path, self.COLUMNS, start_step):
                if tf.train.checkpoint_exists(os.path.join(self.best_dir, f'model.ckpt-{row["step"]}')):
                    self.note(int(row['step']), float(row['mean_iou']))
            self.drop_beaten()

    def note(self, step, mean_iou):
        """Whether the step is the best so far, which it is from now on; nan never is."""
        better = mean_iou > self.best_iou
        if better:
            self.best_iou, self.best_step = mean_iou, step
        return better

    def add(self, session, step, score, loss_per_pixel):
        """Logs what score_record returned for a step, and keeps the weights if they are the best so far."""
        figures = {**score.figures(), 'loss_per_pixel': loss_per_pixel}
        better = self.note(step, figures['mean_iou'])
        print('  eval {} images: mean IoU {mean_iou:.4f}, pixel accuracy {pixel_accuracy:.4f}, boundary IoU '
              '{boundary_iou:.4f}, loss per pixel {loss_per_pixel:.4f}'.format(len(score.image_ious), **figures)
              + (f' -> best so far, kept in {self.best_dir}' if better else ''), flush=True)
        if better:
            os.makedirs(self.best_dir, exist_ok=True)
            save(session, self.saver, self.best_dir, step, write_state=False)
            with utils.whole_file(os.path.join(self.best_dir, 'settings.json')) as partial:
                shutil.copy(os.path.join(os.path.dirname(self.path), 'settings.json'), partial)
        # All digits: evaluate.py on OUT/best gives the very same figure.
        run_folder.append_row(self.path, [step, *(figures[name] for name in self.COLUMNS[1:])])
        self.writer.add_summary(tf.Summary(value=[
            tf.Summary.Value(tag=f'validation/{name}', simple_value=value) for name, value in figures.items()]), step)

    def drop_beaten(self):
        """Makes OUT/best hold and stand for the best step alone."""
        if self.best_step is None:
            return
        best = f'model.ckpt-{self.best_step}'
        tf.train.update_checkpoint_state(os.path.abspath(self.best_dir), best)
        for name in os.listdir(self.best_dir):
            if name.startswith('model.ckpt-') and not name.startswith(best + '.'):
                os.remove(os.path.join(self.best_dir, name))


class TrainingLog:
    """Averages over the steps since its last line; writes the terminal's line, OUT/train/log.csv and TensorBoard."""

    COLUMNS = ('step', 'loss', 'loss_per_pixel', 'images_per_second', 'learning_rate')

    def __init__(self, args, writer, start_step):
        self.args, self.writer, self.start_step = args, writer, start_step
        self.path = os.path.join(args.output_dir, 'train', 'log.csv')
        self.started = time.perf_counter()
        run_folder.keep_rows_up_to(self.path, self.COLUMNS, start_step)
        self.clear()

    def clear(self):
        self.losses, self.losses_per_pixel, self.seconds = [], [], 0.0

    def add(self, loss, loss_per_pixel, learning_rate, seconds):
        """Takes in one step, its learning rate, and the time that it alone took."""
        self.losses.append(loss)
        self.losses_per_pixel.append(loss_per_pixel)
        self.learning_rate = learning_rate
        self.seconds += seconds

    def write(self, step):
        """One line for the steps since the last one, if there are any."""
        if not self.losses:
            return
        values = (step, np.mean(self.losses), np.mean(self.losses_per_pixel),
                  len(self.losses) * self.args.batch_size / self.seconds, self.learning_rate)
        steps_done = step - self.start_step
        left = (time.perf_counter() - self.started) / steps_done * (self.args.max_steps - step)
        print('step {:5d}/{}  loss {:8.2f}  per pixel {:.4f}  {:.2f} images/s  {} left'.format(
            step, self.args.max_steps, *values[1:4], format_seconds(left)), flush=True)

        run_folder.append_row(self.path, [step, *(f'{value:.6g}' for value in values[1:])])
        self.writer.add_summary(tf.Summary(value=[
            tf.Summary.Value(tag=tag, simple_value=value) for tag, value in zip(self.COLUMNS[1:], values[1:])]), step)
        self.clear()


def format_seconds(seconds):
    """3725.4 -> '1:02:05'."""
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02d}:{seconds:02d}'
