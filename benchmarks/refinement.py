"""Contenders for the dense CRF. Only write_maps imports TensorFlow: a process that refines is small."""
import glob
import itertools
import os

import numpy as np
from pydensecrf import densecrf
from pydensecrf.utils import unary_from_softmax

from inference import crf


def write_maps(turns, checkpoint, record, folder):
    """Predicts the images of a record, and writes them and their softmax maps to FOLDER/0.npz, ... One round.

    `extra` shows how decided the maps are, by two means over the images: the highest probability of a pixel ('highest')
    and the number of labels that take part in the CRF ('labels').
    """
    import tensorflow.compat.v1 as tf

    import train
    import utils
    from datasets import batches, records
    from inference import devices, predictor, weights
    utils.quiet_tensorflow()
    checkpoint, highest, labels = weights.find_checkpoint(checkpoint), [], []
    network = train.read_network(checkpoint)
    num_examples = records.count_examples(record)
    turns.wait()
    with tf.Graph().as_default(), tf.Session(config=devices.session_config()) as session:
        reader = batches.build_reader(record, num_examples, network.number_of_classes)
        loaded = predictor.load_predictor(session, checkpoint, train.fcn, network)
        for number, (example, probabilities) in enumerate(predictor.predict_record(session, loaded, reader)):
            np.savez(os.path.join(folder, f'{number}.npz'), image=example['image'], probabilities=probabilities)
            highest.append(float(probabilities.max(axis=-1).mean()))
            labels.append(len(crf.find_labels(probabilities)))
    turns.report(len(highest), 0, highest=np.mean(highest), labels=np.mean(labels))


def load_maps(folder):
    """What write_maps wrote: list of (image uint8 [H, W, 3], probabilities float32 [H, W, C])."""
    maps = []
    for path in sorted(glob.glob(os.path.join(folder, '*.npz'))):
        with np.load(path) as arrays:
            maps.append((arrays['image'], arrays['probabilities']))
    return maps


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


def ours(turns, folder, images):
    """Contender: crf.refine over the next few images of a folder of write_maps in each round, round and round."""
    refine_in_turn(turns, folder, images, lambda pairs: [crf.refine(*pair) for pair in pairs])


def all_labels(turns, folder, images):
    """Contender: as `ours`, with plain_pydensecrf."""
    refine_in_turn(turns, folder, images, lambda pairs: [plain_pydensecrf(*pair) for pair in pairs])


def pool(turns, folder, images):
    """Contender: as `ours`, in two processes, as evaluate.py has them."""
    with crf.start_processes(2) as executor:
        refine_in_turn(turns, folder, images, lambda pairs: [
            job.result() for job in [crf.submit(executor, *pair) for pair in pairs]])


def refine_in_turn(turns, folder, images, refine):
    """Calls refine(list of so many (image, probabilities)) once a round."""
    endless = itertools.cycle(load_maps(folder))
    while True:
        pairs = list(itertools.islice(endless, images))
        with turns.round(images):
            refine(pairs)


def compare(turns, folder):
    """Refines all maps both ways. One round, whose `extra` has percent_equal as 'equal'."""
    maps = load_maps(folder)
    turns.wait()
    equal = percent_equal([crf.refine(*pair) for pair in maps], [plain_pydensecrf(*pair) for pair in maps])
    turns.report(len(maps), 0, equal=equal)


def percent_equal(ours, theirs):
    """How many percent of the pixels have the same label in both lists of label maps, over all maps together."""
    equal = np.concatenate([(own == other).ravel() for own, other in zip(ours, theirs)])
    return 100 * float(equal.mean())
