import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import tf_slim as slim

import vgg

pytestmark = pytest.mark.usefixtures('full_network')

# The variables of the published vgg_16.ckpt, as its own listing shows them.
CONVOLUTIONS = {'conv1/conv1_1': (3, 64), 'conv1/conv1_2': (64, 64), 'conv2/conv2_1': (64, 128),
                'conv2/conv2_2': (128, 128), 'conv3/conv3_1': (128, 256), 'conv3/conv3_2': (256, 256),
                'conv3/conv3_3': (256, 256), 'conv4/conv4_1': (256, 512), 'conv4/conv4_2': (512, 512),
                'conv4/conv4_3': (512, 512), 'conv5/conv5_1': (512, 512), 'conv5/conv5_2': (512, 512),
                'conv5/conv5_3': (512, 512)}
PUBLISHED = {f'vgg_16/{layer}/weights': [3, 3, *channels] for layer, channels in CONVOLUTIONS.items()}
PUBLISHED.update({'vgg_16/fc6/weights': [7, 7, 512, 4096], 'vgg_16/fc7/weights': [1, 1, 4096, 4096],
                  'vgg_16/fc8/weights': [1, 1, 4096, 1000]})
PUBLISHED.update({name.replace('weights', 'biases'): shape[-1:] for name, shape in PUBLISHED.items()})


def build(size=32, weight_decay=0.0, **options):
    with slim.arg_scope(vgg.vgg_arg_scope(weight_decay)):
        return vgg.vgg_16(tf.ones([1, size, size, 3]), **{'fc_channels': 8, 'num_classes': 5, 'spatial_squeeze': False,
                                                          'fc_conv_padding': 'SAME', **options})


def test_variables_are_the_published_checkpoints():
    net, _ = build(224, fc_channels=4096, num_classes=1000, spatial_squeeze=True, fc_conv_padding='VALID')
    assert net.shape == [1, 1000]
    assert {v.op.name: v.shape.as_list() for v in tf.global_variables()} == PUBLISHED
    assert sum(v.shape.num_elements() for v in tf.trainable_variables()) == 138_357_544


def test_defaults_are_those_of_classification():
    net, end_points = vgg.vgg_16(tf.zeros([2, 224, 224, 3]), fc_channels=8)
    assert vgg.vgg_16.default_image_size == 224
    assert net.shape == [2, 1000] and end_points['vgg_16/fc6'].shape == [2, 1, 1, 8]


def test_pools_halve_and_same_padding_keeps_the_space():
    net, end_points = build(96)
    assert [end_points[f'vgg_16/pool{i}'].shape.as_list() for i in range(1, 6)] == [
        [1, 48, 48, 64], [1, 24, 24, 128], [1, 12, 12, 256], [1, 6, 6, 512], [1, 3, 3, 512]]
    assert net.shape == [1, 3, 3, 5] and end_points['vgg_16/fc8'] is net


def test_end_points_keep_their_keys_however_and_wherever_the_net_is_built():
    _, first = build()
    with tf.variable_scope(tf.get_variable_scope(), reuse=True):
        _, again = build()
    with tf.variable_scope('tower'):
        _, inside = build()
    expected = [f'vgg_16/{layer}' for layer in (
        'conv1/conv1_1', 'conv1/conv1_2', 'pool1', 'conv2/conv2_1', 'conv2/conv2_2', 'pool2', 'conv3/conv3_1',
        'conv3/conv3_2', 'conv3/conv3_3', 'pool3', 'conv4/conv4_1', 'conv4/conv4_2', 'conv4/conv4_3', 'pool4',
        'conv5/conv5_1', 'conv5/conv5_2', 'conv5/conv5_3', 'pool5', 'fc6', 'fc7', 'fc8')]
    assert list(first) == list(again) == list(inside) == expected
    assert len({end_points['vgg_16/pool4'].name for end_points in (first, again, inside)}) == 3
    assert len(tf.trainable_variables('vgg_16/')) == len(tf.trainable_variables('tower/vgg_16/')) == 32


def test_without_classes_the_net_ends_with_fc7():
    net, end_points = build(num_classes=None)
    assert net is end_points['vgg_16/fc7'] and not tf.trainable_variables('vgg_16/fc8')


@pytest.mark.slow
@pytest.mark.parametrize('as_tensor', [False, True])
def test_dropout_acts_in_training_only(as_tensor):
    flag = tf.placeholder(tf.bool, [])
    if as_tensor:
        net, _ = build(is_training=flag)
        runs = {False: (net, {flag: False}), True: (net, {flag: True})}
    else:
        runs = {}
        for training in (False, True):
            with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
                runs[training] = (build(is_training=training)[0], {})
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        session.run([v.assign(tf.ones_like(v)) for v in tf.trainable_variables('vgg_16/fc8')])
        still = [session.run(*runs[False]) for _ in range(3)]
        dropped = [session.run(*runs[True]) for _ in range(8)]
    assert all(np.array_equal(still[0], other) for other in still[1:])
    assert len({value.tobytes() for value in dropped}) > 1


def test_with_a_seed_dropout_is_a_function_of_it():
    """Which activations fc6 and fc7 lose: half of them, other ones in the two layers, the same for the same seed."""
    seed = tf.placeholder(tf.int64, [2])
    inputs = tf.ones([1, 4, 4, 256])
    dropped = [vgg.dropout(inputs, layer, tf.constant(True), seed) for layer in (6, 7)]
    kept = vgg.dropout(inputs, 6, tf.constant(False), seed)
    with tf.Session() as session:
        draws = {step: session.run(dropped, {seed: [3, step]}) for step in (1, 2, 1)}
        again, other = session.run(dropped, {seed: [3, 1]}), session.run(dropped, {seed: [4, 1]})
        assert (session.run(kept, {seed: [3, 1]}) == 1).all()
    with tf.Session() as session:  # another session has no other state
        np.testing.assert_array_equal(session.run(dropped, {seed: [3, 2]}), draws[2])
    np.testing.assert_array_equal(again, draws[1])
    for values in (*draws[1], *draws[2]):
        assert set(np.unique(values)) == {0, 2} and abs((values == 0).mean() - 0.5) < 0.04  # 5 standard deviations
    for one, two in ((draws[1][0], draws[1][1]), (draws[1][0], draws[2][0]), (draws[1][0], other[0])):
        assert abs((one == two).mean() - 0.5) < 0.04  # independent


def test_the_seed_reaches_the_network():
    seed = tf.placeholder(tf.int64, [2])
    net, _ = build(dropout_seed=seed, num_classes=5, size=64)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        session.run([v.assign(tf.ones_like(v)) for v in tf.trainable_variables('vgg_16/fc8')])
        scores = [session.run(net, {seed: [0, step]}).tobytes() for step in (0, 1, 2, 3, 0, 1, 2, 3)]
    assert scores[:4] == scores[4:] and len(set(scores)) > 1


def test_scores_start_at_zero_and_kernels_as_he():
    net, _ = build(fc_channels=64)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        assert not session.run(net).any()
        kernel = session.run(tf.trainable_variables('vgg_16/conv4/conv4_2/weights')[0])
    assert kernel.std() == pytest.approx(np.sqrt(2 / (3 * 3 * 512)), rel=0.01)


def test_weight_decay_is_half_the_squared_kernels():
    build(weight_decay=0.01)
    kernels = [v for v in tf.trainable_variables() if v.op.name.endswith('weights')]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        loss, values = session.run([tf.losses.get_regularization_loss(), kernels])
    assert len(values) == 16
    assert loss == pytest.approx(0.005 * sum((value.astype(float) ** 2).sum() for value in values), rel=1e-4)


def test_no_weight_decay_adds_nothing():
    build()
    assert not tf.losses.get_regularization_losses()


@pytest.mark.parametrize('padding, kernel_size', [('SAME', [7, 7]), ('VALID', [7, 7]), ('SAME', [1, 1])])
def test_a_fully_connected_layer_is_the_convolution(padding, kernel_size):
    """Outputs, and gradients of inputs and weights, as slim.conv2d has them on the same variables."""
    random = np.random.RandomState(0)
    inputs = tf.constant(random.normal(size=(2, 9, 8, 16)).astype(np.float32))
    found = []
    for layer in (slim.conv2d, vgg.fully_connected):
        with tf.variable_scope('', reuse=tf.AUTO_REUSE), slim.arg_scope(vgg.vgg_arg_scope()):
            outputs = layer(inputs, 24, kernel_size, padding=padding, scope='fc6',
                            biases_initializer=tf.ones_initializer())
        found.append([outputs, *tf.gradients(outputs ** 2, [inputs, *tf.trainable_variables()])])
    assert len(tf.trainable_variables()) == 2 and found[0][0].shape == found[1][0].shape
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for expected, ours in zip(*session.run(found), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
