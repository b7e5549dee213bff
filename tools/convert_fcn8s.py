"""Converts Berkeley's FCN-8s, a caffemodel, to a run folder, which predict.py, evaluate.py and train.py take.

    python tools/convert_fcn8s.py --source fcn8s-heavy-pascal.caffemodel --output_dir fcn8s
    python predict.py --checkpoint_path fcn8s --images photo.jpg

Source: voc-fcn8s of https://github.com/shelhamer/fcn.berkeleyvision.org. The file is Caffe's NetParameter; the protobuf
library reads it. The network is train.py's, with these differences:

    Its input is BGR, and its mean colour differs. So conv1_1's input channels are reversed here, and the difference of
    the means is added to its bias.
    conv1_1 pads by 100 pixels, of the mean colour. So the run's settings have `border` and `border_colour`. Without
    this border, the cells of 32 pixels would lie 3 pixels further, and fc6 would see no grey around the image.
    fc6 and the skips lack the cells in that border: near the edges of an image the scores differ.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

if __name__ == '__main__':
    import utils
    utils.import_tensorflow()

import numpy as np
import tensorflow.compat.v1 as tf
from google.protobuf import descriptor_pb2, message, message_factory

import train
import utils
from datasets import classes
from inference.weights import network_variables
from tools.convert_vgg_weights import KINDS, fold_normalisation, save_checkpoint
from training import checkpoints, run_folder

RGB_MEAN = (122.67892, 116.66877, 104.00699)  # voc-fcn8s/net.py
BORDER = 99  # pixels on each side: conv1_1 pads by 100, of which SAME padding does 1

# The used part of Caffe's src/caffe/proto/caffe.proto: each message's fields as (name, number, type, is repeated).
MESSAGES = {'BlobShape': [('dim', 1, 'INT64', True)],
            'BlobProto': [('num', 1, 'INT32', False), ('channels', 2, 'INT32', False), ('height', 3, 'INT32', False),
                          ('width', 4, 'INT32', False), ('data', 5, 'FLOAT', True), ('shape', 7, 'BlobShape', False)],
            'LayerParameter': [('name', 1, 'BYTES', False), ('blobs', 7, 'BlobProto', True)],
            'NetParameter': [('layer', 100, 'LayerParameter', True)]}
# The layers whose names differ; the others are called as in vgg.py.
LAYERS = {'vgg_16/fc8': 'score_fr', 'vgg_16/fc8/conv_pool4': 'score_pool4', 'vgg_16/fc8/conv_pool3': 'score_pool3',
          'vgg_16/fc8/t_conv_x2_1': 'upscore2', 'vgg_16/fc8/t_conv_x2_2': 'upscore_pool4',
          'vgg_16/fc8/t_conv_x8': 'upscore8'}


def message_class(name):
    """The protobuf class of one of MESSAGES."""
    file = descriptor_pb2.FileDescriptorProto(name='caffe_weights.proto', package='caffe_weights')
    for message_name, fields in MESSAGES.items():
        described = file.message_type.add(name=message_name)
        for field, number, kind, repeated in fields:
            field = described.field.add(name=field, number=number, label=3 if repeated else 1)
            if kind in MESSAGES:
                field.type, field.type_name = field.TYPE_MESSAGE, f'.{file.package}.{kind}'
            else:
                field.type, field.options.packed = getattr(field, f'TYPE_{kind}'), repeated
    return message_factory.GetMessages([file])[f'{file.package}.{name}']


def read_blobs(path):
    """Reads a caffemodel: dict of layer names to lists of float32 arrays, as [out, in, h, w] and [out] of convolutions.
    UserError if it is damaged or another file, OSError if it cannot be opened."""
    try:
        with utils.open_file(path) as file:
            network = message_class('NetParameter').FromString(file.read())
        return {layer.name.decode(errors='replace'): [read_blob(blob) for blob in layer.blobs]
                for layer in network.layer if layer.blobs}
    except (message.DecodeError, ValueError):
        raise utils.UserError(f'{path}: is not a caffemodel, or not complete; remove it and fetch it again') from None


def read_blob(blob):
    """A BlobProto as a float32 array; ValueError if its shape does not fit. Old files give it as four numbers."""
    return np.array(blob.data, np.float32).reshape(blob.shape.dim or (blob.num, blob.channels, blob.height, blob.width))


def convert_blobs(blobs, path):
    """Turns read_blobs' result into train.py's variables, dict of names to float32 arrays; UserError, with the file's
    path, if a layer is missing, of another shape, or not one of FCN-8s."""
    network = train.Network(fc_channels=len(blobs['fc6'][0]) if 'fc6' in blobs else 4096)
    with tf.Graph().as_default():
        train.fcn(tf.placeholder(tf.float32, [1, None, None, 3]), network)
        shapes = {variable.op.name: variable.shape.as_list() for variable in network_variables()}
    if 'scale_pool4' in blobs:  # all other checks would let it pass
        raise utils.UserError(f'{path}: is the "at once" model; give fcn8s-heavy-pascal.caffemodel')
    variables = {}
    for name, shape in shapes.items():
        if '/scale_' in name:
            variables[name] = np.float32(1)
            continue
        scope, kind = (name, KINDS[0]) if name in LAYERS else name.rsplit('/', 1)
        layer = LAYERS.get(scope, os.path.basename(scope))
        variables[name] = convert_blob(blobs.get(layer, []), KINDS.index(kind), shape, f'{path}: {kind} of {layer}')
    kernel, bias = 'vgg_16/conv1/conv1_1/weights', 'vgg_16/conv1/conv1_1/biases'
    variables[kernel], variables[bias] = fold_normalisation(variables[kernel][:, :, ::-1], variables[bias], RGB_MEAN,
                                                            (1, 1, 1))
    return variables


def convert_blob(of_layer, index, shape, name):
    """One of a layer's blobs as a variable; [out, in, h, w] becomes [h, w, in, out], also of a transposed convolution,
    which both libraries compute as the gradient of a convolution. UserError, with `name`, if it does not fit."""
    values = of_layer[index] if index < len(of_layer) else np.empty(0)
    values = values.transpose(2, 3, 1, 0) if values.ndim == len(shape) == 4 else values.ravel()
    if list(values.shape) != shape:
        raise utils.UserError(f'{name} are missing or not {shape}; give fcn8s-heavy-pascal.caffemodel')
    return values


def convert(source, output_dir):
    """Writes the run folder; the file `checkpoint`, without which it is not found, comes last."""
    utils.quiet_tensorflow()
    variables = convert_blobs(read_blobs(source), source)
    train_dir = run_folder.make(output_dir)
    if os.listdir(train_dir):
        raise utils.UserError(f'--output_dir {output_dir}: holds a run already; remove it, or name another')
    settings = {'model': 'fcn_8s', 'fc_channels': len(variables['vgg_16/fc6/biases']), 'border': BORDER,
                'border_colour': RGB_MEAN}
    run_folder.save_settings(train_dir, settings, classes.VOC, source, resumed=False)
    save_checkpoint(os.path.join(train_dir, 'model.ckpt-0'), variables)
    checkpoints.keep_newest(train_dir, 0)
    print(f'{source} -> {output_dir}: FCN-8s, {sum(values.size for values in variables.values()):,} parameters')


def parse_args(argv=None):
    parser = utils.ArgumentParser("Converts Berkeley's FCN-8s, a caffemodel, to the folder of a run.")
    parser.add_argument('--source', default='fcn8s-heavy-pascal.caffemodel', help='the file')
    parser.add_argument('--output_dir', default='fcn8s', help='run folder to write')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    convert(args.source, args.output_dir)


if __name__ == '__main__':
    utils.run_program(main)
