"""Probabilities of an image: averaged over scaled and mirrored copies of it, and blended from windows if it is large.

    for top, probabilities in predict_strips(run, image, Passes(scales=(0.75, 1.0, 1.25), flip=True)):

Source of the averages: "MS" and "Flip" in section 4 of Chen, Papandreou, Schroff, Adam, "Rethinking Atrous Convolution
for Semantic Image Segmentation", 2017.
"""
import argparse
import math
from typing import NamedTuple

import cv2
import numpy as np

import utils

MAX_SCALE = 4  # takes sixteen times the memory; published figures use at most 2
CELL = 32  # pixels; where windows begin at multiples of it, the network's poolings halve as they do in one pass


class Passes(NamedTuple):
    """What a network sees of an image: copies at these scales, mirrored ones with `flip`; of an image with a side above
    2 * tile pixels, windows of `tile` pixels that overlap by at least `overlap`."""
    scales: tuple = (1.0,)
    flip: bool = False
    tile: int = 1024
    overlap: int = 128


DEFAULTS = Passes()


class Window(NamedTuple):
    """The pixels start to stop of one side of an image, and their weights, float32 [stop - start]."""
    start: int
    stop: int
    weights: np.ndarray


def predict_strips(run, image, passes):
    """Yields the probabilities of an image, uint8 RGB [H, W, 3], from top to bottom: (first row, float32 [h, W, C]).
    `run` as in average_probabilities. A small image is one strip."""
    def average(window):
        return average_probabilities(run, window, passes.scales, passes.flip)

    if max(image.shape[:2]) <= 2 * passes.tile:
        yield 0, average(image)
    else:
        yield from blend_windows(average, image, passes.tile, passes.overlap)


def blend_windows(run, image, tile, overlap):
    """Yields strips as predict_strips, blended from what `run` finds in windows. One row of windows is in memory, and
    the strip before it."""
    height, width, _ = image.shape
    rows, columns = place_windows(height, tile, overlap), place_windows(width, tile, overlap)
    unfinished = None  # rows that the next windows see as well
    for row, end in zip(rows, [*(following.start for following in rows[1:]), height]):
        sums = None
        for column in columns:
            probabilities = run(image[row.start:row.stop, column.start:column.stop])
            probabilities *= np.outer(row.weights, column.weights)[:, :, np.newaxis]
            if sums is None:
                sums = np.zeros((row.stop - row.start, width, probabilities.shape[-1]), np.float32)
                if unfinished is not None:
                    sums[:len(unfinished)] = unfinished
            sums[:, column.start:column.stop] += probabilities
        unfinished = sums[end - row.start:].copy()
        yield row.start, sums[:end - row.start]


def place_windows(side, tile, overlap):
    """Spreads windows of at most `tile` pixels over a side of an image, pixels; returns a list of Window. Their weights
    rise and fall as a raised cosine over `overlap` pixels, and add up to 1 at each pixel."""
    last = max(0, math.ceil((side - tile) / CELL))
    steps = math.ceil(last / ((tile - overlap) // CELL))
    starts = [last * number // max(1, steps) * CELL for number in range(steps + 1)]
    stops = [min(start + tile, side) for start in starts]
    weights = np.zeros((len(starts), side))
    for each, start, stop in zip(weights, starts, stops):
        pixels = np.arange(start, stop) + 0.5
        inside = np.minimum(pixels - start if start else overlap, stop - pixels if stop < side else overlap)
        each[start:stop] = np.sin(np.pi / 2 * np.minimum(1, inside / max(1, overlap))) ** 2 if overlap else 1
    weights = np.float32(weights / weights.sum(axis=0))
    return [Window(start, stop, each[start:stop]) for each, start, stop in zip(weights, starts, stops)]


def join_strips(strips, size):
    """Joins strips, as predict_strips yields them, to float32 [H, W, C]; size is (H, W)."""
    joined = None
    for top, strip in strips:
        if len(strip) == size[0]:
            return strip
        joined = np.empty((*size, strip.shape[-1]), np.float32) if joined is None else joined
        joined[top:top + len(strip)] = strip
    return joined


def enlarge(probabilities, size, rows=256):
    """Resizes float32 [h, w, C] to (H, W) as resize_probabilities, in strips of so many rows, because all of a large
    photo may not fit into memory; yields them as predict_strips."""
    height = len(probabilities)
    if (height, probabilities.shape[1]) == size:
        yield 0, probabilities
        return
    for top in range(0, size[0], rows):
        centres = np.clip((np.arange(top, min(top + rows, size[0])) + 0.5) * height / size[0] - 0.5, 0, height - 1)
        above = centres.astype(int)
        below, share = np.minimum(above + 1, height - 1), np.float32(centres - above)[:, np.newaxis, np.newaxis]
        strip = probabilities[above] * (1 - share) + probabilities[below] * share
        yield top, resize_probabilities(strip, (len(strip), size[1]))


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


def shrink(image, max_side):
    """Scales uint8 [H, W, 3] down to max_side pixels on its longer side, if it is larger."""
    return scale_image(image, min(1, max_side / max(image.shape[:2])))


def resize_probabilities(probabilities, size):
    """Resizes float32 [h, w, C] to (H, W), bilinearly between pixel centres; the sum at each pixel stays 1."""
    if probabilities.shape[:2] == size:
        return probabilities
    resized = np.empty((*size, probabilities.shape[-1]), np.float32)
    for index in range(probabilities.shape[-1]):  # class by class, because OpenCV takes at most 128 at once
        resized[:, :, index] = cv2.resize(probabilities[:, :, index], size[::-1], interpolation=cv2.INTER_LINEAR)
    return resized


def resize_labels(labels, size):
    """Resizes uint8 [h, w] to (H, W) by nearest neighbour."""
    return labels if labels.shape == size else cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def add_flags(parser):
    parser.add_argument('--scales', type=parse_scales, default='1', metavar='F,F,...',
                        help='average the probabilities over the image at these scales; for example 0.75,1,1.25')
    parser.add_argument('--flip', action='store_true', help='average over the mirrored image as well')
    parser.add_argument('--tile', type=utils.positive_int, default=DEFAULTS.tile, metavar='PIXELS',
                        help='images with a side above twice this are predicted in windows of this size')
    parser.add_argument('--overlap', type=utils.non_negative_int, default=DEFAULTS.overlap, metavar='PIXELS',
                        help='windows overlap by so many pixels, over which one fades into the next')


def check_tile(tile, overlap):
    """Raises ValueError, whose message is one line, if windows would not advance by a cell of the network."""
    if tile - overlap < CELL:
        raise ValueError(f'overlap {overlap}: must be at least {CELL} below tile {tile}')


def check_flags(parser, tile, overlap):
    """Ends the program with check_tile's line."""
    try:
        check_tile(tile, overlap)
    except ValueError as error:
        parser.error(f'--{error}')


def parse_scales(text):
    """argparse type: '0.75,1,1.25' to a tuple of floats above 0 and at most MAX_SCALE."""
    scales = tuple(map(utils.positive_float, text.split(',')))
    if max(scales) > MAX_SCALE:
        raise argparse.ArgumentTypeError(f'{max(scales):g} is above {MAX_SCALE}')
    return scales
