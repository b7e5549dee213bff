"""Dense-CRF refinement of one softmax map: moves the borders of a prediction to where the image's colours change.

Source: Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials"; the
inference itself is pydensecrf's.
"""
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor

import cv2
import numpy as np
from pydensecrf import densecrf, eigen

# A label takes part in an iteration if its probability reaches this somewhere in the image. Before the first iteration
# the probabilities are the network's; after it they are far more decided, and a weak label will not come back.
FIRST_THRESHOLD, LATER_THRESHOLD = 0.03, 0.2
LEAST_PROBABILITY = 1e-5  # as in pydensecrf's unary_from_softmax


def read_parameters(path):
    return None


def refine(image, probabilities, iterations=5, gaussian_xy=10, gaussian_compat=3,
           bilateral_xy=50, bilateral_rgb=20, bilateral_compat=10):
    """Mean-field inference in a fully connected CRF over the pixels of one image.

    An iteration's time grows with the number of labels, and most of them are nowhere in an image: those take no part.
    results/benchmarks.md has what that saves, and how many pixels it changes.

    Args:
        image: uint8 RGB [H, W, 3], the image itself at its true size.
        probabilities: float32 [H, W, C], the network's softmax.
        iterations: int, mean-field iterations.
        gaussian_xy: standard deviation, in pixels, of the smoothness kernel, and
        gaussian_compat: its weight.
        bilateral_xy, bilateral_rgb: standard deviations of the appearance kernel, in pixels and in colour levels
            (0..255), and
        bilateral_compat: its weight.

    Returns:
        uint8 [H, W], the most probable class of each pixel.
    """
    height, width, number_of_classes = probabilities.shape
    labels = find_labels(probabilities)
    field = densecrf.DenseCRF2D(width, height, number_of_classes)
    field.addPairwiseGaussian(sxy=gaussian_xy, compat=gaussian_compat)
    field.addPairwiseBilateral(sxy=bilateral_xy, srgb=bilateral_rgb, rgbim=np.ascontiguousarray(image),
                               compat=bilateral_compat)
    left, marginals = infer(field, take_labels(probabilities, labels), iterations)
    return labels[left][marginals.argmax(axis=-1)].reshape(height, width)


def submit(pool, image, probabilities):
    """Has a process of start_processes refine; only the labels that take part travel there.

    Args:
        pool: ProcessPoolExecutor. image, probabilities: as of refine.

    Returns:
        Future of what refine returns.
    """
    labels = find_labels(probabilities)
    few = take_labels(probabilities, labels).reshape(*image.shape[:2], -1)
    return pool.submit(_refine_few, image, few, labels)


def _refine_few(image, probabilities, labels):
    return labels[refine(image, probabilities)]


def take_labels(probabilities, labels):
    """The columns of a map [H, W, C] that belong to some labels, float32 [H * W, L]."""
    return probabilities.reshape(-1, probabilities.shape[-1])[:, labels]


def find_labels(marginals, threshold=FIRST_THRESHOLD):
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
        probable = find_labels(marginals, LATER_THRESHOLD)
        if len(probable) < len(labels):
            labels, marginals, energy, matrix = labels[probable], marginals[:, probable], energy[:, probable], None
    return labels, marginals


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
