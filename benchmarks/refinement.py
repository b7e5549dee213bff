"""Contenders for the dense CRF. Nothing here imports TensorFlow: a process that refines is small."""
import os

import numpy as np
from pydensecrf import densecrf
from pydensecrf.utils import unary_from_softmax

from benchmarks.measure import time_calls
from datasets.photos import read_photo
from inference import crf


def load_maps(folder, photos):
    """The photos, list of paths, and what predict.py --save_probabilities wrote of them to a folder: list of (dict with
    'image', uint8 [H, W, 3]; probabilities float32 [H, W, C])."""
    return [({'image': read_photo(path)}, read_probabilities(folder, path)) for path in photos]


def read_probabilities(folder, photo):
    stem = os.path.splitext(os.path.basename(photo))[0]
    return np.load(os.path.join(folder, f'{stem}_probabilities.npz'))['probabilities'].astype(np.float32)


def plain_pydensecrf(image, probabilities):
    """crf.refine with its default parameters, but with all labels through pydensecrf, as its own example does it."""
    settings = crf.Parameters()
    height, width, number_of_classes = probabilities.shape
    field = densecrf.DenseCRF2D(width, height, number_of_classes)
    field.setUnaryEnergy(unary_from_softmax(np.ascontiguousarray(probabilities.transpose(2, 0, 1))))
    field.addPairwiseGaussian(sxy=settings.gaussian_xy, compat=settings.gaussian_compat)
    field.addPairwiseBilateral(sxy=settings.bilateral_xy, srgb=settings.bilateral_rgb,
                               rgbim=np.ascontiguousarray(image), compat=settings.bilateral_compat)
    marginals = np.array(field.inference(settings.iterations))
    return marginals.argmax(axis=0).reshape(height, width).astype(np.uint8)


def alone(folder, photos, plain=False):
    """Contender: crf.refine, or plain_pydensecrf, over the maps of a folder; see load_maps."""
    refine, maps = plain_pydensecrf if plain else crf.refine, load_maps(folder, photos)
    return time_calls(lambda: [refine(example['image'], softmax) for example, softmax in maps], 1, len(maps), warm_up=0)


def pool(folder, photos):
    """Contender: the maps of a folder several times, in two processes, as evaluate.py has them."""
    maps = load_maps(folder, photos) * 3
    with crf.start_processes(2) as processes:
        return time_calls(lambda: list(crf.refine_in(processes, maps, limit=4)), 1, len(maps))


def count_equal(folder, photos):
    """How many pixels have the same label both ways, and of how many."""
    same = [crf.refine(example['image'], softmax) == plain_pydensecrf(example['image'], softmax)
            for example, softmax in load_maps(folder, photos)]
    return int(sum(each.sum() for each in same)), sum(each.size for each in same)
