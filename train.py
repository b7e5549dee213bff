"""FCN-8s for semantic segmentation: the network, its loss, and the training program with its pictures and scores.

    python train.py --checkpoint_path vgg_16.ckpt --output_dir results

Source: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015.
"""
import argparse
import functools
import os
import time
from typing import NamedTuple

if __name__ == '__main__':
    import utils
    utils.import_tensorflow()

import tensorflow.compat.v1 as tf
import tf_slim as slim

import utils
import vgg
from datasets import classes
from datasets.batches import Reader, Sampling, build_reader, read_examples, run_input, training_batches
from datasets.classes import IGNORE_LABEL
from inference import crf
from inference.devices import explain_failures
from inference.predictor import Predictor, build_predictor, predict_example, score_record
from inference.scores import confusion_matrix
from inference.weights import read_settings, read_shapes
from report.crops import NUM_CROPS, write_crops
from report.page import write_page
from training import checkpoints, cluster, flags, recipes, run_folder, towers
from training.data import read_data
from training.log import EvaluationLog, Logs, TrainingLog, ValidationLog
from training.session import prepare_process, session_config
from training.watchdog import Watchdog
from utils import UserError, bilinear_upsample_weights

# ------------------------------------------------------------------------------------------- FCN-8s, in eight steps


class Network(NamedTuple):
    """Which network of the family.

    model: key of SKIPS; fcn_8s has two skips, fcn_16s one, fcn_32s none.
    number_of_classes: int, C.
    fc_channels: int, width of fc6 and fc7; the published VGG16 weights have 4096.
    upsampling: 'learned' or 'fixed', whether the bilinear kernels are trained.
    skip_scales: floats, factors of pool4 and pool3 before their scores.
    border: int, pixels of border_colour, RGB, around an image, which Berkeley's FCN-8s needs; else 0.
    """
    model: str = 'fcn_8s'
    number_of_classes: int = len(classes.VOC.names)
    fc_channels: int = 4096
    upsampling: str = 'learned'
    skip_scales: tuple = (1.0, 1.0)
    border: int = 0
    border_colour: tuple = vgg.RGB_MEAN


SKIPS = {'fcn_32s': (), 'fcn_16s': ('pool4',), 'fcn_8s': ('pool4', 'pool3')}


def fcn(images, network, is_training=False, weight_decay=0.0, dropout_seed=None):
    """Scores every pixel: uint8 or float32 images [B, H, W, 3], raw RGB 0..255, to float32 logits [B, H, W, C].

    H and W are any; `network` is a Network; is_training (bool or tensor) switches dropout on; weight_decay and
    dropout_seed: see vgg. Built again in the same graph, the network shares the same variables.
    """
    images.shape.assert_has_rank(4)
    # Step 1: the final upsampling factor and the number of classes (VOC: 20 and the background).
    upsample_factor = 8
    number_of_classes = network.number_of_classes

    height, width, border = tf.shape(images)[1], tf.shape(images)[2], network.border
    inputs = pad_images(tf.cast(images, tf.float32) - network.border_colour, border)
    inputs += tf.subtract(network.border_colour, vgg.RGB_MEAN)

    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        # Step 2: VGG16 with its fully connected layers as convolutions; SAME padding keeps their output at 1/32.
        with slim.arg_scope(vgg.vgg_arg_scope(weight_decay)):
            logits, end_points = vgg.vgg_16(inputs, num_classes=number_of_classes, is_training=is_training,
                                            spatial_squeeze=False, fc_conv_padding='SAME',
                                            fc_channels=network.fc_channels, dropout_seed=dropout_seed)

        # Step 3: the size of the output, which is the input's.
        upsampled_logits_shape = tf.concat([tf.shape(inputs)[:3], [number_of_classes]], axis=0)

        with tf.variable_scope('vgg_16/fc8'), slim.arg_scope(vgg.vgg_arg_scope(weight_decay)):
            # Step 4: scores from pool4 (1/16) and pool3 (1/8). They start at zero, so that training starts from the
            # coarse prediction alone and takes from the finer layers what helps; those a model lacks stay zero.
            score_pool4 = score_skip(end_points['vgg_16/pool4'], 'pool4', network, network.skip_scales[0])
            score_pool3 = score_skip(end_points['vgg_16/pool3'], 'pool3', network, network.skip_scales[1])

            # Step 5: x2, from 1/32 to 1/16, by a transposed convolution that starts as bilinear interpolation.
            upscore2 = upsample(logits, 2, tf.shape(score_pool4), network, scope='t_conv_x2_1')
            fuse_pool4 = upscore2 + score_pool4

            # Step 6: x2 again, to 1/8.
            upscore_pool4 = upsample(fuse_pool4, 2, tf.shape(score_pool3), network, scope='t_conv_x2_2')
            fuse_pool3 = upscore_pool4 + score_pool3

            # Step 7: x8, to the size of the padded image; then cut back to the image's own.
            upscore8 = upsample(fuse_pool3, upsample_factor, upsampled_logits_shape, network, scope='t_conv_x8')
    return upscore8[:, border:border + height, border:border + width, :]


def pad_images(images, border=0):
    """Pads images, float32 [B, H, W, 3], by a border of zeros, and on the right and below up to a multiple of 32,
    because the five poolings halve only such sizes exactly.

    Pads by 31 first and cuts off the rest, because TensorFlow Lite loses the number of channels if a padding is not
    constant.
    """
    height, width, sides = tf.shape(images)[1], tf.shape(images)[2], [border, border + 31]
    padded = tf.pad(images, [[0, 0], sides, sides, [0, 0]])
    return padded[:, :(height + sum(sides)) // 32 * 32, :(width + sum(sides)) // 32 * 32, :]


def score_skip(pool, name, network, scale):
    """Scores of a finer layer, float32 [B, h, w, D] -> [B, h, w, C], by a 1x1 convolution whose weights start at zero.

    A model without this skip has zeros here: all models upsample in the same three steps, so that training a finer one
    can go on exactly where a coarser one has ended.
    """
    if name not in SKIPS[network.model]:
        return tf.zeros(tf.concat([tf.shape(pool)[:3], [network.number_of_classes]], axis=0))
    scale = slim.model_variable(f'scale_{name}', initializer=tf.constant(scale, tf.float32), trainable=False)
    return slim.conv2d(pool * scale, network.number_of_classes, [1, 1], activation_fn=None,
                       weights_initializer=tf.zeros_initializer(), scope=f'conv_{name}')


def upsample(scores, factor, output_shape, network, scope):
    """Transposed convolution of stride `factor`, float32 [B, h, w, C] -> output_shape [B, h * factor, w * factor, C].

    The kernel is a variable that starts as bilinear interpolation, and stays so with upsampling 'fixed'.
    """
    kernel = slim.model_variable(scope, initializer=bilinear_upsample_weights(factor, network.number_of_classes),
                                 trainable=network.upsampling == 'learned')
    return tf.nn.conv2d_transpose(scores, kernel, output_shape, strides=[1, factor, factor, 1], padding='SAME')


def segmentation_loss(logits, labels, reduction='rows', class_weights=None):
    """Step 8: softmax cross-entropy per pixel; void pixels are in no sum.

    Args:
        logits: float32 [B, H, W, C].
        labels: int32 [B, H, W], class index, or 255 for void.
        reduction: 'rows', summed over each row, then the mean over rows and batch; 'sum', over all pixels; 'mean', over
            the pixels that are not void, each weighted by its class; 'ohem', as 'mean', over the hardest pixels of each
            image, see recipes.weigh_hardest.
        class_weights: float32 [C]; None: all are 1.

    Returns:
        loss: float32 scalar, what is minimised.
        loss_per_pixel: float32 scalar, the unweighted mean over the pixels that are not void; ln C for a network that
            knows nothing.
        weight, pixels: float32 scalars, the weights of loss and of loss_per_pixel in the averages over the parts of a
            batch; `weight` is None for 'sum', because these losses are added.
    """
    valid = tf.not_equal(labels, IGNORE_LABEL)
    classes_or_zero = tf.where(valid, labels, tf.zeros_like(labels))
    cross_entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(logits=logits, labels=classes_or_zero)
    cross_entropies = tf.where(valid, cross_entropies, tf.zeros_like(cross_entropies))
    weights = tf.cast(valid, tf.float32)
    pixels = tf.reduce_sum(weights)
    loss_per_pixel = tf.reduce_sum(cross_entropies) / tf.maximum(pixels, 1)

    if class_weights is not None:
        weights *= tf.gather(tf.constant(class_weights), classes_or_zero)
    weight = tf.reduce_sum(weights)
    if reduction == 'ohem':
        weights = recipes.weigh_hardest(cross_entropies, weights)
    cross_entropies *= weights
    if reduction == 'rows':
        loss = tf.reduce_mean(tf.reduce_sum(cross_entropies, axis=-1))
        weight = tf.cast(tf.reduce_prod(tf.shape(labels)[:2]), tf.float32)
    elif reduction == 'sum':
        loss, weight = tf.reduce_sum(cross_entropies), None
    else:
        loss = tf.reduce_sum(cross_entropies) / tf.maximum(weight, 1e-6)
    return loss, loss_per_pixel, weight, pixels


# ------------------------------------------------------------------------------------------- the graph


class TrainingOps(NamedTuple):
    """The ops and tensors of a training step."""
    train_op: tf.Operation
    loss: tf.Tensor  # float32 scalar, as are the next two
    loss_per_pixel: tf.Tensor
    learning_rate: tf.Tensor
    histograms: tf.Tensor  # a tf.Summary of the gradients
    ids: tf.Tensor  # string [B], the batch's filenames
    check_finite: tf.Operation  # fails if a variable is not finite
    left_out: tf.Tensor  # see recipes.Update


class Graph(NamedTuple):
    """All that a run computes: a training step, and predictions of the validation record."""
    training: TrainingOps
    predictor: Predictor
    fetch_weights: list  # ops to run before a prediction; empty unless the weights are on another machine
    scored: Reader
    pictured: Reader


def build_graph(args, data, start_step, placement=towers.HERE):
    """Builds the Graph of a run in the default graph; it continues after `start_step`."""
    tf.set_random_seed(args.seed)
    network = Network(args.model, len(data.class_set.names), args.fc_channels, args.recipe.upsampling,
                      args.recipe.skip_scales)
    training = build_training(args, network, data.num_examples, start_step, data.class_weights, placement)
    predictor, fetch_weights = towers.build_at_home(placement, lambda: build_predictor(fcn, network))
    # Which image a step pictures depends on the step alone, so that a resumed run continues the sequence.
    skip = start_step // (args.val_steps or 1) % data.num_val_examples
    scored, pictured = (build_reader(args.dataset_val, data.num_val_examples, network.number_of_classes, first)
                        for first in (0, skip))
    return Graph(training, predictor, fetch_weights, scored, pictured)


def build_training(args, network, num_examples, start_step, class_weights=None, placement=towers.HERE):
    """Builds input pipeline, network, loss and optimiser in the default graph; returns TrainingOps.

    Everything random is a function of args.seed and the step: a resumed run continues as if it had not been stopped.
    """
    recipe = args.recipe
    with tf.device(placement.parameters[0]):
        step = tf.train.get_or_create_global_step()
    optimizer, learning_rate = recipes.build_optimizer(recipe, step, args.max_steps, args.mixed_precision)

    def read(part):
        sampling = sampling_of(args, num_examples, network.number_of_classes)
        return tf.data.make_one_shot_iterator(training_batches(sampling, start_step, part)).get_next()

    def build_tower(number, images, labels, ids):
        # Each tower drops other units, and the same ones again when the run is resumed.
        dropout_seed = tf.stack([tf.constant(args.seed, tf.int64), step + (number << 32)])
        logits = fcn(images, network, is_training=True, weight_decay=recipes.l2_decay(recipe),
                     dropout_seed=dropout_seed)
        losses = segmentation_loss(logits, labels, recipe.loss, class_weights)
        return towers.Tower(optimizer.compute_gradients(losses[0], recipes.trained_variables(args.freeze)), *losses)

    built, (_, _, ids) = towers.build_towers(placement, args.accumulate, read, build_tower)
    _, losses, losses_per_pixel, weights, pixels = zip(*built)
    update = recipes.build_update(recipe, optimizer, towers.average_gradients(built, args.accumulate), step)
    with tf.xla.experimental.jit_scope(compile_ops=False):  # XLA drops such checks
        check_finite = towers.check_finite(tf.global_variables())
    return TrainingOps(update.train_op, towers.average(losses, weights), towers.average(losses_per_pixel, pixels),
                       learning_rate, update.histograms, ids, check_finite, update.left_out)


def sampling_of(args, num_examples, number_of_classes):
    """The Sampling of the training record."""
    recipe = args.recipe
    return Sampling(args.dataset_train, num_examples, recipe.batch_size * args.accumulate, recipe.crop_size,
                    vgg.RGB_MEAN, args.seed, recipe.augment, number_of_classes)


def read_network(checkpoint):
    """The Network of a checkpoint of train.py, from the shapes of its variables. Its skip_scales are variables, so they
    need not be read here. The border comes from the settings beside the checkpoint.

    Raises:
        UserError: the checkpoint is damaged, or not one of train.py.
    """
    shapes = read_shapes(checkpoint)
    for name in ('vgg_16/fc6/weights', 'vgg_16/fc8/weights', 'vgg_16/fc8/t_conv_x8'):
        if name not in shapes:
            raise UserError(f'{checkpoint}: variable {name} is missing; take a checkpoint of train.py')
    skips = tuple(pool for pool in ('pool4', 'pool3') if f'vgg_16/fc8/conv_{pool}/weights' in shapes)
    model = next((model for model, of_model in SKIPS.items() if of_model == skips), 'fcn_8s')
    network = Network(model, shapes['vgg_16/fc8/weights'][-1], shapes['vgg_16/fc6/weights'][-1])
    settings = read_settings(os.path.dirname(checkpoint))
    return network._replace(border=settings.get('border', 0),
                            border_colour=settings.get('border_colour', network.border_colour))


# ------------------------------------------------------------------------------------------- the loop


class Run(NamedTuple):
    """A training under way."""
    args: argparse.Namespace
    graph: Graph
    session: tf.Session
    saver: checkpoints.RunSaver
    logs: Logs
    signals: utils.StopSignals


def run_steps(run, first_step):
    """The training loop: step, log, validate, evaluate, save.

    Args:
        run: Run.
        first_step: int; it may be a step that is done, if only its evaluation is missing.

    Raises:
        UserError: the loss or the weights are not finite, or a file cannot be read or written.
        utils.Stopped: a signal came.
    """
    args, logs, saver = run.args, run.logs, run.saver
    for step in range(first_step, args.max_steps + 1):
        run.signals.check()
        if logs.evaluations.has_waited(args.patience):
            logs.training.write(step - 1)
            break
        is_last = step == args.max_steps
        if step > saver.done:
            # Step: one batch, one update.
            loss, loss_per_pixel, *others = run_step(run, step)

            # Log: averages since the last line.
            logs.training.add(loss, loss_per_pixel, *others)
            logs.watchdog.see_loss(step, loss_per_pixel)
            if step == saver.start + 1 or is_last or due(step, args.log_steps):
                logs.training.write(step)

            # Validate: pictures of one validation image.
            if due(step, args.val_steps):
                validate(run, step)
        run.signals.check()

        # Evaluate: scores over the complete validation record.
        if scores(args, step):
            evaluate(run, step)

        # Save: a checkpoint, and the results page.
        if scores(args, step) or is_last or due(step, args.save_steps):
            saver.save()
            logs.evaluations.remove_beaten()
        if scores(args, step) or due(step, args.val_steps):
            logs.validations.rebuild_page()
        logs.validations.log_finished()


def run_until_stopped(run, first_step):
    """run_steps; if a signal stops it (utils.Stopped), the last step is saved and logged first."""
    try:
        run_steps(run, first_step)
    except utils.Stopped as stop:
        done = run.saver.done
        if done:
            run.saver.save()
            run.logs.training.write(done)
            run.logs.validations.log_finished(max_pending=0)
            stop.args = (f'{stop} after step {done}, kept in {run.saver.train_dir}: the same command continues there',)
        raise
    run.logs.validations.log_finished(max_pending=0)


def due(step, every):
    """Whether something that happens every so many steps (0: never) happens at this step."""
    return every > 0 and step % every == 0


def scores(args, step):
    """Whether the complete validation record is scored at this step."""
    return args.eval_steps > 0 and (step == args.max_steps or due(step, args.eval_steps))


def run_step(run, step):
    """Runs one training step; UserError if the loss is not finite, or an example cannot be decoded.

    Returns:
        loss, loss_per_pixel, learning_rate, left_out, seconds: floats; the losses are those before the update.
    """
    started, ops = time.perf_counter(), run.graph.training
    with_histograms = due(step, run.args.summary_steps)
    fetches = [ops.ids, ops.train_op, (ops.loss, ops.loss_per_pixel, ops.learning_rate, ops.left_out)]
    fetches += [ops.histograms] if with_histograms else []  # out of the same pass
    ids, _, figures, *histograms = run_input(run.session, fetches, run.args.dataset_train)
    seconds = time.perf_counter() - started
    run.saver.add_step(step, ids, figures[0])
    for summary in histograms:
        run_folder.add_events(run.logs.writer, summary, step)
    return *figures, seconds


def validate(run, step):
    """Predicts the next validation image, and has the prediction drawn."""
    graph, record = run.graph, run.args.dataset_val
    run.session.run(graph.fetch_weights)
    example = run_input(run.session, graph.pictured.next_example, record)
    probabilities = predict_example(run.session, graph.predictor, example, record)
    run.logs.validations.draw(step, example, probabilities)
    confusion = confusion_matrix(example['label'], probabilities.argmax(axis=-1), probabilities.shape[-1])
    run.logs.watchdog.see_predictions(step, confusion, num_images=1)


def evaluate(run, step):
    """Scores the complete validation record. A signal interrupts it; the resumed run then starts with it."""
    graph, logs = run.graph, run.logs
    run.saver.check_finite()
    run.session.run(graph.fetch_weights)
    score, loss_per_pixel = score_record(run.session, graph.predictor, graph.scored, run.signals.check)
    logs.evaluations.add(run.session, step, score, loss_per_pixel)
    logs.watchdog.see_predictions(step, score.confusion, graph.scored.num_examples)
    if step > run.saver.start:  # else there is no training loss to compare with
        logs.watchdog.see_validation_loss(step, loss_per_pixel)


# ------------------------------------------------------------------------------------------- the program


def train(args, placement=towers.HERE):
    """Trains to args.max_steps in all, on a towers.Placement, and resumes what args.output_dir holds.

    UserError for what cannot be read, written or learned; utils.Stopped after a signal: the last step is saved.
    """
    with utils.StopSignals() as signals:
        start_from = checkpoints.find_start(args.checkpoint_path, args.output_dir)
        data = read_data(args.dataset_train, args.dataset_val, args.classes, args.class_weights,
                         complete_images=args.recipe.crop_size == 0)
        print(classes.describe(data.class_set, classes.side_file(args.dataset_train), args.classes), flush=True)
        crf_parameters = crf.read_parameters_if_installed(args.crf_params)
        train_dir = run_folder.make(args.output_dir)
        with run_folder.lock(train_dir):
            run_folder.remove_leftovers(args.output_dir)
            resume_from, start_step = checkpoints.find_resume(train_dir)
            if resume_from:
                run_folder.check_settings(train_dir, settings_of(args), data.class_set, args.dataset_train)
            interrupted = start_step and scores(args, start_step) and not EvaluationLog.holds(train_dir, start_step)
            first_step = start_step if interrupted else start_step + 1
            if first_step > args.max_steps:
                print(f'{resume_from} is at step {start_step}: nothing left to do for --max_steps {args.max_steps}')
                return
            print(recipes.describe(args.recipe), flush=True)
            config = session_config(args.num_gpus, args.xla, args.mixed_precision)
            draw_crops(args, data, train_dir, start_step, config)
            if args.dry_run:
                return show_crops(args, data, train_dir, start_from, resume_from)
            with tf.Graph().as_default(), tf.device(placement.home):
                graph = build_graph(args, data, start_step, placement)
                with crf.start_processes(1) as pool, \
                        cluster.open_session(placement, config, signals) as session, \
                        run_folder.open_events(train_dir, session.graph, start_step) as writer:
                    checkpoints.set_starting_weights(session, resume_from, start_from, data.class_set, args.freeze)
                    session.run(graph.pictured.initializer)
                    saver = checkpoints.RunSaver(session, train_dir, resume_from, graph.training.check_finite)
                    run_folder.save_settings(train_dir, settings_of(args), data.class_set, start_from,
                                             resumed=bool(resume_from))
                    logs = open_logs(args, data.class_set, crf_parameters, pool, writer, start_step)
                    logs.validations.rebuild_page()
                    signals.hold()
                    run_until_stopped(Run(args, graph, session, saver, logs, signals), first_step)
        page = write_page(args.output_dir)
    print(f'done: checkpoints and TensorBoard events in {train_dir}, pictures in {args.output_dir}/eval, '
          f'all on one page: {page}')


def draw_crops(args, data, train_dir, start_step, config):
    """Draws the crops of the next steps for the results page."""
    sampling = sampling_of(args, data.num_examples, len(data.class_set.names))
    write_crops(train_dir, read_examples(sampling, start_step, NUM_CROPS, config), data.class_set)


def show_crops(args, data, train_dir, start_from, resume_from):
    """Builds the results page of --dry_run; a run that has checkpoints keeps its settings."""
    if not resume_from:
        run_folder.save_settings(train_dir, settings_of(args), data.class_set, start_from, resumed=False)
    print(f'--dry_run: nothing is trained; the training crops are on {write_page(args.output_dir)}')


def open_logs(args, class_set, crf_parameters, pool, writer, start_step):
    """The Logs of a run that continues after `start_step`; `pool` draws its pictures."""
    train_dir = os.path.join(args.output_dir, 'train')
    return Logs(TrainingLog(train_dir, writer, start_step, args.max_steps,
                            args.recipe.batch_size * args.accumulate),
                ValidationLog(args.output_dir, class_set, crf_parameters, pool, writer),
                EvaluationLog(args.output_dir, writer, start_step), Watchdog(class_set.names), writer)


def settings_of(args):
    """A run's settings as settings.json has them: flags, and the entries of the recipe."""
    recipe = args.recipe._asdict()
    return {**vars(args), 'recipe': recipe.pop('name'), **recipe}


def parse_args(argv=None):
    """The program's flags; see --help."""
    return flags.parse(argv, SKIPS)


@explain_failures('lower --batch_size or --crop_size, or ')
def main(argv=None):
    args = parse_args(argv)
    utils.quiet_tensorflow()
    prepare_process(args.num_gpus, args.deterministic, args.xla, args.mixed_precision)
    config = session_config(args.num_gpus, args.xla, args.mixed_precision)
    job = cluster.Job(args.dataset_train, args.recipe.batch_size, args.recipe.crop_size == 0, args.num_gpus)
    cluster.run(functools.partial(train, args), config, job)


if __name__ == '__main__':
    utils.run_program(main)
