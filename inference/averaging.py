"""Test-time augmentation: probabilities of an image, averaged over scaled and mirrored copies of it.

    probabilities = average_probabilities(run, image, scales=(0.75, 1.0, 1.25), flip=True)

Source: "MS" and "Flip" in section 4 of Chen, Papandreou, Schroff, Adam, "Rethinking Atrous Convolution for Semantic
Image Segmentation", 2017.
"""
import argparse

import cv2
import numpy as np

import utils

MAX_SCALE = 4  # takes sixteen times the memory; published figures use at most 2


def average_probabilities(run, image, scales=(1.0,), flip=False):
    """Averages a network's probabilities over scaled and mirrored copies of an image, uint8 RGB [H, W, 3].
    `run` is a function of uint8 RGB [h, w, 3] to probabilities, float32 [h, w, C], in a new array; `scales` are floats
    above 0; `flip` adds the mirrored copy of each scale. Returns float32 [H, W, C]: with scales (1,) and no flip
    exactly what `run` returns."""
    total = None
    for scale in scales:
        scaled = scale_image(image, scale)
        probabilities = run(scaled)
        if flip:
            probabilities += run(np.ascontiguousarray(scaled[:, ::-1]))[:, ::-1]
        probabilities = resize_probabilities(probabilities, image.shape[:2])
        total = probabilities if total is None else np.add(total, probabilities, out=total)
    total /= len(scales) * (2 if flip else 1)
    return total


def scale_image(image, scale):
    """Scales uint8 [H, W, 3] to round(scale * H) by round(scale * W), at least 1 each, about pixel centres."""
    height, width, _ = image.shape
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size == (width, height):
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR if scale > 1 else cv2.INTER_AREA)


def resize_probabilities(probabilities, size):
    """Resizes float32 [h, w, C] to (H, W), bilinearly between pixel centres; the sum at each pixel stays 1."""
    if probabilities.shape[:2] == size:
        return probabilities
    resized = np.empty((*size, probabilities.shape[-1]), np.float32)
    for index in range(probabilities.shape[-1]):  # class by class, because OpenCV takes at most 128 at once
        resized[:, :, index] = cv2.resize(probabilities[:, :, index], size[::-1], interpolation=cv2.INTER_LINEAR)
    return resized


def add_flags(parser):
    parser.add_argument('--scales', type=parse_scales, default='1', metavar='F,F,...',
                        help='average the probabilities over the image at these scales; for example 0.75,1,1.25')
    parser.add_argument('--flip', action='store_true', help='average over the mirrored image as well')


def parse_scales(text):
    """argparse type: '0.75,1,1.25' to a tuple of floats above 0 and at most MAX_SCALE."""
    scales = tuple(map(utils.positive_float, text.split(',')))
    if max(scales) > MAX_SCALE:
        raise argparse.ArgumentTypeError(f'{max(scales):g} is above {MAX_SCALE}')
    return scales
