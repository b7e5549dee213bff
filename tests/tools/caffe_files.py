"""Random FCN-8s in Caffe's two formats: the weights as a caffemodel, the layers as a prototxt.

    PYTHONPATH=. python tests/tools/caffe_files.py

writes fcn8s_by_opencv.npz beside this file: what OpenCV computes from them. That needs an environment with
opencv-python-headless 4.10 in place of 5, which no longer reads caffemodels.
"""
import os
import pathlib
import tempfile

import cv2
import numpy as np

import vgg
from tools import convert_fcn8s

BLOCKS = (('conv1', 2, 8), ('conv2', 2, 8), ('conv3', 3, 16), ('conv4', 3, 16), ('conv5', 3, 16))
FC_CHANNELS = 16
UPSCORES = {'upscore2': 2, 'upscore_pool4': 2, 'upscore8': 8}

OUTPUTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'fcn8s_by_opencv.npz')
SEEDS = (1, 2)
SIZES = ((186, 250), (281, 211), (240, 320))  # height, width; only the first needs no filling up
STEP = 17  # pixels between those whose scores are kept; prime, so that all places in a cell occur
BGR_MEAN = (104.00699, 116.66877, 122.67892)


def draw_texture(height, width, seed):
    """A picture with details of all sizes, uint8 RGB [height, width, 3]; whole numbers only, the same everywhere."""
    random = np.random.RandomState(seed)
    picture = np.full((height, width, 3), 120)
    for cell in (64, 24, 9, 3):
        blocks = random.randint(-40, 41, (height // cell + 1, width // cell + 1, 3))
        picture += np.kron(blocks, np.ones((cell, cell, 1), int))[:height, :width]
    return np.clip(picture, 0, 255).astype(np.uint8)


def random_blobs(seed, fc_channels=FC_CHANNELS, number_of_classes=21):
    """Weights of a random FCN-8s in Caffe's order: dict of layer names to lists of float32 arrays.

    He's scale keeps the activations of all layers at one size. The kernels' sums are zero after conv1_1, because
    otherwise the mean of ReLU's outputs would decide which class wins everywhere. No kernel is symmetric, not
    even those of upsampling.
    """
    random = np.random.RandomState(seed)
    shapes, channels = {}, 3
    for block, repeats, width in vgg.BLOCKS:
        for layer in range(1, repeats + 1):
            shapes[f'{block}_{layer}'] = (width, channels, 3, 3)
            channels = width
    widths = [width for _, _, width in vgg.BLOCKS]
    shapes |= {'fc6': (fc_channels, channels, 7, 7), 'fc7': (fc_channels, fc_channels, 1, 1),
               'score_fr': (number_of_classes, fc_channels, 1, 1),
               'score_pool4': (number_of_classes, widths[3], 1, 1), 'score_pool3': (number_of_classes, widths[2], 1, 1)}
    blobs = {}
    for layer, shape in shapes.items():
        kernel = random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        if layer != 'conv1_1':
            kernel -= kernel.mean(axis=(1, 2, 3), keepdims=True)
            kernel *= np.sqrt(2 / np.prod(shape[1:])) / kernel.std()
        blobs[layer] = [kernel.astype(np.float32), random.normal(0, 5, shape[0]).astype(np.float32)]
    for layer, factor in UPSCORES.items():
        triangle = 1 - np.abs(np.arange(2 * factor) - factor + 0.5) / factor
        kernel = np.eye(number_of_classes)[:, :, None, None] * np.outer(triangle, triangle)
        kernel += random.normal(0, 0.02, kernel.shape)
        blobs[layer] = [kernel.astype(np.float32)]
    return blobs


def write_caffemodel(path, blobs):
    """Writes a caffemodel as Caffe does: weights packed, with their shapes."""
    network = convert_fcn8s.message_class('NetParameter')()
    for name, arrays in blobs.items():
        layer = network.layer.add(name=name.encode())
        for array in arrays:
            blob = layer.blobs.add()
            blob.shape.dim.extend(array.shape)
            blob.data.extend(array.ravel())
    path.write_bytes(network.SerializeToString())


def write_prototxt(path, blobs, height, width):
    """Writes the layers of Berkeley's FCN-8s, with the widths of `blobs`, for images of one size."""
    lines = [f'input: "data" input_shape {{ dim: 1 dim: 3 dim: {height} dim: {width} }}']

    def add(name, kind, bottoms, parameters='', top=None):
        bottoms = ' '.join(f'bottom: "{bottom}"' for bottom in bottoms.split())
        lines.append(f'layer {{ name: "{name}" type: "{kind}" {bottoms} top: "{top or name}" {parameters} }}')
        return top or name

    def convolve(name, bottom, pad, relu=True):
        count, _, size, _ = blobs[name][0].shape
        add(name, 'Convolution', bottom,
            f'convolution_param {{ num_output: {count} kernel_size: {size} pad: {pad} }}')
        return add(f'relu_{name}', 'ReLU', name, top=name) if relu else name

    def upsample(name, bottom):
        count, _, size, _ = blobs[name][0].shape
        return add(name, 'Deconvolution', bottom, f'convolution_param {{ num_output: {count} kernel_size: {size} '
                                                  f'stride: {UPSCORES[name]} bias_term: false }}')

    def crop(name, bottom, like, offset):
        return add(name, 'Crop', f'{bottom} {like}', f'crop_param {{ axis: 2 offset: {offset} }}')

    net = 'data'
    for number, (block, repeats, _) in enumerate(vgg.BLOCKS, start=1):
        for layer in range(1, repeats + 1):
            net = convolve(f'{block}_{layer}', net, 100 if net == 'data' else 1)
        net = add(f'pool{number}', 'Pooling', net, 'pooling_param { pool: MAX kernel_size: 2 stride: 2 }')
    net = convolve('score_fr', convolve('fc7', convolve('fc6', net, 0), 0), 0, relu=False)
    for upscore, pool, offset in (('upscore2', 'pool4', 5), ('upscore_pool4', 'pool3', 9)):
        net = upsample(upscore, net)
        skip = crop(f'score_{pool}c', convolve(f'score_{pool}', pool, 0, relu=False), net, offset)
        net = add(f'fuse_{pool}', 'Eltwise', f'{net} {skip}', 'eltwise_param { operation: SUM }')
    crop('score', upsample('upscore8', net), 'data', 31)
    path.write_text('\n'.join(lines) + '\n')


def run_opencv(folder, blobs, image):
    """Scores of a uint8 RGB image [H, W, 3] by OpenCV's own reader and network: float32 [H, W, C]."""
    write_caffemodel(folder / 'weights.caffemodel', blobs)
    write_prototxt(folder / 'layers.prototxt', blobs, *image.shape[:2])
    network = cv2.dnn.readNetFromCaffe(str(folder / 'layers.prototxt'), str(folder / 'weights.caffemodel'))
    network.setInput(cv2.dnn.blobFromImage(image[:, :, ::-1].astype(np.float32), mean=BGR_MEAN))
    return network.forward('score')[0].transpose(1, 2, 0)


def write_outputs():
    """Writes OUTPUTS: of each network and size the class map, every STEP-th pixel's scores, and the largest one."""
    vgg.BLOCKS, outputs = BLOCKS, {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            for height, width in SIZES:
                scores = run_opencv(pathlib.Path(folder), random_blobs(seed), draw_texture(height, width, seed))
                name = f'{seed}_{height}x{width}'
                outputs |= {f'{name}_classes': scores.argmax(axis=-1).astype(np.uint8),
                            f'{name}_scores': scores[::STEP, ::STEP], f'{name}_largest': np.abs(scores).max()}
    np.savez_compressed(OUTPUTS, **outputs)


if __name__ == '__main__':
    write_outputs()
