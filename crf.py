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

THRESHOLD = 0.05  # a label that is less probable than this everywhere in an image takes no part


def refine(image, probabilities, iterations=5, gaussian_xy=10, gaussian_compat=3,
           bilateral_xy=50, bilateral_rgb=20, bilateral_compat=10):
    """Mean-field inference in a fully connected CRF over the pixels of one image.

    An iteration's time grows with the number of labels, and most of them are nowhere in an image. So before each
    iteration those are left out whose probability, as far as it is known, nowhere reaches THRESHOLD.
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
    # [C, N], clipped as by pydensecrf's unary_from_softmax; cv2 transposes several times as fast as NumPy.
    softmax = np.clip(cv2.transpose(np.ascontiguousarray(probabilities.reshape(-1, number_of_classes))), 1e-5, 1)
    field = densecrf.DenseCRF2D(width, height, number_of_classes)
    field.addPairwiseGaussian(sxy=gaussian_xy, compat=gaussian_compat)
    field.addPairwiseBilateral(sxy=bilateral_xy, srgb=bilateral_rgb, rgbim=np.ascontiguousarray(image),
                               compat=bilateral_compat)
    labels, marginals = infer(field, softmax, iterations)
    return labels[marginals.argmax(axis=0)].reshape(height, width).astype(np.uint8)


def infer(field, softmax, iterations):
    """Mean-field inference that leaves out improbable labels on its way.

    Args:
        field: densecrf.DenseCRF2D of N pixels with its pairwise terms.
        softmax: float32 [C, N], above 0.
        iterations: int.

    Returns:
        labels: int [L], those that are left.
        marginals: float32 [L, N].
    """
    labels, marginals, scratch = np.arange(len(softmax)), softmax, (eigen.MatrixXf(), eigen.MatrixXf())
    for iteration in range(iterations):
        highest = marginals.max(axis=1)
        probable = highest >= min(THRESHOLD, highest.max())
        if iteration == 0 or not probable.all():
            labels, softmax = labels[probable], softmax[probable]
            field.setUnary(densecrf.ConstUnary(-np.log(softmax)))
            matrix = eigen.matrixXf(np.ascontiguousarray(marginals[probable]))
        field.stepInference(matrix, *scratch)
        marginals = np.asarray(matrix)
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
