"""Random changes of training images: what --augment does to an image and its label.

    image, label = augmentation.warp(decode, full, frame, chance, ('scale', 'rotate'), seed)

Scale and rotation are one map from the crop's pixels to the source's, so that each pixel is interpolated once and only
the part of a photo is decoded that the crop shows. Positions are (y, x) in pixels; pixel i covers i to i + 1.
"""
import math
from typing import NamedTuple

import tensorflow.compat.v1 as tf

KINDS = ('flip', 'scale', 'rotate', 'colour')
SCALES = (0.5, 2.0)  # uniform, as in DeepLab's and mmsegmentation's recipes
MAX_DEGREES = 10.0
COLOUR_FACTORS = (0.6, 1.4)  # of brightness, contrast and saturation; usual for training on ImageNet
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in a pixel's grey; ITU-R BT.601
NOWHERE = 254  # a warped label where the source has no pixel; neither a class, because there are at most 254, nor void


class Warp(NamedTuple):
    """The map from a position p in the crop to origin + linear @ p in the source."""
    linear: tf.Tensor  # float32 [2, 2], a rotation divided by a scale
    origin: tf.Tensor  # float32 [2], the source of the crop's corner


def warp(decode, full, frame, chance, augment, seed):
    """Cuts a crop out of a source at a place drawn at random, and at a scale and an angle if `augment` names them.
    full, frame: int32 [2], sizes of source and crop. chance: float32 [2] in [0, 1), for the place. seed: int64 [2].
    decode: function of a window, int32 [4] (top, left, height, width), that returns image uint8 [h, w, 3] and label
    uint8 [h, w, 1]. Returns image float32 [H, W, 3], interpolated, and label uint8 [H, W, 1], NOWHERE outside."""
    drawn = draw_warp(full, frame, chance, augment, seed)
    window = find_window(drawn, full, frame)
    image, label = decode(window)
    return apply_warp(drawn, image, label, window[:2], frame)


def draw_warp(full, frame, chance, augment, seed):
    """The Warp of one draw. All places are equally likely where, in each direction, the larger of the scaled image and
    the crop covers the smaller. The image is then rotated about the centre of their intersection."""
    draw = tf.random.stateless_uniform([2], tf.random.experimental.stateless_fold_in(seed, 1))
    scale = SCALES[0] + (SCALES[1] - SCALES[0]) * draw[0] if 'scale' in augment else tf.constant(1.0)
    angle = math.radians(MAX_DEGREES) * (2 * draw[1] - 1) if 'rotate' in augment else tf.constant(0.0)

    frame = tf.cast(frame, tf.float32)
    scaled = scale * tf.cast(full, tf.float32)
    corner = chance * (scaled - frame)  # of the crop in the scaled image; negative where the crop is larger
    middle = (tf.maximum(corner, 0) + tf.minimum(corner + frame, scaled)) / 2
    linear = tf.stack([[tf.cos(angle), -tf.sin(angle)], [tf.sin(angle), tf.cos(angle)]]) / scale
    return Warp(linear, origin=middle / scale - _turn(linear, middle - corner))


def _turn(linear, position):
    return tf.reduce_sum(linear * position, axis=-1)


def find_window(warp, full, frame):
    """The window of the source that interpolating the crop needs, int32 [4]: top, left, height, width.
    Height and width are at least 1."""
    height, width = tf.unstack(tf.cast(frame, tf.float32))
    corners = warp.origin + tf.stack([_turn(warp.linear, corner) for corner in (
        (0.0, 0.0), (0.0, width), (height, 0.0), (height, width))])
    first = tf.clip_by_value(tf.cast(tf.floor(tf.reduce_min(corners, axis=0)), tf.int32) - 1, 0, full - 1)
    end = tf.clip_by_value(tf.cast(tf.ceil(tf.reduce_max(corners, axis=0)), tf.int32) + 1, first + 1, full)
    return tf.concat([first, end - first], axis=0)


def apply_warp(warp, image, label, top_left, frame):
    """Cuts the crop out of image and label of a window whose corner is at top_left, int32 [2]."""
    # The op's positions are those of the pixels' centres.
    origin = warp.origin + _turn(warp.linear, (0.5, 0.5)) - 0.5 - tf.cast(top_left, tf.float32)
    (yy, yx), (xy, xx) = (tf.unstack(row) for row in tf.unstack(warp.linear))
    transform = tf.stack([[xx, xy, origin[1], yx, yy, origin[0], 0.0, 0.0]])
    # The border is repeated outside, so that no fill colour mixes with the outermost pixels.
    image = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(image, tf.float32)[tf.newaxis], transforms=transform, output_shape=frame, fill_value=0.0,
        interpolation='BILINEAR', fill_mode='NEAREST')[0]
    label = tf.raw_ops.ImageProjectiveTransformV3(
        images=label[tf.newaxis], transforms=transform, output_shape=frame, fill_value=float(NOWHERE),
        interpolation='NEAREST', fill_mode='CONSTANT')[0]
    return image, label


def fill_nowhere(both, fill):
    """Puts `fill`, uint8 [4], where the label of image and label as one, uint8 [H, W, 4], is NOWHERE."""
    pixels = tf.bitcast(both, tf.int32)  # [H, W]; tf.where is six times as fast on ints as on rows of bytes
    fill = tf.fill(tf.shape(pixels), tf.bitcast(fill, tf.int32))
    return tf.bitcast(tf.where(tf.equal(both[..., 3], NOWHERE), fill, pixels), tf.uint8)


def jitter_colour(image, mean_rgb, seed):
    """Multiplies brightness, contrast and saturation of an image, uint8 or float32 [H, W, 3] RGB, by random factors;
    returns float32 in 0..255. Saturation is a pixel's distance from its grey, contrast its distance from the data's
    mean colour, mean_rgb. Together the three are one matrix and one colour that is added. seed: int64 [2]."""
    brightness, contrast, saturation = tf.unstack(tf.random.stateless_uniform(
        [3], tf.random.experimental.stateless_fold_in(seed, 2), *COLOUR_FACTORS))
    to_grey = tf.tile(tf.constant(LUMA)[:, tf.newaxis], [1, 3])
    matrix = brightness * contrast * (saturation * tf.eye(3) + (1 - saturation) * to_grey)
    added = brightness * (1 - contrast) * tf.constant(mean_rgb, tf.float32)
    pixels = tf.reshape(tf.cast(image, tf.float32), [-1, 3])
    changed = tf.nn.bias_add(tf.matmul(pixels, matrix), added)
    return tf.reshape(tf.clip_by_value(changed, 0, 255), tf.shape(image))


def to_bytes(image):
    """Rounds float32 in 0..255 to uint8; uint8 stays."""
    return image if image.dtype == tf.uint8 else tf.cast(image + 0.5, tf.uint8)
