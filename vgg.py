"""VGG16 as a fully convolutional network, with the variable names and shapes of tf-slim's published vgg_16.ckpt.

    with slim.arg_scope(vgg.vgg_arg_scope()):
        net, end_points = vgg.vgg_16(images - vgg.RGB_MEAN, num_classes=21, spatial_squeeze=False,
                                     fc_conv_padding='SAME')

tf-slim's own `nets.vgg.vgg_16` of release 1.1.0 has no `fc_conv_padding`, without which a semantic segmentation network
loses its border; hence this file.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", configuration D.
"""
import tensorflow.compat.v1 as tf
import tf_slim as slim

RGB_MEAN = (123.68, 116.78, 103.94)  # mean of ImageNet's training pixels, which the published weights expect removed

# Convolution layers of 3x3 and their channels; a 2x2 max pooling follows each block.
BLOCKS = (('conv1', 2, 64), ('conv2', 2, 128), ('conv3', 3, 256), ('conv4', 3, 512), ('conv5', 3, 512))


def vgg_arg_scope(weight_decay=0.0):
    """Defaults of all layers: ReLU, He's initialisation, zero biases, SAME padding, L2 on weights if asked for.

    Args:
        weight_decay: float; above 0, weight_decay / 2 * |w|^2 of each kernel joins the graph's regularization losses.

    Returns:
        An arg_scope for `slim.arg_scope`.
    """
    regularizer = slim.l2_regularizer(weight_decay) if weight_decay > 0 else None
    with slim.arg_scope([slim.conv2d, fully_connected],
                        activation_fn=tf.nn.relu,
                        padding='SAME',
                        weights_initializer=tf.variance_scaling_initializer(scale=2.0),  # He et al. 2015
                        weights_regularizer=regularizer,
                        biases_initializer=tf.zeros_initializer()) as arg_scope:
        return arg_scope


def vgg_16(inputs, num_classes=1000, is_training=True, spatial_squeeze=True, fc_conv_padding='VALID',
           fc_channels=4096, dropout_seed=None):
    """Builds VGG16 with its three fully connected layers as convolutions of 7x7, 1x1 and 1x1.

    Args:
        inputs: float32 [B, H, W, 3], RGB with RGB_MEAN subtracted.
        num_classes: int, channels of fc8; None or 0 ends the network with fc7.
        is_training: bool or scalar bool tensor; dropout acts only while it is true.
        spatial_squeeze: bool; true drops the 1x1 space of classification, leaving [B, num_classes].
        fc_conv_padding: 'VALID' for classification of 224x224; 'SAME' keeps fc6 at H/32 x W/32, for any size.
        fc_channels: int, channels of fc6 and fc7; the published weights have 4096.
        dropout_seed: int64 [2], which alone decides what dropout drops; None: a hidden state decides, as in tf-slim.

    Returns fc8's float32 output, [B, H/32, W/32, num_classes] under SAME padding, and every layer's output as a dict,
    'vgg_16/conv1/conv1_1' ... 'vgg_16/fc8', whose keys do not change with the scopes around it.
    """
    inputs.shape.assert_has_rank(4)
    end_points = {}

    def keep(net, layer):
        end_points[f'vgg_16/{layer}'] = net
        return net

    with tf.variable_scope('vgg_16'):
        net = inputs
        for number, (block, repeats, channels) in enumerate(BLOCKS, start=1):
            with tf.variable_scope(block):
                for repeat in range(1, repeats + 1):
                    layer = f'{block}_{repeat}'
                    net = keep(slim.conv2d(net, channels, [3, 3], scope=layer), f'{block}/{layer}')
            net = keep(slim.max_pool2d(net, [2, 2], scope=f'pool{number}'), f'pool{number}')

        net = keep(fully_connected(net, fc_channels, [7, 7], padding=fc_conv_padding, scope='fc6'), 'fc6')
        net = dropout(net, 6, is_training, dropout_seed)
        net = keep(fully_connected(net, fc_channels, [1, 1], scope='fc7'), 'fc7')
        if num_classes:
            net = dropout(net, 7, is_training, dropout_seed)
            # Scores start at zero, as in the FCN paper: all classes equally likely, a loss of ln(num_classes).
            net = slim.conv2d(net, num_classes, [1, 1], activation_fn=None,
                              weights_initializer=tf.zeros_initializer(), scope='fc8')
            if spatial_squeeze:
                net = tf.squeeze(net, [1, 2], name='fc8/squeezed')
            keep(net, 'fc8')
    return net, end_points


vgg_16.default_image_size = 224


@slim.add_arg_scope
def fully_connected(inputs, channels, kernel_size, padding='SAME', scope=None, activation_fn=tf.nn.relu,
                    **variables):
    """A fully connected layer as a convolution: slim.conv2d, with its variables, arguments and result.

    On a CPU it is computed as one matrix product over patches, because oneDNN reorders a convolution's weights at every
    call: 0.4 GB for fc6. That halves the processor time of a prediction (500 x 375 pixels: 1.5 s instead of 3.0).
    """
    if tf.config.list_physical_devices('GPU'):
        return slim.conv2d(inputs, channels, kernel_size, padding=padding, scope=scope, activation_fn=activation_fn,
                           **variables)
    with tf.variable_scope(scope):
        kernel = slim.model_variable('weights', [*kernel_size, inputs.shape[-1], channels],
                                     initializer=variables.get('weights_initializer'),
                                     regularizer=variables.get('weights_regularizer'))
        biases = slim.model_variable('biases', [channels],
                                     initializer=variables.get('biases_initializer', tf.zeros_initializer()))
        patches = gather_patches(inputs, kernel_size, padding)
        depth = patches.shape[-1]
        products = tf.matmul(tf.reshape(patches, [-1, depth]), tf.reshape(kernel, [depth, channels]))
        outputs = tf.reshape(products, tf.concat([tf.shape(patches)[:3], [channels]], axis=0))
        outputs.set_shape([*patches.shape[:3], channels])
        # After the reshape, because oneDNN would reorder the weights of a product that is fused with its biases.
        return activation_fn(tf.nn.bias_add(outputs, biases))


def gather_patches(inputs, kernel_size, padding):
    """What each position of a convolution sees: [B, H, W, D] -> [B, H', W', K * K * D], as a kernel's rows lie."""
    rows, columns = kernel_size
    if padding == 'SAME':
        inputs = tf.pad(inputs, [[0, 0], [rows // 2, rows // 2], [columns // 2, columns // 2], [0, 0]])
    height, width = tf.shape(inputs)[1] - rows + 1, tf.shape(inputs)[2] - columns + 1
    patches = tf.concat([inputs[:, row:row + height, column:column + width]
                         for row in range(rows) for column in range(columns)], axis=-1)
    known = [side and side - kernel + 1 for side, kernel in zip(inputs.shape[1:3], kernel_size)]
    patches.set_shape([inputs.shape[0], *known, patches.shape[-1]])  # TensorFlow Lite has no ensure_shape
    return patches


def dropout(inputs, layer, is_training, seed):
    """Dropout of half of the activations of `layer`, 6 or 7; `seed` is int64 [2] below 2^32, or None, see vgg_16."""
    if seed is None:
        return slim.dropout(inputs, 0.5, is_training=is_training, scope=f'dropout{layer}')
    rate = 0.5 * tf.cast(is_training, tf.float32)
    own_seed = seed + tf.constant([layer << 32, 0], tf.int64)  # else both layers would drop the same units
    # Without rng_alg, XLA would choose another generator and draw other numbers.
    return tf.nn.experimental.stateless_dropout(inputs, rate, own_seed, rng_alg='philox', name=f'dropout{layer}')
