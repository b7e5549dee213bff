"""Dense-CRF refinement of a softmax map: moves the borders of a prediction to where the image's colours change.

    labels = refine(image, probabilities)

Source: Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011.
pydensecrf computes the inference. Its time grows with the number of labels, of which most occur nowhere in an image:
labels that are improbable everywhere are left out. results/benchmarks.md shows what that saves and changes.
"""
import collections
import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import NamedTuple

import cv2
import numpy as np

import utils
from inference import averaging
from utils import UserError

# A label stays if its probability reaches a threshold at some pixel: first in the network's map, then after each
# iteration. On real maps of 21 labels that changes less than 0.01 % of the pixels, with weak kernels and with strong
# ones. Of more labels, more are left out and each is less probable: on undecided maps of 34 to 254 labels, a threshold
# that falls with their square changes less than 0.1 %, one that falls with their number up to 0.6 %.
THRESHOLD, OF_LABELS = 0.03, 21
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
MAX_SIDE = 2048  # pixels of an image; time and memory grow with their number
LEAST_PROBABILITY = 1e-5  # as in pydensecrf's unary_from_softmax


class Parameters(NamedTuple):
    """The parameters of the inference. `_xy` are standard deviations in pixels, `_rgb` one in colour levels (0..255),
    `_compat` weights: `gaussian_` of the smoothness kernel, `bilateral_` of the appearance kernel."""
    iterations: int = 5
    gaussian_xy: float = 10
    gaussian_compat: float = 3
    bilateral_xy: float = 50
    bilateral_rgb: float = 20
    bilateral_compat: float = 10


DEFAULTS = Parameters()

# (lowest, highest) in a file of parameters: pydensecrf crashes at widths near 0.
LIMITS = Parameters(iterations=(0, 1000), gaussian_xy=(0.1, 1e4), gaussian_compat=(0, 1e4), bilateral_xy=(0.1, 1e4),
                    bilateral_rgb=(0.1, 1e4), bilateral_compat=(0, 1e4))
HOW_FOUND = 'found'  # what tools/search_crf.py adds to a file of parameters: how it found them


def find_fault():
    """Why pydensecrf cannot be imported, and the cure, str of one line; None if it can."""
    try:
        from pydensecrf import densecrf, eigen  # noqa: F401
    except Exception as error:  # a compiled module that does not fit Python or NumPy raises nearly anything
        return (f'pydensecrf cannot be imported ({" ".join(str(error).split())}); with Python 3.11 or 3.12 and a C++ '
                'compiler (apt install g++), run: pip install -r requirements.txt')
    return None


def check_installed(user):
    """Raises UserError if pydensecrf, which `user` (a flag or a program) needs, cannot be imported."""
    if fault := find_fault():
        raise UserError(f'{user}: {fault}')


def refine(image, probabilities, parameters=DEFAULTS):
    """Mean-field inference in a fully connected CRF over the pixels of one image, uint8 RGB [H, W, 3], of which a large
    one is scaled down to MAX_SIDE. `probabilities` are the network's softmax, float32 [H, W, C]. Returns the most
    probable class of each pixel, uint8 [H, W]."""
    seen, probabilities = _shrink(image, probabilities)
    return averaging.resize_labels(_refine_few(seen, *_take_probable(probabilities), parameters), image.shape[:2])


def _shrink(image, probabilities):
    seen = averaging.shrink(image, MAX_SIDE)
    return seen, averaging.resize_probabilities(probabilities, seen.shape[:2])


def _take_probable(probabilities):
    """Of float32 [H, W, C] the labels that take part: float32 [H, W, L], uint8 [L], and the threshold for them."""
    labels = find_labels(probabilities)
    return probabilities[:, :, labels], labels, find_threshold(probabilities.shape[-1])


def _refine_few(image, probabilities, labels, threshold, parameters):
    from pydensecrf import densecrf  # here, because all but the CRF works without it
    height, width, number = probabilities.shape
    field = densecrf.DenseCRF2D(width, height, number)
    field.addPairwiseGaussian(sxy=parameters.gaussian_xy, compat=parameters.gaussian_compat)
    field.addPairwiseBilateral(sxy=parameters.bilateral_xy, srgb=parameters.bilateral_rgb,
                               rgbim=np.ascontiguousarray(image), compat=parameters.bilateral_compat)
    remaining, marginals = infer(field, probabilities.reshape(-1, number), parameters.iterations, threshold)
    return labels[remaining][marginals.argmax(axis=-1)].reshape(height, width)


def find_threshold(number_of_classes):
    """The threshold for C labels, float. It is below 1 / C, so that the most probable label of any pixel reaches it."""
    return THRESHOLD * min(1, OF_LABELS / number_of_classes) ** 2


def find_labels(marginals, threshold=None):
    """The labels of marginals, float32 [..., L], that reach a threshold (by default find_threshold(L)) at some pixel;
    if none does, the most probable one. Returns uint8 [K], ascending."""
    # NumPy's max along columns takes five times as long.
    highest = cv2.reduce(marginals.reshape(-1, marginals.shape[-1]), 0, cv2.REDUCE_MAX)[0]
    threshold = min(threshold or find_threshold(len(highest)), highest.max())
    return np.flatnonzero(highest >= threshold).astype(np.uint8)


def infer(field, softmax, iterations, threshold=THRESHOLD):
    """Mean-field inference that drops labels when they become improbable, and ends early if only one remains.
    `field` is a densecrf.DenseCRF2D of N pixels with its pairwise terms, `softmax` float32 [N, L]; for the threshold
    see find_labels. Returns the remaining labels, uint8 [K], and their marginals, float32 [N, K]."""
    from pydensecrf import densecrf, eigen
    labels, marginals = np.arange(softmax.shape[1], dtype=np.uint8), np.maximum(softmax, LEAST_PROBABILITY)
    energy = -np.log(marginals)
    matrix, scratch = None, (eigen.MatrixXf(), eigen.MatrixXf())
    for _ in range(iterations):
        if len(labels) == 1:
            break
        if matrix is None:  # pydensecrf has a row for each label; cv2 transposes several times as fast as NumPy
            field.setUnary(densecrf.ConstUnary(cv2.transpose(_fill(energy, 1e3))))
            matrix = eigen.matrixXf(cv2.transpose(_fill(marginals, 0)))
        field.stepInference(matrix, *scratch)
        marginals = np.asarray(matrix).T[:, :len(labels)]
        probable = find_labels(marginals, threshold)
        if len(probable) < len(labels):
            labels, marginals, energy, matrix = labels[probable], marginals[:, probable], energy[:, probable], None
    return labels, marginals


def _fill(columns, value):
    """Adds a fourth column to three, because four labels fill a register: pydensecrf then takes an eighth less time."""
    more = 1 if columns.shape[1] == 3 else 0
    return cv2.copyMakeBorder(columns, 0, 0, 0, more, cv2.BORDER_CONSTANT, value=value)


@contextlib.contextmanager
def start_processes(num_workers):
    """A ProcessPoolExecutor for refine, and for the pictures that are drawn during training.

    Its processes start afresh ("spawn"), because a fork would copy the locks of TensorFlow's threads and its hold on
    the GPU. A fresh process also runs the file of the main program, to find functions that are defined there. That
    file would import TensorFlow, and the functions that run here are not in it, so its name is hidden meanwhile.
    """
    with utils.without_stop_signals():
        resource_tracker.ensure_running()  # a process of the library, which SIGHUP to all processes would end
    main_program = sys.modules['__main__'].__dict__
    hidden = {'__file__': main_program.pop('__file__')} if '__file__' in main_program else {}
    try:
        with ProcessPoolExecutor(num_workers, multiprocessing.get_context('spawn'), _follow_parent) as pool:
            yield pool
    finally:
        main_program.update(hidden)


def _follow_parent():
    """A new process leaves Ctrl-C to its parent, and ends when the parent ends, even if that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):  # else glibc returns each array's memory, and the system clears it again for the next
        libc.mallopt(M_TRIM_THRESHOLD, 2 ** 30)
        libc.mallopt(M_MMAP_THRESHOLD, 2 ** 25)

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)
    threading.Thread(target=end_with_parent, daemon=True).start()


def refine_all(predictions, num_workers=1, parameters=DEFAULTS):
    """Refines predictions in other processes, while the network predicts the next images; see refine_in."""
    with start_processes(num_workers) as pool:
        yield from refine_in(pool, predictions, 2 * num_workers, parameters)


def refine_in(pool, predictions, limit, parameters=DEFAULTS):
    """Refines predictions in the processes of a pool, with at most `limit` images in memory at a time.
    Takes pairs of an example and its probabilities, see predictor.predict_record. Yields, in the same order, (example,
    {'plain': uint8 [H, W], 'crf': uint8 [H, W]}). Raises UserError if a process was killed."""
    waiting = collections.deque()

    def finish_first():
        example, plain, refined = waiting.popleft()
        return example, {'plain': plain, 'crf': averaging.resize_labels(refined.result(), plain.shape)}

    try:
        for example, probabilities in predictions:
            few, labels, threshold = _take_probable(probabilities)
            plain = labels[few.argmax(axis=-1)]  # a label that was left out is nowhere the most probable one
            refined = pool.submit(_refine_few, *_shrink(example['image'], few), labels, threshold, parameters)
            waiting.append((example, plain, refined))
            if len(waiting) >= limit:
                yield finish_first()
        while waiting:
            yield finish_first()
    except BrokenProcessPool:
        raise UserError('a process of the CRF was killed, perhaps because memory ran out; '
                        'try a lower --num_workers') from None


def add_flags(parser):
    """Adds --crf and --crf_params, which gives Parameters."""
    parser.add_argument('--crf', action='store_true', help='refine the predictions by the dense CRF as well')
    parser.add_argument('--crf_params', type=read_parameters, metavar='FILE', default=DEFAULTS,
                        help="the CRF's parameters, as tools/search_crf.py writes them")


def check_flags(parser, with_crf, parameters):
    """Ends the program with one line if --crf_params is given without --crf, or --crf without pydensecrf."""
    if with_crf:
        check_installed('--crf')
    if parameters is not DEFAULTS and not with_crf:
        parser.error('--crf_params: changes nothing without --crf; add it')


def read_parameters(path):
    """The Parameters in a JSON file, as tools/search_crf.py writes it; the defaults if `path` is None.
    Raises UserError if the file cannot be read, or a parameter is missing, unknown or out of range."""
    if path is None:
        return DEFAULTS
    try:
        with utils.open_file(path, encoding='utf-8') as file:
            return check_parameters(json.load(file))
    except (OSError, ValueError) as error:
        raise UserError(f'--crf_params {path}: {getattr(error, "strerror", error)}; name a file that '
                        'tools/search_crf.py wrote') from None


def read_parameters_if_installed(path):
    """read_parameters for pictures; without pydensecrf None, which is printed with the reason."""
    parameters, fault = read_parameters(path), find_fault()
    if fault:
        print(f'validation pictures without the CRF: {fault}', flush=True)
    return None if fault else parameters


def check_parameters(content):
    """The Parameters in the content of a JSON file; a ValueError of one line if there are none."""
    numbers = {name: content[name] for name in content if name != HOW_FOUND} if isinstance(content, dict) else {}
    if numbers.keys() != set(Parameters._fields):
        raise ValueError(f'must have the parameters {", ".join(Parameters._fields)}, and no others')
    for name, number in numbers.items():
        lowest, highest = getattr(LIMITS, name)
        kind, wanted = (int, 'an integer') if name == 'iterations' else ((int, float), 'a number')
        if not isinstance(number, kind) or not lowest <= number <= highest:
            raise ValueError(f'{name} is {json.dumps(number)}, not {wanted} from {lowest} to {highest:g}')
    return Parameters(**numbers)
