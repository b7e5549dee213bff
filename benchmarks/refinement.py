"""Contenders for the dense CRF. Only write_maps imports TensorFlow: a process that refines is small."""
import os
import time

import numpy as np
from pydensecrf import densecrf
from pydensecrf.utils import unary_from_softmax

from benchmarks.measure import Round
from inference import crf


def write_maps(checkpoint, record, count, folder):
    """Predicts images spread over a record, into FOLDER/image_K.npy and probabilities_K.npy. Yields one Round.

    `extra`: str, how decided the maps are.

    Args:
        checkpoint: str, or the folder of a run. record, folder: str. count: int; fewer if the record holds fewer.
    """
    import input_pipeline
    import tensorflow.compat.v1 as tf

    import train
    train.quiet_tensorflow()
    checkpoint = train.find_checkpoint(checkpoint)
    num_examples = input_pipeline.count_examples(record)
    chosen = sorted({number * num_examples // count for number in range(count)})
    started = time.perf_counter()
    highest, in_play = [], []
    with tf.Graph().as_default(), tf.Session(config=train.session_config()) as session:
        predictor = train.load_predictor(session, checkpoint)
        next_example = tf.data.make_one_shot_iterator(input_pipeline.whole_images(record)).get_next()
        examples = (session.run(next_example) for _ in range(num_examples))
        picked = (example for number, example in enumerate(examples) if number in chosen)
        for number, example in enumerate(picked):
            probabilities = train.predict_example(session, predictor, example, record)
            np.save(os.path.join(folder, f'image_{number}.npy'), example['image'])
            np.save(os.path.join(folder, f'probabilities_{number}.npy'), probabilities)
            highest.append(probabilities.max(axis=-1).mean())
            in_play.append(len(crf.find_labels(probabilities)))
    yield Round(len(chosen), time.perf_counter() - started, extra=(
        f'highest probability of a pixel {np.mean(highest):.2f} on average, {np.mean(in_play):.1f} labels in play'))


def load_maps(folder, numbers):
    """What write_maps wrote: list of (image uint8 [H, W, 3], probabilities float32 [H, W, C])."""
    return [tuple(np.load(os.path.join(folder, f'{kind}_{number}.npy')) for kind in ('image', 'probabilities'))
            for number in numbers]


def plain_pydensecrf(image, probabilities):
    """All labels through pydensecrf, as its own example does it, with the default parameters of crf.refine.

    Args, returns: as crf.refine.
    """
    settings = crf.Parameters()
    height, width, number_of_classes = probabilities.shape
    field = densecrf.DenseCRF2D(width, height, number_of_classes)
    field.setUnaryEnergy(unary_from_softmax(np.ascontiguousarray(probabilities.transpose(2, 0, 1))))
    field.addPairwiseGaussian(sxy=settings.gaussian_xy, compat=settings.gaussian_compat)
    field.addPairwiseBilateral(sxy=settings.bilateral_xy, srgb=settings.bilateral_rgb,
                               rgbim=np.ascontiguousarray(image), compat=settings.bilateral_compat)
    marginals = np.array(field.inference(settings.iterations))
    return marginals.argmax(axis=0).reshape(height, width).astype(np.uint8)


FUNCTIONS = {'crf.refine': crf.refine, 'pydensecrf': plain_pydensecrf}


def one_process(function, folder, count, per_round):
    """Contender: the next few images a round, round and round; `extra` is their refined labels.

    Args:
        function: str, key of FUNCTIONS. folder: str, see write_maps.
        count, per_round: ints, images in the folder and in a round.
    """
    first = 0
    while True:
        pairs = load_maps(folder, [number % count for number in range(first, first + per_round)])
        started = time.perf_counter()
        labels = [FUNCTIONS[function](image, probabilities) for image, probabilities in pairs]
        yield Round(len(pairs), time.perf_counter() - started, extra=labels)
        first += per_round


def pool(folder, count, per_round, processes):
    """Contender: the next few images a round through evaluate.py's pool of processes."""
    first = 0
    with crf.start_processes(processes) as executor:
        while True:
            pairs = load_maps(folder, [number % count for number in range(first, first + per_round)])
            started = time.perf_counter()
            labels = [job.result() for job in [crf.submit(executor, *pair) for pair in pairs]]
            yield Round(len(pairs), time.perf_counter() - started, extra=labels)
            first += per_round


# ------------------------------------------------------------------------------------------- how the cost grows


def grow(folder, number, heights, label_counts, repeats):
    """Contender of one round, whose `extra` are two tables: seconds by pixels, and seconds by labels.

    By pixels: one image and its map at several sizes, with all labels in play (the map mixed with the even one, so that
    none is out of the question) and as the network gave it. By labels: its most probable K labels, all in play.

    Args:
        folder: str. number: int, of the image. heights: ints, pixels. label_counts: ints. repeats: int, of which the
            fastest counts.
    """
    image, probabilities = load_maps(folder, [number])[0]
    by_pixels, by_labels = [], []
    started = time.perf_counter()
    for height in heights:
        small, small_map = resize(image, probabilities, height)
        all_in_play = in_play(small_map)
        by_pixels.append((small.shape[0] * small.shape[1],
                          *(fastest(function, small, given, repeats) for function, given in (
                              (plain_pydensecrf, all_in_play), (crf.refine, all_in_play), (crf.refine, small_map)))))
    for labels in label_counts:
        given = in_play(probabilities[:, :, probabilities.sum((0, 1)).argsort()[::-1][:labels]])
        by_labels.append((labels, *(fastest(function, image, given, repeats)
                                    for function in (plain_pydensecrf, crf.refine))))
    yield Round(1, time.perf_counter() - started, extra=(by_pixels, by_labels))


def in_play(probabilities):
    """A map half its own (scaled to sum 1) and half even: no label is out of the question anywhere."""
    own = probabilities / np.maximum(probabilities.sum(-1, keepdims=True), 1e-20)
    return ((own + 1 / own.shape[-1]) / 2).astype(np.float32)


def resize(image, probabilities, height):
    """Image and map at a height, at their own proportions; the map class by class, bilinearly."""
    import cv2
    size = max(1, round(height * image.shape[1] / image.shape[0])), height
    scaled = [cv2.resize(np.ascontiguousarray(probabilities[:, :, index]), size)
              for index in range(probabilities.shape[-1])]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.stack(scaled, axis=-1)


def fastest(function, image, probabilities, repeats):
    """Seconds of the fastest of some calls."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function(image, probabilities)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
