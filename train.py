"""FCN-8s for semantic segmentation: the network, its loss, and the training program with its pictures and scores.

    python train.py --checkpoint_path vgg_16.ckpt --output_dir results

Source: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015.
"""
import collections
import copy
import json
import math
import os
import signal
import time
import warnings

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is no traceback while TensorFlow's import takes its seconds

import numpy as np
import tensorflow
import tensorflow.compat.v1 as tf
import tf_slim as slim
import tqdm
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

import utils
import vgg
from datasets import batches as input_pipeline
from datasets import classes, records
from inference import averaging, crf
from inference.scores import Score, confusion_matrix, cross_entropy
from report import page as report
from training import cluster, recipes, run_folder, towers
from training.checkpoints import (
    MAX_TO_KEEP,
    find_checkpoint,
    find_reason,
    find_resume,
    read_shapes,
    restore,
    save,
    take_over,
)
from training.log import EvaluationLog, TrainingLog, ValidationLog
from training.watchdog import Watchdog
from utils import UserError, bilinear_upsample_weights

# ------------------------------------------------------------------------------------------- FCN-8s, in eight steps

Network = collections.namedtuple('Network', 'model number_of_classes fc_channels upsampling skip_scales',
                                 defaults=('fcn_8s', len(classes.VOC.names), 4096, 'learned', (1.0, 1.0)))
Network.__doc__ = """Which network of the family.

model: key of SKIPS; fcn_8s has two skips, its coarser brothers one and none.
number_of_classes: int, C.
fc_channels: int, width of fc6 and fc7; the published VGG16 weights have 4096.
upsampling: 'learned' or 'fixed', whether the bilinear kernels are trained.
skip_scales: floats, factors of pool4 and pool3 before their scores.
"""
SKIPS = {'fcn_32s': (), 'fcn_16s': ('pool4',), 'fcn_8s': ('pool4', 'pool3')}


def fcn(images, network, is_training=False, weight_decay=0.0, dropout_seed=None):
    """Scores every pixel for every class. Built again in the same graph, it shares the same variables.

    Args:
        images: uint8 or float32 [B, H, W, 3], raw RGB 0..255, of any height and width.
        network: Network.
        is_training: bool or scalar bool tensor: dropout on fc6 and fc7.
        weight_decay: float, see vgg.vgg_arg_scope.
        dropout_seed: int64 [2] or None, see vgg.vgg_16.

    Returns:
        float32 [B, H, W, C], logits.
    """
    images.shape.assert_has_rank(4)
    # Step 1: what is left to upsample after the two skips, and the classes (VOC: 20 and the background).
    upsample_factor = 8
    number_of_classes = network.number_of_classes

    # The five poolings halve exactly only multiples of 32: fill up with the mean colour, which is 0 to the network.
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    inputs = tf.pad(tf.cast(images, tf.float32) - vgg.RGB_MEAN, [[0, 0], [0, -height % 32], [0, -width % 32], [0, 0]])

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

            # Step 7: x8, to the size of the (filled up) image; then cut back to the image's own.
            upscore8 = upsample(fuse_pool3, upsample_factor, upsampled_logits_shape, network, scope='t_conv_x8')
    return upscore8[:, :height, :width, :]


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
            the pixels that count, each as much as its class's weight.
        class_weights: float32 [C] or None, for 1.

    Returns:
        loss: float32 scalar, what is minimised.
        loss_per_pixel: float32 scalar, the mean over the pixels that count, without class weights; ln C for a network
            that knows nothing.
    """
    valid = tf.not_equal(labels, records.IGNORE_LABEL)
    classes_or_zero = tf.where(valid, labels, tf.zeros_like(labels))
    cross_entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(logits=logits, labels=classes_or_zero)
    cross_entropies = tf.where(valid, cross_entropies, tf.zeros_like(cross_entropies))
    number_of_valid = tf.maximum(tf.reduce_sum(tf.cast(valid, tf.float32)), 1)
    loss_per_pixel = tf.reduce_sum(cross_entropies) / number_of_valid

    if class_weights is not None:
        weights = tf.gather(tf.constant(class_weights), classes_or_zero)
        cross_entropies *= weights
        number_of_valid = tf.reduce_sum(tf.where(valid, weights, tf.zeros_like(weights)))
    if reduction == 'rows':
        loss = tf.reduce_mean(tf.reduce_sum(cross_entropies, axis=-1))
    else:
        loss = tf.reduce_sum(cross_entropies)
        if reduction == 'mean':
            loss /= tf.maximum(number_of_valid, 1e-6)
    return loss, loss_per_pixel


def loss_weights(labels, reduction, class_weights=None):
    """What a part of a batch counts in the segmentation_loss of the whole, which is the parts' mean so weighted.

    Args: as those of segmentation_loss.

    Returns:
        float32 scalar, for the loss; None for reduction 'sum', which adds up.
        float32 scalar, for the loss per pixel.
    """
    valid = tf.not_equal(labels, records.IGNORE_LABEL)
    pixels = tf.reduce_sum(tf.cast(valid, tf.float32))
    if reduction == 'rows':
        return tf.cast(tf.reduce_prod(tf.shape(labels)[:2]), tf.float32), pixels
    if reduction == 'mean' and class_weights is not None:
        weights = tf.gather(tf.constant(class_weights), tf.where(valid, labels, tf.zeros_like(labels)))
        return tf.reduce_sum(tf.where(valid, weights, tf.zeros_like(weights))), pixels
    return pixels if reduction == 'mean' else None, pixels


# ------------------------------------------------------------------------------------------- the graph

TrainingOps = collections.namedtuple('TrainingOps',
                                     'train_op loss loss_per_pixel learning_rate histograms ids check_finite')
Predictor = collections.namedtuple('Predictor', 'image probabilities network')
TrainingGraph = collections.namedtuple('TrainingGraph', 'ops predictor fetch_weights scored pictured')


def build_training(args, network, num_examples, start_step, class_weights=None, placement=towers.HERE):
    """Input pipeline, network, loss and optimiser in the default graph.

    All that is random is a function of args.seed and the step: a run that resumes goes on as if it had never ended.

    Returns:
        TrainingOps: ops and tensors; `ids` are the batch's filenames, `check_finite` fails if a variable is not finite.
    """
    def read(part):
        batches = input_pipeline.training_batches(args.dataset_train, num_examples, args.batch_size, args.crop_size,
                                                  pad_rgb=vgg.RGB_MEAN, seed=args.seed, start_step=start_step,
                                                  augment=args.augment, number_of_classes=network.number_of_classes,
                                                  part=part)
        return tf.data.make_one_shot_iterator(batches).get_next()

    def build_tower(number, images, labels, ids):
        step = tf.train.get_or_create_global_step()
        # Towers drop different places, each the same ones again when the run is resumed.
        dropout_seed = tf.stack([tf.constant(args.seed, tf.int64), step + (number << 32)])
        logits = fcn(images, network, is_training=True, weight_decay=recipes.l2_decay(args), dropout_seed=dropout_seed)
        return (*segmentation_loss(logits, labels, args.loss, class_weights),
                *loss_weights(labels, args.loss, class_weights))

    parts, (_, _, ids) = towers.build_towers(placement, read, build_tower)
    losses, losses_per_pixel, weights, pixels = zip(*parts)
    losses = towers.average(losses, weights)
    loss = towers.add_up(losses)
    loss_per_pixel = towers.add_up(towers.average(losses_per_pixel, pixels))
    update = recipes.build_update(args, losses, tf.train.get_global_step())

    # A histogram cannot hold what is not finite. --mixed_precision lowers its scale then and leaves out the step.
    histograms = tf.summary.merge([
        tf.summary.histogram(f'{variable.op.name}/gradient',
                             tf.where(tf.is_finite(gradient), gradient, tf.zeros_like(gradient)))
        for gradient, variable in update.gradients])
    with tf.xla.experimental.jit_scope(compile_ops=False):  # XLA drops such checks
        check_finite = towers.check_finite(tf.global_variables())
    return TrainingOps(update.train_op, loss, loss_per_pixel, update.learning_rate, histograms, ids, check_finite)


def build_predictor(network):
    """The network for one image at a time, with the variables of the default graph.

    Returns:
        Predictor: `image`, placeholder uint8 [1, H, W, 3] RGB, `probabilities`, float32 [1, H, W, C], and `network`.
    """
    image = tf.placeholder(tf.uint8, [1, None, None, 3], name='image')
    with tf.xla.experimental.jit_scope(compile_ops=False):  # XLA would compile for every size of image
        return Predictor(image, tf.nn.softmax(fcn(image, network), name='probabilities'), network)


def network_variables():
    """The variables of the network in the default graph: without the optimiser's, with upsampling kernels that stay."""
    return tf.get_collection(tf.GraphKeys.MODEL_VARIABLES)


# ------------------------------------------------------------------------------------------- checkpoints


def restore_vgg(session, checkpoint):
    """Sets VGG16 up to fc7 from a slim checkpoint; fc8 and all that is new keep their start.

    Files without fc6 and fc7 (a trunk, such as Keras's "notop") leave these two at their random start, said aloud.
    """
    variables = [v for v in network_variables() if not v.op.name.startswith('vgg_16/fc8/')]
    fully_connected = [v for v in variables if v.op.name.startswith(('vgg_16/fc6/', 'vgg_16/fc7/'))]
    shapes = read_shapes(checkpoint)
    is_trunk = not any(v.op.name in shapes for v in fully_connected)
    if is_trunk:
        variables = [v for v in variables if v not in fully_connected]
    restore(session, checkpoint, variables)
    print(f'VGG16 restored from {checkpoint}: {len(variables)} variables'
          + ('; it holds the convolutions only: fc6 and fc7 start at random (He)' if is_trunk else '')
          + ('; its run has other classes: their scores start anew' if FCN_ONLY in shapes else ''))


def restore_fcn(session, checkpoint):
    """Sets the network from the checkpoint of a run with the same classes, of any model of the family.

    The skips of a finer model than the run's keep their start: zero.
    """
    known, variables = read_shapes(checkpoint), network_variables()
    new = [v for v in variables
           if v.op.name not in known and '_pool' in v.op.name and not is_scale_of_1(v, known)]
    restore_run(session, checkpoint, [v for v in variables if v not in new])
    skips = [pool for pool in ('pool4', 'pool3') if any(pool in v.op.name for v in new)]
    print(f'network restored from {checkpoint}' + (f'; scores of {" and ".join(skips)} start at zero' if new else ''))


def restore_run(session, checkpoint, variables):
    """checkpoints.restore from the checkpoint of a run; those of runs from before skips had scales are taken too."""
    known = read_shapes(checkpoint)
    unscaled = [v for v in variables if is_scale_of_1(v, known)]
    restore(session, checkpoint, [v for v in variables if v not in unscaled])
    for variable in unscaled:
        variable.load(1.0, session)


def is_scale_of_1(variable, known):
    """Whether a variable is the scale of a skip that a checkpoint with the variables `known` has without a scale."""
    name = variable.op.name
    return (name.startswith('vgg_16/fc8/scale_') and name not in known
            and f'{name.replace("/scale_", "/conv_")}/weights' in known)


def has_these_classes(checkpoint, class_set):
    """Whether a checkpoint is one of train.py for the very classes of a ClassSet: by name, if its run tells names."""
    shapes = read_shapes(checkpoint)
    if FCN_ONLY not in shapes or shapes['vgg_16/fc8/weights'][-1] != len(class_set.names):
        return False
    return (not read_settings(os.path.dirname(checkpoint)).get('classes')
            or find_classes(checkpoint).names == class_set.names)


def read_network(checkpoint):
    """The Network whose variables a checkpoint of train.py holds; its skip_scales are among these.

    Raises:
        UserError: the checkpoint is damaged, or not of this family.
    """
    shapes = read_shapes(checkpoint)
    for name in ('vgg_16/fc6/weights', 'vgg_16/fc8/weights', FCN_ONLY):
        if name not in shapes:
            raise UserError(f'{checkpoint}: variable {name} is missing; take a checkpoint of train.py')
    skips = tuple(pool for pool in ('pool4', 'pool3') if f'vgg_16/fc8/conv_{pool}/weights' in shapes)
    model = next((model for model, of_model in SKIPS.items() if of_model == skips), 'fcn_8s')
    return Network(model, shapes['vgg_16/fc8/weights'][-1], shapes['vgg_16/fc6/weights'][-1])


def load_predictor(session, checkpoint):
    """Builds the network of a checkpoint for prediction, in the default graph, and sets its variables.

    Returns:
        Predictor.

    Raises:
        UserError: the checkpoint is damaged, or not of this family.
    """
    predictor = build_predictor(read_network(checkpoint))
    restore_run(session, checkpoint, network_variables())
    return predictor


def find_classes(checkpoint, classes_file=None):
    """The classes.ClassSet of a checkpoint: see classes.of_run.

    Args:
        checkpoint: str. classes_file: str or None, --classes.
    """
    settings = read_settings(os.path.dirname(checkpoint))
    return classes.of_run(settings, read_network(checkpoint).number_of_classes, checkpoint, classes_file)


LOSS_SCALE = ('current_loss_scale', 'good_steps')  # of --mixed_precision, which a resumed run may not have had
FCN_ONLY = 'vgg_16/fc8/t_conv_x8'  # a variable that VGG16 does not have


def initialise(session, resume_from, start_from, class_set):
    """Sets all variables: from the run's own checkpoint, else from start_from as far as that goes, else at random.

    Args:
        session: of the graph. resume_from: str or None.
        start_from: str or None, a checkpoint of VGG16, or of a run: then all of it, if its classes are the same, else
            what VGG16 has of it.
        class_set: ClassSet.
    """
    session.run(tf.global_variables_initializer())
    if resume_from:
        known = read_shapes(resume_from)
        restore_run(session, resume_from, [variable for variable in tf.global_variables()
                                           if variable.op.name in known or variable.op.name not in LOSS_SCALE])
        print(f'resumed from {resume_from}')
    elif start_from and has_these_classes(start_from, class_set):
        restore_fcn(session, start_from)
    elif start_from:
        restore_vgg(session, start_from)
    else:
        print('no --checkpoint_path: all of VGG16 starts at random (He); expect to need far more steps')


# ------------------------------------------------------------------------------------------- validation pictures


def validate(session, predictor, reader, step, validations):
    """Predicts the Reader's next validation image and has a ValidationLog draw it.

    Returns:
        int64 [C, C], confusion_matrix of the prediction.
    """
    example = run_input(session, reader.next_example, reader.record)
    probabilities = predict_example(session, predictor, example, reader.record)
    validations.draw(step, example, probabilities)
    return confusion_matrix(example['label'], probabilities.argmax(axis=-1), probabilities.shape[-1])


# ------------------------------------------------------------------------------------------- scores over a record

Reader = collections.namedtuple('Reader', 'record num_examples initializer next_example')


def build_reader(record, num_examples, number_of_classes=21, skip=0):
    """Reads a record's whole images round and round, in the default graph; see input_pipeline.whole_images.

    Each run of the Reader's `initializer` goes back to the start: the record's first image, or the one after `skip`.
    """
    images = input_pipeline.whole_images(record, number_of_classes)
    images = images.apply(tf.data.experimental.assert_cardinality(num_examples))
    iterator = tf.data.make_initializable_iterator(images.repeat().skip(skip))
    return Reader(record, num_examples, iterator.initializer, iterator.get_next())


def build_readers(args, num_examples, number_of_classes, start_step):
    """Readers of the validation record for scores, and for pictures.

    The image that a step pictures depends on the step alone, so that a resumed run goes on in the row.
    """
    skip = start_step // (args.val_steps or 1) % num_examples
    return (build_reader(args.dataset_val, num_examples, number_of_classes),
            build_reader(args.dataset_val, num_examples, number_of_classes, skip))


def predict_record(session, predictor, reader, before_each=lambda: None, scales=(1.0,), flip=False):
    """Predicts every image of a record at its true size, one after the other.

    Args:
        session: with the network's weights. predictor: Predictor. reader: Reader.
        before_each: function that is called before each image, and may end all by an exception.
        scales, flip: see averaging.average_probabilities.

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
        yield example, predict_example(session, predictor, example, reader.record, scales, flip)


def predict_image(session, predictor, image, scales=(1.0,), flip=False):
    """Softmax, float32 [H, W, C], of uint8 RGB [H, W, 3]; for scales and flip see averaging.average_probabilities."""
    def run(seen):
        return session.run(predictor.probabilities, {predictor.image: seen[np.newaxis]})[0]

    return averaging.average_probabilities(run, image, scales, flip)


def predict_example(session, predictor, example, record, scales=(1.0,), flip=False):
    """predict_image of an example of whole_images; UserError if memory does not suffice."""
    try:
        return predict_image(session, predictor, example['image'], scales, flip)
    except tf.errors.ResourceExhaustedError:
        height, width, _ = example['image'].shape
        raise UserError(f'{record}: out of memory at {example["filename"].decode(errors="replace")}, '
                        f'{width} x {height} pixels; leave it out, or run on the CPU') from None


def score_record(session, predictor, reader, before_each=lambda: None):
    """Scores the network on every image of a record. For the arguments see predict_record.

    Returns:
        score: Score.
        loss_per_pixel: float, cross-entropy, the mean over all pixels that count; nan if there are none.
    """
    score, loss = Score(predictor.network.number_of_classes), 0.0
    predictions = predict_record(session, predictor, reader, before_each)
    for example, probabilities in tqdm.tqdm(predictions, 'evaluating', reader.num_examples, leave=False, disable=None):
        score.add(example['label'], probabilities.argmax(axis=-1))
        loss += cross_entropy(example['label'], probabilities)
    pixels = score.confusion.sum()
    return score, loss / pixels if pixels else float('nan')


# ------------------------------------------------------------------------------------------- the program


def train(args, placement=towers.HERE):
    """Trains to args.max_steps in all, resuming what args.output_dir holds. See parse_args for the settings.

    Args:
        args: of parse_args. placement: towers.Placement.

    Raises:
        UserError: a file is damaged or cannot be written, the loss is not finite, or another run has the folder.
        utils.Stopped: by Ctrl-C or SIGTERM; the step that was reached is kept.
    """
    with utils.StopSignals() as signals:
        args = copy.copy(args)  # what was given is looked up anew when a worker was lost
        args.checkpoint_path = args.checkpoint_path and find_checkpoint(args.checkpoint_path)
        num_examples = input_pipeline.count_examples(args.dataset_train, whole=args.crop_size == 0)
        num_val_examples = input_pipeline.count_examples(args.dataset_val, whole=True)
        class_set = find_training_classes(args)
        network = Network(args.model, len(class_set.names), args.fc_channels, args.upsampling, args.skip_scales)
        class_weights, crf_parameters = find_class_weights(args), crf.read_parameters(args.crf_params)
        train_dir, eval_dir = make_run_folder(args)
        with run_folder.lock(train_dir), tf.Graph().as_default(), tf.device(placement.home):
            run_folder.remove_leftovers(args.output_dir)
            resume_from, start_step = find_resume(train_dir)
            if resume_from:
                check_same_network(args, class_set, train_dir)
            first_step = start_step if owes_evaluation(args, start_step) else start_step + 1
            if first_step > args.max_steps:
                print(f'{resume_from} is at step {start_step}: nothing left to do for --max_steps {args.max_steps}')
                return
            tf.set_random_seed(args.seed)
            training = build_training(args, network, num_examples, start_step, class_weights, placement)
            predictor = towers.build_at_home(placement, lambda: build_predictor(network))
            graph = TrainingGraph(training, *predictor,
                                  *build_readers(args, num_val_examples, network.number_of_classes, start_step))
            print(recipes.describe(args), flush=True)
            with crf.start_processes(1) as pool, \
                    cluster.open_session(placement, session_config(args), signals) as session:
                initialise(session, resume_from, args.checkpoint_path, class_set)
                session.run(graph.pictured.initializer)
                run = Run(args, class_set, crf_parameters, graph, session, pool, signals, resume_from, start_step)
                signals.hold()
                run.go_on(first_step)
        page = report.write_page(args.output_dir)
    print(f'done: checkpoints and TensorBoard events in {train_dir}, pictures in {eval_dir}, all to look at in {page}')


def find_training_classes(args):
    """The ClassSet of both records; UserError if they, or --classes, differ."""
    class_set = classes.of_record(args.dataset_train, args.classes)
    classes.check_same(class_set, args.dataset_train, classes.of_record(args.dataset_val, args.classes),
                       args.dataset_val)
    return class_set


def find_class_weights(args):
    """float32 [C], or None without --class_weights; UserError if the record's side file is missing."""
    if args.class_weights == 'none':
        return None
    counted = classes.read_side_file(args.dataset_train)
    if counted is None:
        raise UserError(f'{classes.side_file(args.dataset_train)}: missing, and --class_weights needs its counts; '
                        'write the record again with convert_fcn_dataset.py')
    return recipes.median_frequency_weights(counted['pixels'][:-1])


class Run:
    """A training under way: its steps, what is looked at between them, and what is kept of them.

    Args:
        args: of parse_args.
        class_set: classes.ClassSet. crf_parameters: crf.Parameters.
        graph: TrainingGraph.
        session: with all variables set.
        pool: of crf.start_processes, one process that draws.
        signals: utils.StopSignals.
        resume_from, start_step: of find_resume.
    """

    def __init__(self, args, class_set, crf_parameters, graph, session, pool, signals, resume_from, start_step):
        self.args, self.graph, self.session, self.signals = args, graph, session, signals
        self.train_dir, eval_dir = make_run_folder(args)
        self.saver = tf.train.Saver(max_to_keep=MAX_TO_KEEP, save_relative_paths=True)  # the folder may be moved
        writer = run_folder.EventWriter(self.train_dir, session.graph)
        if resume_from:
            take_over(self.saver, self.train_dir, resume_from)
            writer.start_at(start_step + 1)
        save_settings(args, class_set, self.train_dir, resume_from)
        self.writer = writer
        self.log = TrainingLog(args, writer, start_step)
        self.evaluations = EvaluationLog(args, network_variables(), writer, start_step)
        self.validations = ValidationLog(args.output_dir, eval_dir, class_set, crf_parameters, pool, writer)
        self.watchdog = Watchdog(class_set.names)
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
        loss, loss_per_pixel, learning_rate, seconds = run_step(
            self.session, self.graph.ops, self.args.dataset_train, histogram_writer, step, self.recent)
        self.done = step
        self.log.add(loss, loss_per_pixel, learning_rate, seconds)
        self.watchdog.see_loss(step, loss_per_pixel)
        if step == self.start_step + 1 or due(step, self.args.log_steps) or step == self.args.max_steps:
            self.log.write(step)
        if due(step, self.args.val_steps):
            self.session.run(self.graph.fetch_weights)
            confusion = validate(self.session, self.graph.predictor, self.graph.pictured, step, self.validations)
            self.watchdog.see_predictions(step, confusion, num_images=1)

    def evaluate(self, step):
        """Scores the whole validation record; a signal breaks it off, and the resumed run starts with it."""
        check_finite(self.session, self.graph.ops, self.kept, self.recent)
        self.session.run(self.graph.fetch_weights)
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
    fetches = [ops.loss, ops.loss_per_pixel, ops.learning_rate, ops.ids, ops.train_op]
    fetches += [ops.histograms] if histogram_writer else []
    loss, loss_per_pixel, learning_rate, ids, _, *histograms = run_input(session, fetches, record)
    seconds = time.perf_counter() - started
    recent = collections.deque() if recent is None else recent
    recent.append((step, ids))
    if not math.isfinite(loss):
        raise UserError(f'the loss is not finite at step {step}: {explain_spoilt(recent)}')
    for summary in histograms:
        histogram_writer.add_summary(summary, step)
    return loss, loss_per_pixel, learning_rate, seconds


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


def save_settings(args, class_set, train_dir, resume_from):
    """Writes every flag's value beside the checkpoints, as settings.json, the classes, and where VGG16 came from.

    `vgg_weights_from` is the checkpoint's path or 'random start'. A run that resumes keeps what it began with.
    """
    origin = args.checkpoint_path or 'random start'
    if resume_from:
        before = read_settings(train_dir)
        origin = before.get('vgg_weights_from') or before.get('checkpoint_path') or 'unknown'
    utils.save_json(os.path.join(train_dir, 'settings.json'),
                    {**vars(args), 'classes': classes.as_json(class_set), 'vgg_weights_from': origin})


def read_settings(folder):
    """The settings.json of a folder of checkpoints, dict; empty if there is none.

    Raises:
        UserError: it is not what save_settings writes.
    """
    path = os.path.join(folder, 'settings.json')
    try:
        with utils.open_file(path, encoding='utf-8') as file:
            return dict(json.load(file))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, RecursionError):
        raise UserError(f'{path}: not the settings of a run; remove it') from None


def check_same_network(args, class_set, train_dir):
    """Raises UserError if a run that is to be resumed has another network or optimiser than args."""
    before = read_settings(train_dir)
    if before:  # what a run from before there were recipes does not tell is the owner's
        before = {'model': 'fcn_8s', **recipes.RECIPES['owner'], **before}
    for name in ('model', 'fc_channels', 'upsampling', 'skip_scales', 'optimizer'):
        if name in before and before[name] != getattr(args, name):
            raise UserError(f'{train_dir}: its run has --{name} {before[name]}, now it is {getattr(args, name)}; give '
                            'the same, or start anew in another --output_dir, from this run by --checkpoint_path')
    if before.get('classes'):
        known = classes.of_run(before, len(before['classes']), os.path.join(train_dir, 'checkpoint'))
        classes.check_same(class_set, args.dataset_train, known, f'the run in {train_dir}')


def session_config(args=None):
    """How sessions compute: GPU memory is taken as needed, and which devices are used stays the user's choice.

    Args:
        args: of train.parse_args, for its xla and mixed_precision; None: plain float32.
    """
    config = tf.ConfigProto(allow_soft_placement=True, gpu_options=tf.GPUOptions(allow_growth=True))
    rewrites = config.graph_options.rewrite_options
    rewrites.constant_folding = RewriterConfig.OFF  # it would keep Adam's first zeros for good: half a gigabyte
    if args and has_gpu():
        config.device_count['GPU'] = towers.count_devices(args.num_gpus)  # else a session takes all
    elif args:
        config.inter_op_parallelism_threads = 1  # one after the other, on all cores: fc6 has two gradients of 0.4 GB
        config.device_count['CPU'] = towers.count_devices(args.num_gpus)
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
    parser.add_argument('--checkpoint_path',
                        help='what to start from: a slim checkpoint of VGG16, or a run of a coarser or the same '
                             '--model; without it, a random start')
    parser.add_argument('--output_dir', default='results',
                        help='run folder: checkpoints in train/, pictures in eval/, best weights in best/')
    parser.add_argument('--dataset_train', default='data/fcn_train.record', help='record to train on')
    parser.add_argument('--dataset_val', default='data/fcn_val.record',
                        help='record of the validation pictures and scores')
    parser.add_argument('--classes', metavar='FILE',
                        help='names of the classes, one a line, for records that have no side file to name them')
    parser.add_argument('--model', choices=SKIPS, default='fcn_8s', help='how fine: with two skips, one or none')
    parser.add_argument('--max_steps', type=utils.positive_int, default=1500,
                        help='steps in all, resumed ones included')
    parser.add_argument('--fc_channels', type=utils.positive_int, default=4096,
                        help='width of fc6 and fc7; 4096 is what published weights have')
    parser.add_argument('--class_weights', choices=('none', 'median_frequency'), default='none',
                        help='weights of the classes in the loss; median_frequency makes up for rare ones')
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
    parser.add_argument('--num_gpus', type=utils.positive_int,
                        help='GPUs that share the work of each step, by default all that can be seen; without a GPU, '
                             'parts of the CPU')
    parser.add_argument('--seed', type=utils.non_negative_int, default=0,
                        help='of the order of examples, the crops, dropout, and the random starts')
    parser.add_argument('--crf_params', metavar='FILE',
                        help="the CRF's parameters for the validation pictures, as tools/search_crf.py writes them")
    recipes.add_flags(parser)
    return recipes.parse(parser, argv)


def quiet_tensorflow():
    """Keeps notices of deprecation off the terminal: this suite is TF1-style on purpose."""
    tf.logging.set_verbosity(tf.logging.ERROR)
    warnings.filterwarnings('ignore', message='`layer.apply` is deprecated')  # raised by slim's layers


def main(argv=None):
    args = parse_args(argv)
    quiet_tensorflow()
    prepare_arithmetic(args)
    try:
        cluster.run(args, session_config(args), train)
    except tf.errors.ResourceExhaustedError:
        raise UserError('out of memory: lower --batch_size or --crop_size') from None


if __name__ == '__main__':
    utils.run_program(main)
