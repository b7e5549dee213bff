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

import numpy as np
from pydensecrf import densecrf
from pydensecrf.utils import unary_from_softmax


def refine(image, probabilities, iterations=5, gaussian_xy=10, gaussian_compat=3,
           bilateral_xy=50, bilateral_rgb=20, bilateral_compat=10):
    """Mean-field inference in a fully connected CRF over the pixels of one image.

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
    field = densecrf.DenseCRF2D(width, height, number_of_classes)
    field.setUnaryEnergy(unary_from_softmax(np.ascontiguousarray(np.moveaxis(probabilities, -1, 0))))
    field.addPairwiseGaussian(sxy=gaussian_xy, compat=gaussian_compat)
    field.addPairwiseBilateral(sxy=bilateral_xy, srgb=bilateral_rgb, rgbim=np.ascontiguousarray(image),
                               compat=bilateral_compat)
    marginals = np.array(field.inference(iterations))
    return marginals.argmax(axis=0).reshape(height, width).astype(np.uint8)


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
