"""Contenders for the dense CRF. Only write_maps imports TensorFlow: a process that refines is small."""
import glob
import os

import numpy as np
from pydensecrf import densecrf
from pydensecrf.utils import unary_from_softmax

from benchmarks.measure import time_calls
from inference import crf


def write_maps(checkpoint, record, folder):
    """Predicts the images of a record, and writes them and their softmax maps to FOLDER/0.npz, ..."""
    import tensorflow.compat.v1 as tf

    import train
    from datasets import batches, records
    from inference import predictor
    os.makedirs(folder)
    network, number_of_examples = train.read_network(checkpoint), records.count_examples(record)
    with tf.Graph().as_default(), tf.Session() as session:
        reader = batches.build_reader(record, number_of_examples, network.number_of_classes)
        loaded = predictor.load_predictor(session, checkpoint, train.fcn, network)
        for number, (example, probabilities) in enumerate(predictor.predict_record(session, loaded, reader)):
            np.savez(os.path.join(folder, f'{number}.npz'), image=example['image'], probabilities=probabilities)
    return number_of_examples, 0


def load_maps(folder):
    """What write_maps wrote: list of (dict with 'image', uint8 [H, W, 3]; probabilities float32 [H, W, C])."""
    arrays = [np.load(path) for path in sorted(glob.glob(os.path.join(folder, '*.npz')))]
    return [({'image': each['image']}, each['probabilities']) for each in arrays]


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


def alone(folder, plain=False):
    """Contender: crf.refine, or plain_pydensecrf, over the images of a folder."""
    refine, maps = plain_pydensecrf if plain else crf.refine, load_maps(folder)
    return time_calls(lambda: [refine(example['image'], softmax) for example, softmax in maps], 1, len(maps), warm_up=0)


def pool(folder):
    """Contender: the images of a folder several times, in two processes, as evaluate.py has them."""
    maps = load_maps(folder) * 3
    with crf.start_processes(2) as processes:
        return time_calls(lambda: list(crf.refine_in(processes, maps, limit=4)), 1, len(maps))


def count_equal(folder):
    """How many pixels have the same label both ways, and of how many."""
    same = [crf.refine(example['image'], softmax) == plain_pydensecrf(example['image'], softmax)
            for example, softmax in load_maps(folder)]
    return int(sum(each.sum() for each in same)), sum(each.size for each in same)
