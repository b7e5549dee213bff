"""FCN-8s for semantic segmentation: the network, its loss, and the training program with its pictures and scores.

    python train.py --checkpoint_path vgg_16.ckpt --output_dir results

Source: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015.
"""
import collections
import functools
import json
import math
import os
import shutil
import signal
import time
import warnings
from concurrent.futures.process import BrokenProcessPool

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is no traceback while TensorFlow's import takes its seconds

import numpy as np
import tensorflow
import tensorflow.compat.v1 as tf
import tf_slim as slim
import tqdm
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

import crf
import dataset
import input_pipeline
import report
import run_folder
import utils
import validation
import vgg
from checkpoints import (
    MAX_TO_KEEP,
    find_checkpoint,
    find_reason,
    find_resume,
    read_shapes,
    restore,
    save,
    take_over,
)
from utils import UserError, bilinear_upsample_weights
from watchdog import Watchdog

# ------------------------------------------------------------------------------------------- FCN-8s, in eight steps


def fcn_8s(images, is_training=False, number_of_classes=dataset.NUMBER_OF_CLASSES, fc_channels=4096, weight_decay=0.0,
           dropout_seed=None):
    """Scores every pixel for every class. Built again in the same graph, it shares the same variables.

    Args:
        images: uint8 or float32 [B, H, W, 3], raw RGB 0..255, of any height and width.
        is_training: bool or scalar bool tensor: dropout on fc6 and fc7.
        number_of_classes: int, C.
        fc_channels: int, width of fc6 and fc7; the published VGG16 weights have 4096.
        weight_decay: float, see vgg.vgg_arg_scope.
        dropout_seed: int64 [2] or None, see vgg.vgg_16.

    Returns:
        float32 [B, H, W, C], logits.
    """
    images.shape.assert_has_rank(4)
    # Step 1: what is left to upsample after the two skips, and the classes (VOC: 20 and the background).
    upsample_factor = 8

    # The five poolings halve exactly only multiples of 32: fill up with the mean colour, which is 0 to the network.
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    inputs = tf.pad(tf.cast(images, tf.float32) - vgg.RGB_MEAN, [[0, 0], [0, -height % 32], [0, -width % 32], [0, 0]])

    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        # Step 2: VGG16 with its fully connected layers as convolutions; SAME padding keeps their output at 1/32.
        with slim.arg_scope(vgg.vgg_arg_scope(weight_decay)):
            logits, end_points = vgg.vgg_16(inputs, num_classes=number_of_classes, is_training=is_training,
                                            spatial_squeeze=False, fc_conv_padding='SAME', fc_channels=fc_channels,
                                            dropout_seed=dropout_seed)

        # Step 3: the size of the output, which is the input's.
        upsampled_logits_shape = tf.concat([tf.shape(inputs)[:3], [number_of_classes]], axis=0)

        with tf.variable_scope('vgg_16/fc8'):
            # Step 4: scores from pool4 (1/16) and pool3 (1/8). They start at zero, so that training starts from the
            # coarse prediction alone and takes from the finer layers what helps.
            score_pool4 = slim.conv2d(end_points['vgg_16/pool4'], number_of_classes, [1, 1], activation_fn=None,
                                      weights_initializer=tf.zeros_initializer(), scope='conv_pool4')
            score_pool3 = slim.conv2d(end_points['vgg_16/pool3'], number_of_classes, [1, 1], activation_fn=None,
                                      weights_initializer=tf.zeros_initializer(), scope='conv_pool3')

            # Step 5: x2, from 1/32 to 1/16, by a transposed convolution that starts as bilinear interpolation.
            upscore2 = upsample(logits, 2, tf.shape(score_pool4), scope='t_conv_x2_1')
            fuse_pool4 = upscore2 + score_pool4

            # Step 6: x2 again, to 1/8.
            upscore_pool4 = upsample(fuse_pool4, 2, tf.shape(score_pool3), scope='t_conv_x2_2')
            fuse_pool3 = upscore_pool4 + score_pool3

            # Step 7: x8, to the size of the (filled up) image; then cut back to the image's own.
            upscore8 = upsample(fuse_pool3, upsample_factor, upsampled_logits_shape, scope='t_conv_x8')
    return upscore8[:, :height, :width, :]


def upsample(scores, factor, output_shape, scope):
    """Transposed convolution of stride `factor`, float32 [B, h, w, C] -> output_shape [B, h * factor, w * factor, C].

    The kernel is a variable that starts as bilinear interpolation.
    """
    kernel = tf.get_variable(scope, initializer=bilinear_upsample_weights(factor, int(scores.shape[-1])))
    return tf.nn.conv2d_transpose(scores, kernel, output_shape, strides=[1, factor, factor, 1], padding='SAME')


def segmentation_loss(logits, labels):
    """Step 8: softmax cross-entropy per pixel; void pixels are in no sum.

    Args:
        logits: float32 [B, H, W, C].
        labels: int32 [B, H, W], class index, or 255 for void.

    Returns:
        loss: float32 scalar, what is minimised: summed over each row, then the mean over rows and batch.
        loss_per_pixel: float32 scalar, the mean over the pixels that count; ln C for a network that knows nothing.
    """
    valid = tf.not_equal(labels, dataset.IGNORE_LABEL)
    cross_entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(
        logits=logits, labels=tf.where(valid, labels, tf.zeros_like(labels)))
    cross_entropies = tf.where(valid, cross_entropies, tf.zeros_like(cross_entropies))
    loss = tf.reduce_mean(tf.reduce_sum(cross_entropies, axis=-1))
    number_of_valid = tf.maximum(tf.reduce_sum(tf.cast(valid, tf.float32)), 1)
    return loss, tf.reduce_sum(cross_entropies) / number_of_valid


# ------------------------------------------------------------------------------------------- the graph

TrainingOps = collections.namedtuple('TrainingOps', 'train_op loss loss_per_pixel histograms ids check_finite')
Predictor = collections.namedtuple('Predictor', 'image probabilities')
TrainingGraph = collections.namedtuple('TrainingGraph', 'ops predictor scored pictured')


def build_training(args, num_examples, start_step):
    """Input pipeline, network, loss and Adam in the default graph.

    All that is random is a function of args.seed and the step: a run that resumes goes on as if it had never ended.

    Returns:
        TrainingOps: ops and tensors; `ids` are the batch's filenames, `check_finite` fails if a variable is not finite.
    """
    batches = input_pipeline.training_batches(args.dataset_train, num_examples, args.batch_size, args.crop_size,
                                              pad_rgb=vgg.RGB_MEAN, seed=args.seed, start_step=start_step)
    images, labels, ids = tf.data.make_one_shot_iterator(batches).get_next()
    global_step = tf.train.get_or_create_global_step()
    logits = fcn_8s(images, is_training=True, fc_channels=args.fc_channels, weight_decay=args.weight_decay,
                    dropout_seed=tf.stack([tf.constant(args.seed, tf.int64), global_step]))
    loss, loss_per_pixel = segmentation_loss(logits, labels)

    optimizer = tf.train.AdamOptimizer(args.learning_rate)
    if args.mixed_precision:
        optimizer = tf.mixed_precision.MixedPrecisionLossScaleOptimizer(optimizer, 'dynamic')
    gradients = optimizer.compute_gradients(loss + tf.losses.get_regularization_loss())
    train_op = optimizer.apply_gradients(gradients, global_step)
    # A histogram cannot hold what is not finite. --mixed_precision lowers its scale then and leaves out the step.
    histograms = tf.summary.merge([
        tf.summary.histogram(f'{variable.op.name}/gradient',
                             tf.where(tf.is_finite(gradient), gradient, tf.zeros_like(gradient)))
        for gradient, variable in gradients])
    with tf.xla.experimental.jit_scope(compile_ops=False):  # XLA drops such checks
        check_finite = tf.group([tf.check_numerics(variable, variable.op.name) for variable in tf.global_variables()
                                 if variable.dtype.is_floating])
    return TrainingOps(train_op, loss, loss_per_pixel, histograms, ids, check_finite)


def build_predictor(fc_channels):
    """Network for one image at a time, with the variables of the default graph.

    Returns:
        Predictor: `image`, placeholder uint8 [1, H, W, 3] RGB, and `probabilities`, float32 [1, H, W, C].
    """
    image = tf.placeholder(tf.uint8, [1, None, None, 3], name='image')
    with tf.xla.experimental.jit_scope(compile_ops=False):  # XLA would compile for every size of image
        return Predictor(image, tf.nn.softmax(fcn_8s(image, fc_channels=fc_channels), name='probabilities'))


# ------------------------------------------------------------------------------------------- checkpoints


def restore_vgg(session, checkpoint):
    """Sets VGG16 up to fc7 from a slim checkpoint; fc8 and all that is new keep their start.

    Files without fc6 and fc7 (a trunk, such as Keras's "notop") leave these two at their random start, said aloud.
    """
    variables = [v for v in tf.trainable_variables('vgg_16/') if not v.op.name.startswith('vgg_16/fc8/')]
    fully_connected = [v for v in variables if v.op.name.startswith(('vgg_16/fc6/', 'vgg_16/fc7/'))]
    shapes = read_shapes(checkpoint)
    is_trunk = not any(v.op.name in shapes for v in fully_connected)
    if is_trunk:
        variables = [v for v in variables if v not in fully_connected]
    restore(session, checkpoint, variables)
    print(f'VGG16 restored from {checkpoint}: {len(variables)} variables'
          + ('; it holds the convolutions only: fc6 and fc7 start at random (He)' if is_trunk else ''))


def load_predictor(session, checkpoint):
    """Builds the network for prediction as wide as the checkpoint's, in the default graph, and sets its variables.

    Returns:
        Predictor.

    Raises:
        UserError: the checkpoint is damaged, or not of this network.
    """
    shapes = read_shapes(checkpoint)
    if 'vgg_16/fc6/weights' not in shapes:
        raise UserError(f'{checkpoint}: variable vgg_16/fc6/weights is missing; take a checkpoint of train.py')
    predictor = build_predictor(fc_channels=shapes['vgg_16/fc6/weights'][-1])
    restore(session, checkpoint, tf.trainable_variables())
    return predictor


LOSS_SCALE = ('current_loss_scale', 'good_steps')  # of --mixed_precision, which a resumed run may not have had


def initialise(session, resume_from, vgg_checkpoint):
    """Sets all variables: from the run's own checkpoint, else VGG16 from its checkpoint, else all at random."""
    session.run(tf.global_variables_initializer())
    if resume_from:
        known = read_shapes(resume_from)
        restore(session, resume_from, [variable for variable in tf.global_variables()
                                       if variable.op.name in known or variable.op.name not in LOSS_SCALE])
        print(f'resumed from {resume_from}')
    elif vgg_checkpoint:
        restore_vgg(session, vgg_checkpoint)
    else:
        print('no --checkpoint_path: all of VGG16 starts at random (He); expect to need far more steps')


# ------------------------------------------------------------------------------------------- validation pictures


def validate(session, predictor, reader, step, validations):
    """Predicts the Reader's next validation image and has a ValidationLog draw it.

    Returns:
        int64 [C, C], utils.confusion_matrix of the prediction.
    """
    example = run_input(session, reader.next_example, reader.record)
    probabilities = predict_example(session, predictor, example, reader.record)
    validations.draw(step, example, probabilities)
    return utils.confusion_matrix(example['label'], probabilities.argmax(axis=-1), dataset.NUMBER_OF_CLASSES)


class ValidationLog:
    """Has validation pictures and the results page made in a process of their own, and logs them when they are done.

    So a picture's line on the terminal may come some steps after the step that its path tells.
    """

    UNDER_WAY = 2  # jobs at most, so that probabilities do not pile up in memory
    KILLED = ('the process that draws validation pictures was killed, for lack of memory perhaps; start again: '
              'training resumes at the last checkpoint')

    def __init__(self, args, pool, writer, eval_dir):
        self.output_dir, self.pool, self.writer, self.eval_dir = args.output_dir, pool, writer, eval_dir
        self.under_way = collections.deque()  # of (job, function that logs its result)

    def draw(self, step, example, probabilities):
        """Draws an example of input_pipeline.whole_images and its prediction, float32 [H, W, C]."""
        found = [dataset.CLASS_NAMES[i] for i in np.unique(probabilities.argmax(axis=-1))]
        self.submit(functools.partial(self.log, step, example, found),
                    validation.write_validation, self.eval_dir, step, example['image'], example['label'], probabilities)

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


# ------------------------------------------------------------------------------------------- scores over a record

Reader = collections.namedtuple('Reader', 'record num_examples initializer next_example')


def build_reader(record, num_examples, skip=0):
    """Reads a record's whole images round and round, in the default graph.

    Each run of the Reader's `initializer` goes back to the start: the record's first image, or the one after `skip`.
    """
    images = input_pipeline.whole_images(record).apply(tf.data.experimental.assert_cardinality(num_examples))
    iterator = tf.data.make_initializable_iterator(images.repeat().skip(skip))
    return Reader(record, num_examples, iterator.initializer, iterator.get_next())


def build_readers(args, num_examples, start_step):
    """Readers of the validation record for scores, and for pictures.

    The image that a step pictures depends on the step alone, so that a resumed run goes on in the row.
    """
    skip = start_step // (args.val_steps or 1) % num_examples
    return build_reader(args.dataset_val, num_examples), build_reader(args.dataset_val, num_examples, skip)


def predict_record(session, predictor, reader, before_each=lambda: None):
    """Predicts every image of a record at its true size, one after the other.

    Args:
        session: with the network's weights. predictor: Predictor. reader: Reader.
        before_each: function that is called before each image, and may end all by an exception.

    Yields:
        example: dict, see input_pipeline.whole_images.
        probabilities: float32 [H, W, C].

    Raises:
        UserError: the record cannot be read, or memory does not suffice for an image.
    """
    session.run(reader.initializer)
    for _ in range(reader.num_examples):
        before_each()
        example = run_input(session, reader.next_example, reader.record)
        yield example, predict_example(session, predictor, example, reader.record)


def predict_example(session, predictor, example, record):
    """Softmax, float32 [H, W, C], of an example of whole_images; UserError if memory does not suffice."""
    try:
        return session.run(predictor.probabilities, {predictor.image: example['image'][np.newaxis]})[0]
    except tf.errors.ResourceExhaustedError:
        height, width, _ = example['image'].shape
        raise UserError(f'{record}: out of memory at {example["filename"].decode(errors="replace")}, '
                        f'{width} x {height} pixels; leave it out, or run on the CPU') from None


def score_record(session, predictor, reader, before_each=lambda: None):
    """Scores the network on every image of a record. For the arguments see predict_record.

    Returns:
        score: utils.Score.
        loss_per_pixel: float, cross-entropy, the mean over all pixels that count; nan if there are none.
    """
    score, loss = utils.Score(dataset.NUMBER_OF_CLASSES), 0.0
    predictions = predict_record(session, predictor, reader, before_each)
    for example, probabilities in tqdm.tqdm(predictions, 'evaluating', reader.num_examples, leave=False, disable=None):
        score.add(example['label'], probabilities.argmax(axis=-1))
        loss += utils.cross_entropy(example['label'], probabilities)
    pixels = score.confusion.sum()
    return score, loss / pixels if pixels else float('nan')


class EvaluationLog:
    """The figures of --eval_steps on the terminal, in OUT/train/eval.csv and TensorBoard, and OUT/best.

    OUT/best holds the weights of the step with the highest mean IoU in eval.csv, the first of equals. A run that is
    killed at any point resumes with the two in agreement: `add` writes the new best beside the old one, and only
    after the training checkpoint, from which a run goes on, has that step too, `drop_beaten` removes the old one.
    """

    COLUMNS = ('step', 'mean_iou', 'pixel_accuracy', 'mean_accuracy', 'frequency_weighted_iou', 'boundary_iou',
               'loss_per_pixel')

    def __init__(self, args, writer, start_step):
        self.writer = writer
        self.path = os.path.join(args.output_dir, 'train', 'eval.csv')
        self.best_dir = os.path.join(args.output_dir, 'best')
        self.saver = tf.train.Saver(tf.trainable_variables(), max_to_keep=None)
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


# ------------------------------------------------------------------------------------------- the training log


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

    def add(self, loss, loss_per_pixel, seconds):
        """Takes in one step and the time that it alone took."""
        self.losses.append(loss)
        self.losses_per_pixel.append(loss_per_pixel)
        self.seconds += seconds

    def write(self, step):
        """One line for the steps since the last one, if there are any."""
        if not self.losses:
            return
        values = (step, np.mean(self.losses), np.mean(self.losses_per_pixel),
                  len(self.losses) * self.args.batch_size / self.seconds, self.args.learning_rate)
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


# ------------------------------------------------------------------------------------------- the program


def train(args):
    """Trains to args.max_steps in all, resuming what args.output_dir holds. See parse_args for the settings.

    Raises:
        UserError: a file is damaged or cannot be written, the loss is not finite, or another run has the folder.
        utils.Stopped: by Ctrl-C or SIGTERM; the step that was reached is kept.
    """
    with utils.StopSignals() as signals:
        num_examples = input_pipeline.count_examples(args.dataset_train)
        num_val_examples = input_pipeline.count_examples(args.dataset_val, whole=True)
        train_dir, eval_dir = make_run_folder(args)
        with run_folder.lock(train_dir), tf.Graph().as_default():
            run_folder.remove_leftovers(args.output_dir)
            resume_from, start_step = find_resume(train_dir)
            first_step = start_step if owes_evaluation(args, start_step) else start_step + 1
            if first_step > args.max_steps:
                print(f'{resume_from} is at step {start_step}: nothing left to do for --max_steps {args.max_steps}')
                return
            tf.set_random_seed(args.seed)
            graph = TrainingGraph(build_training(args, num_examples, start_step), build_predictor(args.fc_channels),
                                  *build_readers(args, num_val_examples, start_step))
            with crf.start_processes(1) as pool, tf.Session(config=session_config(args)) as session:
                initialise(session, resume_from, args.checkpoint_path)
                session.run(graph.pictured.initializer)
                run = Run(args, graph, session, pool, signals, resume_from, start_step)
                signals.hold()
                run.go_on(first_step)
        page = report.write_page(args.output_dir)
    print(f'done: checkpoints and TensorBoard events in {train_dir}, pictures in {eval_dir}, all to look at in {page}')


class Run:
    """A training under way: its steps, what is looked at between them, and what is kept of them.

    Args:
        args: of parse_args.
        graph: TrainingGraph.
        session: with all variables set.
        pool: of crf.start_processes, one process that draws.
        signals: utils.StopSignals.
        resume_from, start_step: of find_resume.
    """

    def __init__(self, args, graph, session, pool, signals, resume_from, start_step):
        self.args, self.graph, self.session, self.signals = args, graph, session, signals
        self.train_dir, eval_dir = make_run_folder(args)
        self.saver = tf.train.Saver(max_to_keep=MAX_TO_KEEP, save_relative_paths=True)  # the folder may be moved
        writer = run_folder.EventWriter(self.train_dir, session.graph)
        if resume_from:
            take_over(self.saver, self.train_dir, resume_from)
            writer.start_at(start_step + 1)
        save_settings(args, self.train_dir, resume_from)
        self.writer = writer
        self.log, self.evaluations = TrainingLog(args, writer, start_step), EvaluationLog(args, writer, start_step)
        self.validations = ValidationLog(args, pool, writer, eval_dir)
        self.watchdog = Watchdog(dataset.CLASS_NAMES)
        self.start_step = self.done = self.kept = start_step
        self.recent = collections.deque(maxlen=2)  # (step, ids of its batch)

    def go_on(self, first_step):
        """Does the steps up to the last; the first may be one that is done, of which only the evaluation is missing.

        Raises:
            utils.Stopped: by a signal, after the last step that was done has been kept.
        """
        try:
            for step in range(first_step, self.args.max_steps + 1):
                self.signals.check()
                if step > self.done:
                    self.learn(step)
                self.signals.check()
                if evaluates(self.args, step):
                    self.evaluate(step)
                if due(step, self.args.save_steps) or evaluates(self.args, step) or step == self.args.max_steps:
                    self.keep()
                if due(step, self.args.val_steps) or evaluates(self.args, step):
                    self.validations.rebuild_page()
                self.validations.log_finished()
        except utils.Stopped as stop:
            if not self.done:
                raise
            self.keep()
            self.log.write(self.done)
            self.validations.log_finished(under_way=0)
            raise utils.Stopped(stop.number, f'{stop} after step {self.done}, kept in {self.train_dir}: the same '
                                             'command goes on there') from None
        self.validations.log_finished(under_way=0)

    def learn(self, step):
        """Does one step, logs it, and pictures a validation image where one is due."""
        histogram_writer = self.writer if due(step, self.args.summary_steps) else None
        loss, loss_per_pixel, seconds = run_step(self.session, self.graph.ops, self.args.dataset_train,
                                                 histogram_writer, step, self.recent)
        self.done = step
        self.log.add(loss, loss_per_pixel, seconds)
        self.watchdog.see_loss(step, loss_per_pixel)
        if step == self.start_step + 1 or due(step, self.args.log_steps) or step == self.args.max_steps:
            self.log.write(step)
        if due(step, self.args.val_steps):
            confusion = validate(self.session, self.graph.predictor, self.graph.pictured, step, self.validations)
            self.watchdog.see_predictions(step, confusion, num_images=1)

    def evaluate(self, step):
        """Scores the whole validation record; a signal breaks it off, and the resumed run starts with it."""
        check_finite(self.session, self.graph.ops, self.kept, self.recent)
        score, loss_per_pixel = score_record(self.session, self.graph.predictor, self.graph.scored, self.signals.check)
        self.evaluations.add(self.session, step, score, loss_per_pixel)
        self.watchdog.see_predictions(step, score.confusion, self.graph.scored.num_examples)
        if step > self.start_step:  # else there is no training loss to compare with
            self.watchdog.see_validation_loss(step, loss_per_pixel)

    def keep(self):
        """Writes a checkpoint of the last step that was done, if there is none yet."""
        if self.done > self.kept:
            check_finite(self.session, self.graph.ops, self.kept, self.recent)
            save(self.session, self.saver, self.train_dir, self.done)
            self.kept = self.done
        self.evaluations.drop_beaten()


def due(step, every):
    """Whether something that happens every so many steps (0: never) happens at this step."""
    return every > 0 and step % every == 0


def evaluates(args, step):
    """Whether the whole validation record is scored at this step."""
    return args.eval_steps > 0 and (step == args.max_steps or due(step, args.eval_steps))


def owes_evaluation(args, step):
    """Whether a run that resumes at a step was stopped while it scored it."""
    path = os.path.join(args.output_dir, 'train', 'eval.csv')
    return (step > 0 and evaluates(args, step)
            and all(int(row['step']) < step for row in run_folder.read_rows(path, EvaluationLog.COLUMNS, step)))


def run_step(session, ops, record, histogram_writer, step, recent=None):
    """Runs one training step; with a writer, the gradients' histograms come out of the same pass.

    Args:
        session: with all variables set. ops: TrainingOps.
        record: str, that the batches come from.
        histogram_writer: run_folder.EventWriter or None.
        step: int.
        recent: deque of (step, ids of its batch), which gets this one's, or None.

    Returns:
        loss, loss_per_pixel: floats, of this step's batch before its update.
        seconds: float.

    Raises:
        UserError: the loss is not finite, or an example cannot be decoded.
    """
    started = time.perf_counter()
    fetches = [ops.loss, ops.loss_per_pixel, ops.ids, ops.train_op] + ([ops.histograms] if histogram_writer else [])
    loss, loss_per_pixel, ids, _, *histograms = run_input(session, fetches, record)
    seconds = time.perf_counter() - started
    recent = collections.deque() if recent is None else recent
    recent.append((step, ids))
    if not math.isfinite(loss):
        raise UserError(f'the loss is not finite at step {step}: {explain_spoilt(recent)}')
    for summary in histograms:
        histogram_writer.add_summary(summary, step)
    return loss, loss_per_pixel, seconds


def check_finite(session, ops, kept, recent):
    """Raises UserError if a variable is not finite: the loss tells only of the weights before its step's update.

    Args:
        session: with all variables set. ops: TrainingOps.
        kept: int, the step of the last checkpoint, when all were finite.
        recent: deque of (step, ids of its batch).
    """
    try:
        session.run(ops.check_finite)
    except tf.errors.InvalidArgumentError as error:
        raise UserError(f'the weights are not finite at step {recent[-1][0]}, by an update after step {kept} '
                        f'({find_reason(error)}): {explain_spoilt(recent)}') from None


def explain_spoilt(recent):
    """The batches that may have spoilt the weights, and what to do; one line."""
    batches = '; '.join(f'step {step} {" ".join(b", ".join(ids).decode(errors="replace").split())}'
                        for step, ids in recent)
    return (f'examples of {batches}. No checkpoint was written. Start again with a lower --learning_rate: training '
            'resumes at the last checkpoint; if this comes back at once, its weights are too large already: take a new '
            '--output_dir')


def make_run_folder(args):
    """Creates OUT/train and OUT/eval and returns their paths."""
    folders = [os.path.join(args.output_dir, name) for name in ('train', 'eval')]
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
    return folders


def run_input(session, fetches, record):
    """session.run of something that reads from a record.

    Raises:
        UserError: the record cannot be read or decoded, or is no longer as long as it was.
    """
    try:
        return session.run(fetches)
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.NotFoundError,
            tf.errors.FailedPreconditionError, tf.errors.PermissionDeniedError) as error:
        raise UserError(f'{record}: cannot be read or decoded ({find_reason(error)}); '
                        'write it again with convert_fcn_dataset.py') from None


def save_settings(args, train_dir, resume_from):
    """Writes every flag's value beside the checkpoints, as settings.json, and where VGG16's weights came from.

    `vgg_weights_from` is the checkpoint's path or 'random start'. A run that resumes keeps what it began with.
    """
    origin = args.checkpoint_path or 'random start'
    if resume_from:
        before = read_settings(train_dir)
        origin = before.get('vgg_weights_from') or before.get('checkpoint_path') or 'unknown'
    utils.save_json(os.path.join(train_dir, 'settings.json'), {**vars(args), 'vgg_weights_from': origin})


def read_settings(folder):
    """The settings.json of a folder of checkpoints, dict; empty if there is none.

    Raises:
        UserError: it is not what save_settings writes.
    """
    path = os.path.join(folder, 'settings.json')
    try:
        with open(path, encoding='utf-8') as file:
            return dict(json.load(file))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError):
        raise UserError(f'{path}: not the settings of a run; remove it') from None


def session_config(args=None):
    """How sessions compute: GPU memory is taken as needed, and which devices are used stays the user's choice.

    Args:
        args: of train.parse_args, for its xla and mixed_precision; None: plain float32.
    """
    config = tf.ConfigProto(allow_soft_placement=True, gpu_options=tf.GPUOptions(allow_growth=True))
    rewrites = config.graph_options.rewrite_options
    rewrites.constant_folding = RewriterConfig.OFF  # it would keep Adam's first zeros for good: half a gigabyte
    if args and not has_gpu():
        config.inter_op_parallelism_threads = 1  # one after the other, on all cores: fc6 has two gradients of 0.4 GB
    if args and args.xla:
        config.graph_options.optimizer_options.global_jit_level = tf.OptimizerOptions.ON_1
    if args and args.mixed_precision:
        rewrites.auto_mixed_precision = RewriterConfig.ON  # on GPUs only
    return config


def has_gpu():
    return bool(tf.config.list_physical_devices('GPU'))


def prepare_arithmetic(args):
    """What --deterministic, --mixed_precision and --xla need beside session_config; says what the second comes to."""
    if args.deterministic:
        tensorflow.config.experimental.enable_op_determinism()  # for good; tf.compat.v1 has no name for it
    if args.mixed_precision:
        print('--mixed_precision: ' + (
            'convolutions in float16 on the GPU' if has_gpu() else
            'no GPU: the arithmetic stays float32, the loss is scaled all the same'))
    if args.xla:
        os.environ['TF_XLA_FLAGS'] = os.environ.get('TF_XLA_FLAGS', '') + ' --tf_xla_cpu_global_jit'


def parse_args(argv=None):
    """The program's flags; see --help."""
    parser = utils.ArgumentParser('Trains FCN-8s on the records of convert_fcn_dataset.py. A second call with the same '
                                  '--output_dir goes on where the first one ended.')
    parser.add_argument('--checkpoint_path', help='slim checkpoint of VGG16 to start from; without it, a random start')
    parser.add_argument('--output_dir', default='results',
                        help='run folder: checkpoints in train/, pictures in eval/, best weights in best/')
    parser.add_argument('--dataset_train', default='data/fcn_train.record', help='record to train on')
    parser.add_argument('--dataset_val', default='data/fcn_val.record',
                        help='record of the validation pictures and scores')
    parser.add_argument('--batch_size', type=utils.positive_int, default=16, help='crops a step')
    parser.add_argument('--max_steps', type=utils.positive_int, default=1500,
                        help='steps in all, resumed ones included')
    parser.add_argument('--learning_rate', type=utils.non_negative_float, default=1e-4, help="Adam's")
    parser.add_argument('--crop_size', type=utils.positive_int, default=224,
                        help='side of the training crops in pixels')
    parser.add_argument('--fc_channels', type=utils.positive_int, default=4096,
                        help='width of fc6 and fc7; 4096 is what published weights have')
    parser.add_argument('--weight_decay', type=utils.non_negative_float, default=0.0, help='L2 on the kernels')
    parser.add_argument('--log_steps', type=utils.positive_int, default=10, help='steps between log lines')
    parser.add_argument('--save_steps', type=utils.positive_int, default=100, help='steps between checkpoints')
    parser.add_argument('--val_steps', type=utils.non_negative_int, default=200,
                        help='steps between validation pictures; 0: none')
    parser.add_argument('--eval_steps', type=utils.non_negative_int, default=0,
                        help='steps between scores over the whole validation record (train/eval.csv), with a '
                             'checkpoint each; the best weights are kept in best/; 0: none')
    parser.add_argument('--summary_steps', type=utils.non_negative_int, default=100,
                        help='steps between gradient histograms for TensorBoard; 0: none')
    parser.add_argument('--mixed_precision', action='store_true',
                        help='convolutions in float16 on a GPU, with loss scaling; weights stay float32')
    parser.add_argument('--xla', action='store_true',
                        help='compile the training step by XLA; the first steps then take longer')
    parser.add_argument('--deterministic', action='store_true',
                        help='only arithmetic that gives the same result each time: on one machine, the same command '
                             'gives the same weights bit for bit, interrupted or not')
    parser.add_argument('--seed', type=utils.non_negative_int, default=0,
                        help='of the order of examples, the crops, dropout, and the random starts')
    return parser.parse_args(argv)


def quiet_tensorflow():
    """Keeps notices of deprecation off the terminal: this suite is TF1-style on purpose."""
    tf.logging.set_verbosity(tf.logging.ERROR)
    warnings.filterwarnings('ignore', message='`layer.apply` is deprecated')  # raised by slim's layers


def main(argv=None):
    args = parse_args(argv)
    quiet_tensorflow()
    if args.checkpoint_path:
        args.checkpoint_path = find_checkpoint(args.checkpoint_path)
    prepare_arithmetic(args)
    try:
        train(args)
    except tf.errors.ResourceExhaustedError:
        raise UserError('out of memory: lower --batch_size or --crop_size') from None


if __name__ == '__main__':
    utils.run_program(main)
