"""Recipes: how a network is trained. Presets of train.py's flags, and the updates that they ask for.

    python train.py --recipe paper --learning_rate 1e-9

A recipe only sets defaults: every flag that is given overrides it. Sources: `default`, the settings that this suite was
asked for; `paper`, the "at once" FCN-8s of Long, Shelhamer, Darrell (solver and net of voc-fcn8s-atonce in their Caffe
repository); `adamw`, Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, with the rates of
fmahoudeau's FCN-Segmentation-TensorFlow; `poly`, the schedule of Chen et al., "DeepLab", with its rates for VGG16.
"""
import argparse
from typing import NamedTuple

import tensorflow.compat.v1 as tf

import utils
from datasets import augmentation
from inference import weights
from training import towers

POLY_POWER = 0.9


class Recipe(NamedTuple):
    """How a network is trained; see add_flags for the values. The last three are entries of a recipe, not flags.

    momentum: float in 0..1, of the optimizer 'momentum'.
    bias_rate: float, learning rate of biases, times the others'; of the optimizer 'momentum'.
    skip_scales: floats, factors of pool4 and pool3 before their scores.
    """
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
    momentum: float = 0.9
    bias_rate: float = 1.0
    skip_scales: tuple = (1.0, 1.0)


RECIPES = {recipe.name: recipe for recipe in (
    Recipe('default', optimizer='adam', learning_rate=1e-4, schedule='constant', weight_decay=0.0, loss='rows',
           batch_size=16, crop_size=224, augment=['flip'], upsampling='learned'),
    Recipe('paper', optimizer='momentum', learning_rate=1e-10, schedule='constant', weight_decay=5e-4, loss='sum',
           batch_size=1, crop_size=0, augment=[], upsampling='fixed', momentum=0.99, bias_rate=2.0,
           skip_scales=(1e-2, 1e-4)),
    Recipe('adamw', optimizer='adamw', learning_rate=1e-5, schedule='constant', weight_decay=1e-6, loss='mean',
           batch_size=12, crop_size=384, augment=['flip', 'scale', 'rotate', 'colour'], upsampling='learned'),
    Recipe('poly', optimizer='momentum', learning_rate=1e-3, schedule='poly', weight_decay=5e-4, loss='mean',
           batch_size=20, crop_size=321, augment=['flip', 'scale'], upsampling='learned', bias_rate=2.0))}
FLAGS = Recipe._fields[1:10]

# ------------------------------------------------------------------------------------------- flags


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
        help='of the convolution kernels, not of biases; decoupled with adamw, else L2 in the loss')
    add('--loss', choices=('rows', 'mean', 'sum'),
        help='cross-entropy summed over each row and averaged over rows, averaged over pixels, or summed over all')
    add('--batch_size', type=utils.positive_int, help='crops a step')
    add('--crop_size', type=utils.non_negative_int, help='side of the training crops in pixels; 0: complete images')
    add('--augment', nargs='*', choices=augmentation.KINDS,
        help='how training images are varied: mirrored, scaled by 0.5 to 2, rotated by up to 10 degrees, other '
             'colours; without a value: not at all')
    add('--upsampling', choices=('learned', 'fixed'), help='whether the bilinear kernels are trained')
    parser.set_defaults(**{flag: getattr(RECIPES['default'], flag) for flag in FLAGS})


def parse(parser, argv=None):
    """Parses flags after add_flags.

    Args:
        parser: utils.ArgumentParser.
        argv: list of str or None.

    Returns:
        argparse.Namespace: `recipe` is the Recipe, overridden by the flags of FLAGS that were given.
    """
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
        line += f'; momentum {recipe.momentum:g}, biases learn {recipe.bias_rate:g} times as fast'
    if recipe.skip_scales != (1.0, 1.0):
        line += '; pool4 and pool3 scaled by {:g} and {:g}'.format(*recipe.skip_scales)
    return line


# ------------------------------------------------------------------------------------------- the update


class Update(NamedTuple):
    """One update of the weights, of `train_op`.

    learning_rate: float32 scalar, of this step. histograms: string scalar, a tf.Summary of all gradients.
    """
    train_op: tf.Operation
    learning_rate: tf.Tensor
    histograms: tf.Tensor


def build_update(recipe, losses, global_step, max_steps, mixed_precision=False):
    """The optimiser of a recipe, in the default graph.

    Args:
        recipe: Recipe.
        losses: list of float32 scalars, whose sum is minimised, with the graph's regularization losses.
        global_step: int64 variable, which the update increments.
        max_steps: int, where the schedule ends.
        mixed_precision: bool, scale the loss so that float16 gradients do not underflow.

    Returns:
        Update.
    """
    learning_rate = build_learning_rate(recipe, global_step, max_steps)
    optimizer = (tf.train.MomentumOptimizer(learning_rate, recipe.momentum) if recipe.optimizer == 'momentum' else
                 tf.train.AdamOptimizer(learning_rate))
    if mixed_precision:
        optimizer = tf.mixed_precision.MixedPrecisionLossScaleOptimizer(optimizer, 'dynamic')
    first = losses[0]
    with tf.device(first.device):
        losses = [first + tf.losses.get_regularization_loss(), *losses[1:]]
    gradients = towers.compute_gradients(optimizer, losses)
    decays = decay_kernels(learning_rate * recipe.weight_decay, gradients) if recipe.optimizer == 'adamw' else []
    bias_rate = recipe.bias_rate if recipe.optimizer == 'momentum' else 1.0
    with tf.control_dependencies(decays):
        train_op = optimizer.apply_gradients(scale_biases(gradients, bias_rate), global_step)
    return Update(train_op, learning_rate, build_histograms(gradients))


def build_learning_rate(recipe, global_step, max_steps):
    """float32 scalar, for the step after `global_step` steps."""
    if recipe.schedule == 'poly':
        return tf.train.polynomial_decay(recipe.learning_rate, global_step, max_steps, 0.0, POLY_POWER)
    return tf.constant(recipe.learning_rate, tf.float32)


def scale_biases(gradients, bias_rate):
    """Multiplies the gradients of biases: momentum is linear in them, so this is a learning rate of their own.

    Args:
        gradients: list of (gradient, variable).
        bias_rate: float.
    """
    if bias_rate == 1:
        return gradients
    return [(gradient * bias_rate if variable.op.name.endswith('/biases') else gradient, variable)
            for gradient, variable in gradients]


def decay_kernels(rate, gradients):
    """Ops that subtract `rate`, float32 scalar, times each convolution kernel from it, once all gradients are known."""
    with tf.control_dependencies([gradient for gradient, _ in gradients]):
        decays = []
        for _, variable in gradients:
            if weights.full_name(variable).endswith('/weights'):
                with tf.device(variable.device):
                    decays.append(variable.assign_sub(rate * variable.read_value()))
        return decays


def l2_decay(recipe):
    """The L2 regularisation, float, that the network must be built with."""
    return 0.0 if recipe.optimizer == 'adamw' else recipe.weight_decay


def build_histograms(gradients):
    """Histograms for TensorBoard, a serialised tf.Summary, of a list of (gradient, variable)."""
    # A histogram cannot hold what is not finite; with --mixed_precision such a step is left out.
    return tf.summary.merge([tf.summary.histogram(
        f'{variable.op.name}/gradient', tf.where(tf.is_finite(gradient), gradient, tf.zeros_like(gradient)))
        for gradient, variable in gradients])
