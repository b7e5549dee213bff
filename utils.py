"""What every script shares: bilinear kernels, the VOC palette, scores, picture files, and how programs end.

Nothing here knows of TensorFlow, records or checkpoints.
"""
import argparse
import os
import sys

import cv2
import numpy as np
from PIL import Image


class UserError(Exception):
    """A user's mistake or a damaged file. Its message is one line that names the file or flag, and the cure."""


# ------------------------------------------------------------------------------------------- upsampling kernels


def bilinear_upsample_weights(factor, number_of_classes):
    """Kernel that makes a transposed convolution of stride `factor` interpolate bilinearly, class by class.

    Source: section 3.3 of Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation".

    Args:
        factor: int, how many times larger the output is.
        number_of_classes: int, channels in and out.

    Returns:
        float32 [K, K, number_of_classes, number_of_classes] with K = 2 * factor - factor % 2; every channel
        feeds only itself.
    """
    size = 2 * factor - factor % 2
    centre = (size - 1) / 2
    triangle = 1 - np.abs(np.arange(size) - centre) / factor
    weights = np.zeros((size, size, number_of_classes, number_of_classes), np.float32)
    channels = np.arange(number_of_classes)
    weights[:, :, channels, channels] = np.outer(triangle, triangle)[:, :, np.newaxis]
    return weights


# ------------------------------------------------------------------------------------------- palette and pictures


def voc_palette():
    """The VOC colour map: the bits of a class index, three at a time, spread over R, G and B from the high end.

    Source: VOCcolormap.m of the PASCAL VOC development kit.

    Returns:
        uint8 [256, 3], RGB. Row 0 is black (background), 15 (192, 128, 128) (person), 255 (224, 224, 192) (void).
    """
    index = np.arange(256)[:, np.newaxis]
    channel = np.arange(3)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        palette |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def colourise(labels):
    """Label map uint8 [H, W] to its VOC colours, uint8 RGB [H, W, 3]."""
    return voc_palette()[labels]


def overlay(image, labels, opacity=0.6):
    """Lays the colours of a label map over the image; background (0) shows the image alone.

    Args:
        image: uint8 RGB [H, W, 3].
        labels: uint8 [H, W].
        opacity: float in 0..1, share of the colour.

    Returns:
        uint8 RGB [H, W, 3].
    """
    blended = cv2.addWeighted(image, 1 - opacity, colourise(labels), opacity, 0)
    return np.where(labels[:, :, np.newaxis] > 0, blended, image)


def save_image(path, pixels):
    """Writes uint8 RGB [H, W, 3] as JPEG or PNG (by the path's ending), complete or not at all."""
    _save_whole(Image.fromarray(pixels), path, quality=95, subsampling=0)


def save_labels(path, labels):
    """Writes a label map uint8 [H, W] as palette PNG in VOC colours, complete or not at all."""
    picture = Image.fromarray(labels, 'L')
    picture.putpalette(voc_palette().tobytes())
    _save_whole(picture, path)


def _save_whole(picture, path, **options):
    """Saves under a temporary name, then renames: a full disk leaves no half picture under `path`."""
    folder, name = os.path.split(path)
    partial = os.path.join(folder, 'partial-' + name)
    try:
        picture.save(partial, **options)
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.remove(partial)
        raise


# ------------------------------------------------------------------------------------------- scores


def confusion_matrix(labels, predictions, number_of_classes):
    """Counts pixels by annotated and predicted class.

    Args:
        labels: uint8 [H, W], annotation; values of number_of_classes and above (255, void) are left out.
        predictions: uint8 [H, W], values below number_of_classes.
        number_of_classes: int.

    Returns:
        int64 [number_of_classes, number_of_classes]; row: annotated class, column: predicted class.
    """
    counted = labels < number_of_classes
    pairs = labels[counted].astype(np.int64) * number_of_classes + predictions[counted]
    return np.bincount(pairs, minlength=number_of_classes ** 2).reshape(number_of_classes, number_of_classes)


def iou_per_class(confusion):
    """Intersection over union of each class, float64 [C]; nan where neither annotation nor prediction has the class.

    Source: the segmentation score of the PASCAL VOC challenge, true positives / (true + false positives + false
    negatives) over the pixels of all images together.
    """
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def mean_iou(confusion):
    """Mean of iou_per_class over the classes that occur; nan if none does."""
    ious = iou_per_class(confusion)
    return float(np.mean(ious[~np.isnan(ious)])) if not np.isnan(ious).all() else float('nan')


def pixel_accuracy(confusion):
    """Share of the annotated pixels that are predicted right; nan if there are none."""
    total = confusion.sum()
    return float(np.diag(confusion).sum() / total) if total else float('nan')


# ------------------------------------------------------------------------------------------- programs


class ArgumentParser(argparse.ArgumentParser):
    """argparse with the defaults in its help, no guessed abbreviations, and one line for a bad flag (exit code 2)."""

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False,
                         formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    def error(self, message):
        self.exit(2, f'{self.prog}: error: {message} (see --help)\n')


def positive_int(text):
    """argparse type: an int of at least 1."""
    return _at_least(int(text), 1)


def non_negative_int(text):
    """argparse type: an int of at least 0."""
    return _at_least(int(text), 0)


def non_negative_float(text):
    """argparse type: a finite float of at least 0."""
    return _at_least(float(text), 0)


def _at_least(number, lowest):
    if not lowest <= number < float('inf'):
        raise argparse.ArgumentTypeError(f'{number} is not a number from {lowest} up')
    return number


def run_program(main):
    """Runs a script's main() and ends the process: a UserError or OSError as one line on stderr with exit code 1.

    Args:
        main: function without arguments that returns the exit code, or None for 0.
    """
    try:
        sys.exit(main())
    except (UserError, OSError) as error:
        sys.exit(f'{os.path.basename(sys.argv[0])}: error: {error}')
    except KeyboardInterrupt:
        sys.exit(130)
