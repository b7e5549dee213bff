"""Recipes: how a network is trained. Presets of train.py's flags, and the updates that they ask for.

    python train.py --recipe paper --learning_rate 1e-9

A recipe only sets defaults: every flag that is given overrides it. The source of each number is beside it.
"""
import argparse
from typing import NamedTuple

import tensorflow.compat.v1 as tf

import utils
from datasets import augmentation
from inference import weights

POLY_POWER = 0.9  # section 4.1.2 of DeepLab, arXiv 1606.00915
BLOCKS = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5')  # of VGG16, which --freeze names
HARD_SHARE = 0.25  # of the pixels of an image, which --loss ohem learns from


class Recipe(NamedTuple):
    """How a network is trained; see add_flags for the values. Entries with a default here have no flag."""
    name: str
    optimizer: str
    learning_rate: float
    schedule: str
    weight_decay: float
    loss: str
    batch_size: int
    crop_size: int
    augment: list
    upsampling: str
    momentum: float = 0.9  # in 0..1, of the optimizer 'momentum', as the next two
    bias_rate: float = 1.0  # learning rate of biases, times that of their kernels
    head_rate: float = 1.0  # learning rate of the layers that ImageNet's weights lack, times the others'
    skip_scales: tuple = (1.0, 1.0)  # factors of pool4 and pool3 before their scores


RECIPES = {recipe.name: recipe for recipe in (
    # The settings that this suite was asked for.
    Recipe('default', optimizer='adam', learning_rate=1e-4, schedule='constant', weight_decay=0.0, loss='rows',
           batch_size=16, crop_size=224, augment=['flip'], upsampling='learned'),
    # Long, Shelhamer, Darrell, FCN-8s "at once"; shelhamer/fcn.berkeleyvision.org, voc-fcn8s-atonce.
    Recipe('paper', optimizer='momentum', momentum=0.99, learning_rate=1e-10, schedule='constant',  # solver.prototxt
           weight_decay=5e-4, batch_size=1,  # solver.prototxt: weight_decay, and iter_size 1
           loss='sum', crop_size=0, augment=[],  # net.py: normalize=False; voc_layers.py: complete images, unchanged
           upsampling='fixed', bias_rate=2.0, skip_scales=(1e-2, 1e-4)),  # net.py: lr_mult 0 and 2, scale_pool4, _pool3
    # fmahoudeau/FCN-Segmentation-TensorFlow: 62.5 % on VOC2012 val.
    Recipe('adamw', optimizer='adamw', learning_rate=1e-5, schedule='constant', weight_decay=1e-6, batch_size=12,
           loss='mean',  # fcn_training.ipynb has the numbers above; fcn_run_loop.py: compute_weighted_loss
           crop_size=512,  # pascal_voc_dataset.py: VOC's images are at most 500 wide, and padded to 512
           augment=['flip', 'scale', 'rotate', 'colour'],  # the notebook: zoom 0.5 to 2, 10 degrees, saturation, value
           upsampling='learned'),  # fcn_model.py
    # Chen et al., "DeepLab", arXiv 1606.00915, and train.prototxt of its VGG16, DeepLab-LargeFOV. Upsampling kernels,
    # which DeepLab lacks, learn at the common rate: they start as its interpolation, new layers at random or zero.
    Recipe('poly', optimizer='momentum', learning_rate=1e-3, momentum=0.9, weight_decay=5e-4, batch_size=20,  # 4.1
           schedule='poly', augment=['flip', 'scale'],  # section 4.1.2, which scales by 0.5 to 1.5
           head_rate=10.0,  # section 4.1: 0.01 for the classifier
           bias_rate=2.0, loss='mean', crop_size=321,  # train.prototxt: lr_mult 1 and 2, of the classifier 10 and 20
           upsampling='learned'))}
FLAGS = Recipe._fields[1:10]


def add_flags(parser):
    """Adds --recipe and the flags whose defaults a recipe sets; the help shows those of `default`."""
    add = parser.add_argument_group('recipe', 'how the network is trained; the defaults shown are those of --recipe '
                                    'default').add_argument
    add('--recipe', choices=RECIPES, default='default', help='presets of the flags below; a flag that is given '
                                                             'overrides its recipe')
    add('--optimizer', choices=('adam', 'adamw', 'momentum'), help='adamw is Adam with decoupled weight decay')
    add('--learning_rate', type=utils.non_negative_float, help='learning rate of the first step')
    add('--schedule', choices=('constant', 'poly'),
        help=f'learning rate over the steps; poly falls to 0 at --max_steps as (1 - step / max_steps) ^ {POLY_POWER}')
    add('--weight_decay', type=utils.non_negative_float,
        help='of the convolution kernels, not of biases; with adamw the share of each that a step takes, which falls '
             'with the schedule, else L2 in the loss')
    add('--loss', choices=('rows', 'mean', 'sum', 'ohem'),
        help='cross-entropy summed over each row and averaged over rows, averaged over pixels, summed over all, or '
             f'averaged over the hardest {HARD_SHARE:.0%}% of the pixels of each image')
    add('--batch_size', type=utils.positive_int, help='crops in a batch; --accumulate sets the batches in a step')
    add('--crop_size', type=utils.non_negative_int, help='side of the training crops in pixels; 0: complete images')
    add('--augment', nargs='*', choices=augmentation.KINDS,
        help='how training images are varied: mirrored, scaled by 0.5 to 2, rotated by up to 10 degrees, other '
             'colours; without a value: not at all')
    add('--upsampling', choices=('learned', 'fixed'), help='whether the bilinear kernels are trained')
    parser.set_defaults(**{flag: getattr(RECIPES['default'], flag) for flag in FLAGS})


def parse(parser, argv=None):
    """Parses flags after add_flags: `recipe` of the namespace is the Recipe, overridden by the flags that are given."""
    args = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(FLAGS)))  # a flag that is not given stays None
    flags = {flag: vars(args).pop(flag) for flag in FLAGS}
    args.recipe = RECIPES[args.recipe]._replace(**{flag: value for flag, value in flags.items() if value is not None})
    return args


def describe(recipe):
    """A Recipe as the flags that give it, and its entries that matter to it; one line."""
    def show(value):
        return ' '.join(map(str, value)) if isinstance(value, list) else f'{value:g}' if isinstance(
            value, float) else str(value)
    line = f'recipe {recipe.name}: ' + ' '.join(
        f'--{flag} {show(getattr(recipe, flag))}'.rstrip() for flag in FLAGS)
    if recipe.optimizer == 'momentum':
        line += (f'; momentum {recipe.momentum:g}, biases learn {recipe.bias_rate:g} times as fast'
                 + f', new layers {recipe.head_rate:g} times' * (recipe.head_rate != 1))
    if recipe.skip_scales != (1.0, 1.0):
        line += '; pool4 and pool3 scaled by {:g} and {:g}'.format(*recipe.skip_scales)
    return line


def build_optimizer(recipe, global_step, max_steps, mixed_precision=False):
    """A recipe's optimiser, and its learning rate, float32 scalar, at global_step; the schedule ends at max_steps.
    mixed_precision scales the loss, so that float16 gradients do not underflow."""
    schedule = tf.constant(1.0) if recipe.schedule == 'constant' else tf.train.polynomial_decay(
        1.0, global_step, max_steps, 0.0, POLY_POWER)
    learning_rate = recipe.learning_rate * schedule
    optimizer = (tf.train.MomentumOptimizer(learning_rate, recipe.momentum) if recipe.optimizer == 'momentum' else
                 AdamW(learning_rate, recipe.weight_decay * schedule) if recipe.optimizer == 'adamw' else
                 tf.train.AdamOptimizer(learning_rate))
    if mixed_precision:
        optimizer = tf.mixed_precision.MixedPrecisionLossScaleOptimizer(optimizer, 'dynamic')
    return optimizer, learning_rate


class Update(NamedTuple):
    """One update of the weights."""
    train_op: tf.Operation
    histograms: tf.Tensor  # string scalar, a tf.Summary of all gradients
    left_out: tf.Tensor  # int64 scalar, 1 if the step was left out because float16 gradients were not finite, else 0


def build_update(recipe, optimizer, gradients, global_step):
    """The Update by a recipe's optimiser, in the default graph, from the (gradient, variable) of the loss.
    It adds those of the graph's regularization losses, and increments global_step, an int64 variable, unless the step
    is left out."""
    gradients = add_regularization(gradients)
    scaled = [(scale_gradient(recipe, *pair), pair[1]) for pair in gradients]
    before = global_step.read_value()
    with tf.control_dependencies([before]):
        train_op = optimizer.apply_gradients(scaled, global_step)
    with tf.control_dependencies([train_op]):
        left_out = before + 1 - global_step.read_value()
    return Update(train_op, build_histograms(gradients), left_out)


def add_regularization(gradients):
    """Adds the gradients of the graph's regularization losses to a list of (gradient, variable)."""
    if not tf.losses.get_regularization_losses():
        return gradients
    variables = [variable for _, variable in gradients]
    added = []
    for of_loss, variable, decay in zip(gradients, variables, tf.gradients(
            tf.losses.get_regularization_loss(), variables)):
        with tf.device(variable.device):
            added.append((of_loss[0] if decay is None else of_loss[0] + decay, variable))
    return added


class AdamW(tf.train.AdamOptimizer):
    """Adam whose step first takes `decay`, float32 scalar, of each convolution kernel; it falls with the schedule.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2, with their eta_t for
    the schedule; `decay` is the weight_decay of tf.contrib.opt.AdamWOptimizer, which no learning rate multiplies.
    """

    def __init__(self, learning_rate, decay):
        super().__init__(learning_rate)
        self.decay = decay

    def _resource_apply_dense(self, gradient, variable):
        decays = []
        if weights.full_name(variable).endswith('/weights'):
            with tf.control_dependencies([gradient]):
                decays = [variable.assign_sub(self.decay * variable.read_value())]
        with tf.control_dependencies(decays):
            return super()._resource_apply_dense(gradient, variable)


def scale_gradient(recipe, gradient, variable):
    """A gradient times the rate of its variable: momentum is linear in it, so this is a learning rate of its own."""
    name, rate = weights.full_name(variable), 1.0
    if recipe.optimizer == 'momentum' and name.endswith(('/weights', '/biases')):
        rate = (recipe.bias_rate if name.endswith('/biases') else 1.0) * (
            recipe.head_rate if name.startswith('vgg_16/fc8/') else 1.0)
    return gradient if rate == 1 else gradient * rate


def trained_variables(freeze=None):
    """The variables that learn, list: all trainable ones but those of the BLOCKS up to `freeze`."""
    frozen = BLOCKS[:BLOCKS.index(freeze) + 1] if freeze else ()
    return [variable for variable in tf.trainable_variables() if variable.op.name.split('/')[1] not in frozen]


def l2_decay(recipe):
    """The L2 regularisation, float, that the network must be built with."""
    return 0.0 if recipe.optimizer == 'adamw' else recipe.weight_decay


def weigh_hardest(cross_entropies, weights):
    """Moves the weights of an image's pixels to the hardest HARD_SHARE of them, those with the largest cross-entropy.
    Arguments and result are float32 [B, H, W]; a pixel of weight 0 is void. The sum of each image's weights stays as it
    is, so parts of a batch are averaged as with the plain mean. Pixels as hard as the last of these are included.

    Sources: Shrivastava, Gupta, Girshick, "Training Region-based Object Detectors with Online Hard Example Mining",
    CVPR 2016; for pixels: Wu, Shen, van den Hengel, "High-performance Semantic Segmentation Using Very Deep Fully
    Convolutional Networks", arXiv 1604.04339.
    """
    with tf.xla.experimental.jit_scope(compile_ops=False):  # XLA sorts more slowly
        valid = weights > 0
        ranked = tf.where(valid, cross_entropies, -tf.ones_like(cross_entropies))
        ranked = tf.sort(tf.reshape(ranked, [tf.shape(ranked)[0], -1]), direction='DESCENDING')
        counted = tf.reduce_sum(tf.cast(valid, tf.float32), axis=[1, 2])
        last = tf.maximum(tf.cast(tf.ceil(HARD_SHARE * counted), tf.int32), 1) - 1
        bounds = tf.gather(ranked, last, batch_dims=1)[:, tf.newaxis, tf.newaxis]
        hardest = tf.where(valid & (cross_entropies >= bounds), weights, tf.zeros_like(weights))
        of_image, of_hardest = (tf.reduce_sum(each, axis=[1, 2], keepdims=True) for each in (weights, hardest))
        return tf.stop_gradient(hardest * tf.div_no_nan(of_image, of_hardest))


def build_histograms(gradients):
    """Histograms for TensorBoard, a serialised tf.Summary, of a list of (gradient, variable)."""
    # A histogram cannot hold what is not finite; with --mixed_precision such a step is left out.
    return tf.summary.merge([tf.summary.histogram(
        f'{variable.op.name}/gradient', tf.where(tf.is_finite(gradient), gradient, tf.zeros_like(gradient)))
        for gradient, variable in gradients])
