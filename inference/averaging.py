"""Probabilities of an image, averaged over scaled and mirrored copies of it: test-time augmentation.

    probabilities = average_probabilities(run, image, scales=(0.75, 1.0, 1.25), flip=True)

Source: "MS" and "Flip" in section 4 of Chen, Papandreou, Schroff, Adam, "Rethinking Atrous Convolution for Semantic
Image Segmentation", 2017.
"""
import argparse

import cv2
import numpy as np

import utils

MAX_SCALE = 4  # takes sixteen times the memory; no published figure comes from more than 2


def average_probabilities(run, image, scales=(1.0,), flip=False):
    """Has a network see an image at some scales, and mirrored at each, and averages what it says at the image's size.

    Args:
        run: function of uint8 RGB [h, w, 3] to float32 [h, w, C], probabilities in an array of their own.
        image: uint8 RGB [H, W, 3].
        scales: floats above 0, at least one.
        flip: bool, mirror left and right as well.

    Returns:
        float32 [H, W, C], probabilities; with scales (1,) and no flip what `run` gives, to the last bit.
    """
    total = None
    for scale in scales:
        seen = scale_image(image, scale)
        probabilities = run(seen)
        if flip:
            probabilities += run(np.ascontiguousarray(seen[:, ::-1]))[:, ::-1]
        probabilities = resize_probabilities(probabilities, image.shape[:2])
        total = probabilities if total is None else np.add(total, probabilities, out=total)
    total /= len(scales) * (2 if flip else 1)
    return total


def scale_image(image, scale):
    """Scales uint8 [H, W, 3] to round(scale * H), round(scale * W), at least 1 each; pixel centres keep their place."""
    height, width, _ = image.shape
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size == (width, height):
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR if scale > 1 else cv2.INTER_AREA)


def resize_probabilities(probabilities, size):
    """float32 [h, w, C] to size (H, W), bilinearly between pixel centres; each pixel's sum stays what it was."""
    if probabilities.shape[:2] == size:
        return probabilities
    resized = np.empty((*size, probabilities.shape[-1]), np.float32)
    for index in range(probabilities.shape[-1]):  # class by class: OpenCV takes no more than 128 at once
        resized[:, :, index] = cv2.resize(probabilities[:, :, index], size[::-1], interpolation=cv2.INTER_LINEAR)
    return resized


def add_flags(parser):
    """Adds --scales and --flip to a program's flags."""
    parser.add_argument('--scales', type=parse_scales, default='1', metavar='F,F,...',
                        help='average the probabilities over the image at these scales; 0.75,1,1.25, for example')
    parser.add_argument('--flip', action='store_true', help='average over the mirrored image as well')


def parse_scales(text):
    """argparse type: '0.75,1,1.25' to a tuple of floats above 0 and up to MAX_SCALE."""
    scales = tuple(map(utils.positive_float, text.split(',')))
    for scale in scales:
        if scale > MAX_SCALE:
            raise argparse.ArgumentTypeError(f'{scale:g} is above {MAX_SCALE}')
    return scales
