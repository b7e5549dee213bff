"""Recipes: what a training minimises and how. Presets of train.py's flags, and the optimisers that these flags name.

    python train.py --recipe paper --learning_rate 1e-9

A recipe only sets defaults: every flag that is given goes before it. Sources: `owner`, the settings this suite was
asked for; `paper`, the "at once" FCN-8s of Long, Shelhamer, Darrell (solver and net of voc-fcn8s-atonce in their Caffe
repository); `adamw`, Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, with the rates of
fmahoudeau's FCN-Segmentation-TensorFlow; `poly`, the decay of Chen et al., "DeepLab", with its rates for VGG16.
"""
import argparse
import collections

import numpy as np
import tensorflow.compat.v1 as tf

import utils
from datasets import augmentation
from training import checkpoints, towers

RECIPES = {
    'owner': {'optimizer': 'adam', 'learning_rate': 1e-4, 'momentum': None, 'bias_rate': None, 'schedule': 'constant',
              'weight_decay': 0.0, 'loss': 'rows', 'batch_size': 16, 'crop_size': 224, 'augment': ['flip'],
              'upsampling': 'learned', 'skip_scales': [1.0, 1.0]},
    'paper': {'optimizer': 'momentum', 'learning_rate': 1e-10, 'momentum': 0.99, 'bias_rate': 2.0,
              'schedule': 'constant', 'weight_decay': 5e-4, 'loss': 'sum', 'batch_size': 1, 'crop_size': 0,
              'augment': [], 'upsampling': 'fixed', 'skip_scales': [1e-2, 1e-4]},
    'adamw': {'optimizer': 'adamw', 'learning_rate': 1e-5, 'momentum': None, 'bias_rate': None, 'schedule': 'constant',
              'weight_decay': 1e-6, 'loss': 'mean', 'batch_size': 12, 'crop_size': 384,
              'augment': ['flip', 'scale', 'rotate', 'colour'], 'upsampling': 'learned', 'skip_scales': [1.0, 1.0]},
    'poly': {'optimizer': 'momentum', 'learning_rate': 1e-3, 'momentum': 0.9, 'bias_rate': 2.0, 'schedule': 'poly',
             'weight_decay': 5e-4, 'loss': 'mean', 'batch_size': 20, 'crop_size': 321, 'augment': ['flip', 'scale'],
             'upsampling': 'learned', 'skip_scales': [1.0, 1.0]},
}
FLAGS = tuple(RECIPES['owner'])
OF_MOMENTUM = {'momentum': 0.9, 'bias_rate': 1.0}  # flags of --optimizer momentum alone, and their defaults with it
POLY_POWER = 0.9

# ------------------------------------------------------------------------------------------- flags


def add_flags(parser):
    """Adds --recipe and the flags that a recipe sets; the help shows the owner's values as defaults."""
    add = parser.add_argument_group('recipe', 'what is minimised and how; the defaults shown are those of --recipe '
                                    'owner').add_argument
    add('--recipe', choices=RECIPES, default='owner', help='presets of the flags below; what is given goes before them')
    add('--optimizer', choices=('adam', 'adamw', 'momentum'), help='adamw is Adam with decoupled weight decay')
    add('--learning_rate', type=utils.non_negative_float, help='of the first step')
    add('--momentum', type=utils.share, help=f'of --optimizer momentum; {OF_MOMENTUM["momentum"]} without a recipe')
    add('--bias_rate', type=utils.non_negative_float,
        help=f'learning rate of biases, times --learning_rate; of --optimizer momentum; {OF_MOMENTUM["bias_rate"]} '
             'without a recipe')
    add('--schedule', choices=('constant', 'poly'),
        help=f'learning rate over the steps; poly falls to 0 at --max_steps as (1 - step / max_steps) ^ {POLY_POWER}')
    add('--weight_decay', type=utils.non_negative_float,
        help='of the convolution kernels, not of biases; decoupled with adamw, else L2 in the loss')
    add('--loss', choices=('rows', 'mean', 'sum'),
        help='cross-entropy summed over each row and averaged over rows, averaged over pixels, or summed over all')
    add('--batch_size', type=utils.positive_int, help='crops a step')
    add('--crop_size', type=utils.non_negative_int, help='side of the training crops in pixels; 0: whole images')
    add('--augment', nargs='*', choices=augmentation.KINDS,
        help='how training images are varied: mirrored, scaled by 0.5 to 2, rotated by up to 10 degrees, other '
             'colours; without a word: not at all')
    add('--upsampling', choices=('learned', 'fixed'), help='whether the bilinear kernels are trained')
    add('--skip_scales', type=utils.positive_float, nargs=2, metavar=('POOL4', 'POOL3'),
        help='factors of pool4 and pool3 before their scores')
    parser.set_defaults(**RECIPES['owner'])


def parse(parser, argv=None):
    """Parses flags, of which those of a recipe take their defaults from it.

    Args:
        parser: utils.ArgumentParser, after add_flags.
        argv: list of str or None.

    Returns:
        argparse.Namespace; what only --optimizer momentum has is None with the others.
    """
    args = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(FLAGS)))  # what is not given stays None
    given = {flag: value for flag, value in vars(args).items() if flag in FLAGS and value is not None}
    settings = {**RECIPES[args.recipe], **given}
    for flag, default in OF_MOMENTUM.items():
        if settings['optimizer'] == 'momentum':
            settings[flag] = default if settings[flag] is None else settings[flag]
        elif flag in given:
            parser.error(f'--{flag} goes with --optimizer momentum')
        else:
            settings[flag] = None
    vars(args).update(settings)
    return args


def describe(args):
    """The settings of a recipe as flags, one line."""
    def show(value):
        return ' '.join(map(show, value)) if isinstance(value, list) else f'{value:g}' if isinstance(
            value, float) else str(value)
    return f'recipe {args.recipe}: ' + ' '.join(
        f'--{name} {show(getattr(args, name))}'.rstrip() for name in FLAGS if getattr(args, name) is not None)


# ------------------------------------------------------------------------------------------- the loss's class weights


def median_frequency_weights(pixels):
    """Weights that make up for rare classes: the median of the classes' shares of all pixels, divided by a class's own.

    Source: Eigen and Fergus, "Predicting Depth, Surface Normals and Semantic Labels with a Common Multi-Scale
    Convolutional Architecture", ICCV 2015, with shares of all images instead of those that show the class.

    Args:
        pixels: list of C ints, the training pixels of each class.

    Returns:
        float32 [C]; 1 for a class that does not occur.
    """
    pixels = np.asarray(pixels, np.float64)
    occurs = pixels > 0
    median = np.median(pixels[occurs]) if occurs.any() else 1.0
    return np.divide(median, pixels, out=np.ones_like(pixels), where=occurs).astype(np.float32)


# ------------------------------------------------------------------------------------------- the update

Update = collections.namedtuple('Update', 'train_op gradients learning_rate')


def build_update(args, losses, global_step):
    """The optimiser of args, in the default graph.

    Args:
        args: of train.parse_args.
        losses: list of float32 scalars, whose sum is minimised, with the graph's regularization losses.
        global_step: int64 variable, which the update increments.

    Returns:
        Update: train_op; `gradients`, list of (gradient, variable); `learning_rate`, float32 scalar, of this step.
    """
    learning_rate = build_learning_rate(args, global_step)
    optimizer = (tf.train.MomentumOptimizer(learning_rate, args.momentum) if args.optimizer == 'momentum' else
                 tf.train.AdamOptimizer(learning_rate))
    if args.mixed_precision:
        optimizer = tf.mixed_precision.MixedPrecisionLossScaleOptimizer(optimizer, 'dynamic')
    first = losses[0]
    with tf.device(first.device):
        losses = [first + tf.losses.get_regularization_loss(), *losses[1:]]
    gradients = towers.compute_gradients(optimizer, losses)
    decays = decay_kernels(learning_rate * args.weight_decay, gradients) if args.optimizer == 'adamw' else []
    with tf.control_dependencies(decays):
        train_op = optimizer.apply_gradients(favour_biases(gradients, args.bias_rate), global_step)
    return Update(train_op, gradients, learning_rate)


def build_learning_rate(args, global_step):
    """float32 scalar, for the step after `global_step` steps."""
    if args.schedule == 'poly':
        return tf.train.polynomial_decay(args.learning_rate, global_step, args.max_steps, 0.0, POLY_POWER)
    return tf.constant(args.learning_rate, tf.float32)


def favour_biases(gradients, bias_rate):
    """Multiplies the gradients of biases: to momentum, which is linear in them, that is a learning rate of their own.

    Args:
        gradients: list of (gradient, variable).
        bias_rate: float or None, for 1.
    """
    if bias_rate in (None, 1):
        return gradients
    return [(gradient * bias_rate if variable.op.name.endswith('/biases') else gradient, variable)
            for gradient, variable in gradients]


def decay_kernels(rate, gradients):
    """Ops that take a share `rate`, float32 scalar, off each convolution kernel once all gradients are known."""
    with tf.control_dependencies([gradient for gradient, _ in gradients]):
        decays = []
        for _, variable in gradients:
            if checkpoints.whole_name(variable).endswith('/weights'):
                with tf.device(variable.device):
                    decays.append(variable.assign_sub(rate * variable.read_value()))
        return decays


def l2_decay(args):
    """The L2 regularisation, float, that the network is to be built with."""
    return 0.0 if args.optimizer == 'adamw' else args.weight_decay
