"""Dense-CRF refinement of one softmax map: moves the borders of a prediction to where the image's colours change.

Source: Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials"; the
inference itself is pydensecrf's.
"""
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
from pydensecrf import densecrf, eigen

import utils
from utils import UserError

# A label takes part in an iteration if its probability reaches this somewhere in the image: first the network's, then
# the last iteration's. On real maps that changes less than 0.01 % of the pixels, be the kernels strong or weak.
THRESHOLD = 0.03
LEAST_PROBABILITY = 1e-5  # as in pydensecrf's unary_from_softmax


class Parameters(NamedTuple):
    """What steers the inference; the defaults are those that this suite was asked for.

    iterations: int, mean-field iterations.
    gaussian_xy: standard deviation, in pixels, of the smoothness kernel, and
    gaussian_compat: its weight.
    bilateral_xy, bilateral_rgb: standard deviations of the appearance kernel, in pixels and in colour levels (0..255),
        and
    bilateral_compat: its weight.
    """
    iterations: int = 5
    gaussian_xy: float = 10
    gaussian_compat: float = 3
    bilateral_xy: float = 50
    bilateral_rgb: float = 20
    bilateral_compat: float = 10


DEFAULTS = Parameters()

# What a file may ask for, (lowest, highest): a width near 0 makes pydensecrf crash, and a day is no use to anyone.
LIMITS = Parameters(iterations=(0, 1000), gaussian_xy=(0.1, 1e4), gaussian_compat=(0, 1e4), bilateral_xy=(0.1, 1e4),
                    bilateral_rgb=(0.1, 1e4), bilateral_compat=(0, 1e4))
HOW_FOUND = 'found'  # the key in a file of parameters that is not one of them: how tools/search_crf.py found them


def refine(image, probabilities, parameters=DEFAULTS):
    """Mean-field inference in a fully connected CRF over the pixels of one image.

    An iteration's time grows with the number of labels, and most of them are nowhere in an image: those take no part.
    results/benchmarks.md has what that saves, and how many pixels it changes.

    Args:
        image: uint8 RGB [H, W, 3], the image itself at its true size.
        probabilities: float32 [H, W, C], the network's softmax.
        parameters: Parameters.

    Returns:
        uint8 [H, W], the most probable class of each pixel.
    """
    height, width, number_of_classes = probabilities.shape
    labels = find_labels(probabilities)
    field = densecrf.DenseCRF2D(width, height, number_of_classes)
    field.addPairwiseGaussian(sxy=parameters.gaussian_xy, compat=parameters.gaussian_compat)
    field.addPairwiseBilateral(sxy=parameters.bilateral_xy, srgb=parameters.bilateral_rgb,
                               rgbim=np.ascontiguousarray(image), compat=parameters.bilateral_compat)
    left, marginals = infer(field, take_labels(probabilities, labels), parameters.iterations)
    return labels[left][marginals.argmax(axis=-1)].reshape(height, width)


def submit(pool, image, probabilities, parameters=DEFAULTS):
    """Has a process of start_processes refine; only the labels that take part travel there.

    Args:
        pool: ProcessPoolExecutor. image, probabilities, parameters: as of refine.

    Returns:
        Future of what refine returns.
    """
    labels = find_labels(probabilities)
    few = take_labels(probabilities, labels).reshape(*image.shape[:2], -1)
    return pool.submit(_refine_few, image, few, labels, parameters)


def _refine_few(image, probabilities, labels, parameters):
    return labels[refine(image, probabilities, parameters)]


def take_labels(probabilities, labels):
    """The columns of a map [H, W, C] that belong to some labels, float32 [H * W, L]."""
    return probabilities.reshape(-1, probabilities.shape[-1])[:, labels]


def find_labels(marginals, threshold=THRESHOLD):
    """Which labels reach a probability somewhere; if none does, the most probable one.

    Args:
        marginals: float32 [..., L]. threshold: float.

    Returns:
        uint8 [K], ascending.
    """
    # NumPy's max along columns takes five times as long.
    highest = cv2.reduce(marginals.reshape(-1, marginals.shape[-1]), 0, cv2.REDUCE_MAX)[0]
    return np.flatnonzero(highest >= min(threshold, highest.max())).astype(np.uint8)


def infer(field, softmax, iterations):
    """Mean-field inference that leaves out improbable labels on its way, and ends early if a single one is left.

    Args:
        field: densecrf.DenseCRF2D of N pixels with its pairwise terms.
        softmax: float32 [N, L].
        iterations: int.

    Returns:
        labels: uint8 [K], those that are left.
        marginals: float32 [N, K].
    """
    labels, marginals = np.arange(softmax.shape[1], dtype=np.uint8), np.maximum(softmax, LEAST_PROBABILITY)
    energy = -np.log(marginals)
    matrix, scratch = None, (eigen.MatrixXf(), eigen.MatrixXf())
    for _ in range(iterations):
        if len(labels) == 1:
            break
        if matrix is None:  # pydensecrf has a row for each label; cv2 transposes several times as fast as NumPy
            field.setUnary(densecrf.ConstUnary(cv2.transpose(energy)))
            matrix = eigen.matrixXf(cv2.transpose(marginals))
        field.stepInference(matrix, *scratch)
        marginals = np.asarray(matrix).T
        probable = find_labels(marginals)
        if len(probable) < len(labels):
            labels, marginals, energy, matrix = labels[probable], marginals[:, probable], energy[:, probable], None
    return labels, marginals


# ------------------------------------------------------------------------------------------- a file of parameters


def read_parameters(path):
    """Reads parameters from a JSON object of their names to numbers, as tools/search_crf.py writes it.

    Args:
        path: str, --crf_params; None for the defaults.

    Returns:
        Parameters.

    Raises:
        UserError: the file is missing or damaged, or a parameter is missing, unknown, no number or out of its range.
    """
    if path is None:
        return DEFAULTS
    try:
        with utils.open_file(path, encoding='utf-8') as file:
            return check_parameters(json.loads(file.read(2 ** 20)))
    except OSError as error:
        problem = error.strerror
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        problem = 'is no JSON'
    except ValueError as error:
        problem = error
    raise UserError(f'--crf_params {path}: {problem}; name a file that tools/search_crf.py wrote')


def check_parameters(content):
    """Parameters of what JSON holds; ValueError with one line if they are none."""
    if not isinstance(content, dict):
        raise ValueError('is no JSON object')
    numbers = {name: number for name, number in content.items() if name != HOW_FOUND}
    for name in Parameters._fields:
        if name not in numbers:
            raise ValueError(f'{name} is missing')
    for name, number in numbers.items():
        if name not in Parameters._fields:
            raise ValueError(f'knows a parameter {name[:80]!r}, which there is not')
        lowest, highest = getattr(LIMITS, name)
        kind, wanted = (int, 'a whole number') if name == 'iterations' else ((int, float), 'a number')
        if not isinstance(number, kind) or isinstance(number, bool) or not lowest <= number <= highest:
            raise ValueError(f'{name} is {json.dumps(number)[:80]}, not {wanted} from {lowest} to {highest:g}')
    return Parameters(**numbers)


def add_flag(parser):
    """Adds --crf_params, which gives Parameters, to the flags of a program that has --crf."""
    parser.add_argument('--crf_params', type=read_parameters, metavar='FILE', default=DEFAULTS,
                        help="the CRF's parameters, as tools/search_crf.py writes them")


def check_flag(parser, args):
    """Ends the program with one line if --crf_params is given where no CRF is asked for."""
    if args.crf_params is not DEFAULTS and not args.crf:
        parser.error('--crf_params: changes nothing without --crf; add it')


# ------------------------------------------------------------------------------------------- processes


@contextlib.contextmanager
def start_processes(num_workers):
    """A ProcessPoolExecutor for refine, and for what is drawn beside a training.

    Its processes start afresh ("spawn"): a fork would copy the locks of TensorFlow's threads and its hold on the GPU.
    A fresh process also runs the file of the main program again, to find functions that are defined there. Ours are
    not, so that file's name is hidden meanwhile: with it each process would import TensorFlow.
    """
    main_program = sys.modules['__main__'].__dict__
    hidden = {'__file__': main_program.pop('__file__')} if '__file__' in main_program else {}
    try:
        with ProcessPoolExecutor(num_workers, multiprocessing.get_context('spawn'), _follow_parent) as pool:
            yield pool
    finally:
        main_program.update(hidden)


def _follow_parent():
    """A new process leaves Ctrl-C to its parent, and ends with it, even if that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)
    threading.Thread(target=end_with_parent, daemon=True).start()
