"""The updates of the recipes, step by step against NumPy, on a softmax classifier of 3 features and 4 classes."""
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import tf_slim as slim

import train
import vgg
from training import recipes

STEPS = 3
random = np.random.RandomState(0)
IMAGES = random.uniform(-1, 1, (2, 3, 5, 3)).astype(np.float32)
LABELS = random.choice([0, 1, 2, 3, 255], (2, 3, 5)).astype(np.int32)
KERNEL, BIASES = random.uniform(-1, 1, (3, 4)), random.uniform(-1, 1, 4)


def read_flags(*flags):
    """The Recipe of train.py's flags."""
    return train.parse_args(list(flags)).recipe


def train_in_tensorflow(*flags):
    """Kernel, biases and learning rate after each of STEPS steps of the classifier, by the flags of train.py."""
    recipe = read_flags(*flags)
    with slim.arg_scope(vgg.vgg_arg_scope(recipes.l2_decay(recipe))):
        logits = slim.conv2d(tf.constant(IMAGES), 4, [1, 1], activation_fn=None, scope='score')
    loss, *_ = train.segmentation_loss(logits, tf.constant(LABELS), recipe.loss)
    step = tf.train.get_or_create_global_step()
    optimizer, learning_rate = recipes.build_optimizer(recipe, step, max_steps=5)
    update = recipes.build_update(recipe, optimizer, optimizer.compute_gradients(loss), step)
    kernel, biases = tf.trainable_variables()
    found = []
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        session.run([kernel.assign(KERNEL.reshape(1, 1, 3, 4)), biases.assign(BIASES)])
        for _ in range(STEPS):
            rate, _ = session.run([learning_rate, update.train_op])
            found.append((*session.run([kernel, biases]), rate))
    return found


def gradients(kernel, biases, normaliser):
    """Of the cross-entropy summed over the pixels that are not void, divided by `normaliser`."""
    counted = LABELS != 255
    features, labels = IMAGES[counted].astype(np.float64), LABELS[counted]
    exponentials = np.exp(features @ kernel + biases)
    error = exponentials / exponentials.sum(axis=1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1
    return features.T @ error / normaliser, error.sum(axis=0) / normaliser


def assert_equal_steps(found, expected):
    for (kernel, biases, rate), (its_kernel, its_biases, its_rate) in zip(found, expected, strict=True):
        np.testing.assert_allclose(kernel.reshape(3, 4), its_kernel, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(biases, its_biases, rtol=2e-5, atol=1e-6)
        assert rate == pytest.approx(its_rate, rel=1e-6)


def momentum_steps(normaliser, momentum, decay, rates):
    """As Caffe's SGD has it: a velocity each; biases learn at twice the rate and do not decay."""
    kernel, biases, kernel_velocity, bias_velocity = KERNEL.copy(), BIASES.copy(), 0.0, 0.0
    for rate in rates:
        of_kernel, of_biases = gradients(kernel, biases, normaliser)
        kernel_velocity = momentum * kernel_velocity + of_kernel + decay * kernel
        bias_velocity = momentum * bias_velocity + 2 * of_biases
        kernel, biases = kernel - rate * kernel_velocity, biases - rate * bias_velocity
        yield kernel, biases, rate


def adam_steps(normaliser, decay, rates):
    """Loshchilov and Hutter's algorithm 2: the kernel decays beside Adam's step, which does not see it.

    `decay` is the first step's; it falls as the rate does.
    """
    values, first, second = [KERNEL.copy(), BIASES.copy()], [0.0, 0.0], [0.0, 0.0]
    for step, rate in enumerate(rates, start=1):
        for index, gradient in enumerate(gradients(*values, normaliser)):
            first[index] = 0.9 * first[index] + 0.1 * gradient
            second[index] = 0.999 * second[index] + 0.001 * gradient ** 2
            # TensorFlow's epsilon is added before the second moment's bias is taken out.
            move = first[index] / (1 - 0.9 ** step) / (
                np.sqrt(second[index] / (1 - 0.999 ** step)) + 1e-8 / np.sqrt(1 - 0.999 ** step))
            values[index] = values[index] - rate * move - (decay * rate / rates[0] * values[index] if index == 0 else 0)
        yield values[0].copy(), values[1].copy(), rate


def test_the_papers_update():
    """Summed loss, momentum 0.99, weight decay on the kernel alone, biases at twice the rate; faster than published."""
    found = train_in_tensorflow('--recipe', 'paper', '--learning_rate', '0.01', '--weight_decay', '0.5')
    assert_equal_steps(found, momentum_steps(1, 0.99, 0.5, [0.01] * STEPS))


def test_the_polys_update():
    """Mean loss; the rate falls to 0 at step 5, as (1 - steps done / 5) ^ 0.9."""
    found = train_in_tensorflow('--recipe', 'poly', '--learning_rate', '0.5', '--weight_decay', '0.1')
    rates = [0.5, 0.5 * 0.8 ** 0.9, 0.5 * 0.6 ** 0.9]
    assert_equal_steps(found, momentum_steps((LABELS != 255).sum(), 0.9, 0.1, rates))


def test_the_adamws_update():
    found = train_in_tensorflow('--recipe', 'adamw', '--learning_rate', '0.1', '--weight_decay', '0.2')
    assert_equal_steps(found, adam_steps((LABELS != 255).sum(), 0.2, [0.1] * STEPS))


def test_the_defaults_update():
    """Adam; the loss is summed over each row of 5 pixels, the mean over 2 * 3 rows."""
    found = train_in_tensorflow('--learning_rate', '0.1')
    assert_equal_steps(found, adam_steps(6, 0.0, [0.1] * STEPS))


def test_a_bias_rate_acts_with_momentum_only():
    """The paper's biases learn twice as fast by momentum, as fast as kernels by Adam."""
    found = train_in_tensorflow('--recipe', 'paper', '--optimizer', 'adam', '--learning_rate', '0.1',
                                '--weight_decay', '0')
    assert_equal_steps(found, adam_steps(1, 0.0, [0.1] * STEPS))


# ------------------------------------------------------------------------------------------- flags


def test_the_papers_published_settings():
    """As in solver.prototxt and net.py of voc-fcn8s-atonce."""
    recipe = read_flags('--recipe', 'paper')
    assert (recipe.optimizer, recipe.learning_rate, recipe.momentum, recipe.bias_rate, recipe.weight_decay) == (
        'momentum', 1e-10, 0.99, 2, 5e-4)
    assert (recipe.loss, recipe.batch_size, recipe.crop_size, recipe.augment, recipe.upsampling, recipe.skip_scales
            ) == ('sum', 1, 0, [], 'fixed', (0.01, 0.0001))


def test_a_flag_overrides_the_recipe():
    recipe = read_flags('--recipe', 'poly', '--batch_size', '4', '--weight_decay', '0', '--augment')
    assert recipe == recipes.RECIPES['poly']._replace(batch_size=4, weight_decay=0, augment=[])
    assert recipe.crop_size == 321
    assert read_flags('--recipe', 'adamw', '--batch_size', '16').batch_size == 16  # which is the default recipe's


def test_the_default_recipe():
    assert read_flags() == read_flags('--recipe', 'default')
    recipe = read_flags()
    assert (recipe.optimizer, recipe.learning_rate, recipe.batch_size, recipe.crop_size, recipe.augment) == (
        'adam', 1e-4, 16, 224, ['flip'])
    assert (recipe.momentum, recipe.bias_rate, recipe.skip_scales) == (0.9, 1, (1, 1))


@pytest.mark.parametrize('flags', [['--momentum', '0.9', '--optimizer', 'momentum'], ['--bias_rate', '2'],
                                   ['--skip_scales', '0.01', '0.0001'], ['--augment', 'blur'], ['--recipe', 'mine'],
                                   ['--recipe', 'owner']])
def test_unknown_flags_and_values_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        train.parse_args(flags)
    assert ended.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_a_recipe_is_described_in_one_line():
    assert recipes.describe(read_flags('--recipe', 'paper', '--crop_size', '64')) == (
        'recipe paper: --optimizer momentum --learning_rate 1e-10 --schedule constant --weight_decay 0.0005 --loss sum '
        '--batch_size 1 --crop_size 64 --augment --upsampling fixed; momentum 0.99, biases learn 2 times as fast; '
        'pool4 and pool3 scaled by 0.01 and 0.0001')
    assert recipes.describe(read_flags()) == (
        'recipe default: --optimizer adam --learning_rate 0.0001 --schedule constant --weight_decay 0 --loss rows '
        '--batch_size 16 --crop_size 224 --augment flip --upsampling learned')
