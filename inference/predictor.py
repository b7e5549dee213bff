"""A network predicts: one image, or every image of a record at its true size, and its scores over a record.

    predictor = load_predictor(session, checkpoint, train.fcn, train.read_network(checkpoint))
    probabilities = predict_image(session, predictor, image)

The function that builds the network is handed in, so that nothing here depends on train.py.
"""
from typing import NamedTuple

import numpy as np
import tensorflow.compat.v1 as tf
import tqdm

from datasets.batches import run_input
from inference import averaging, weights
from inference.devices import is_out_of_memory
from inference.scores import Score, cross_entropy
from utils import UserError


class Predictor(NamedTuple):
    """A network that predicts one image at a time."""
    image: tf.Tensor  # placeholder, uint8 [1, H, W, 3] RGB
    probabilities: tf.Tensor  # float32 [1, H, W, C], softmax
    network: tuple  # train.Network


def build_predictor(fcn, network):
    """Builds a network, a train.Network, for prediction in the default graph; returns a Predictor.
    It uses the variables that are there. `fcn` is a function of images and a network to logits, such as train.fcn."""
    image = tf.placeholder(tf.uint8, [1, None, None, 3], name='image')
    with tf.xla.experimental.jit_scope(compile_ops=False):  # XLA would compile for every size of image
        logits = tf.ensure_shape(fcn(image, network), [1, None, None, None])  # else TensorFlow warns of an unknown rank
        return Predictor(image, tf.nn.softmax(logits, name='probabilities'), network)


def load_predictor(session, checkpoint, fcn, network):
    """Builds a Predictor and sets its variables from a checkpoint; UserError if that is damaged or does not fit."""
    predictor = build_predictor(fcn, network)
    weights.restore(session, checkpoint, weights.network_variables())
    return predictor


def predict_strips(session, predictor, image, passes=averaging.DEFAULTS):
    """Predicts one image, uint8 RGB [H, W, 3], from top to bottom; see averaging.predict_strips."""
    def run(seen):
        return session.run(predictor.probabilities, {predictor.image: seen[np.newaxis]})[0]

    return averaging.predict_strips(run, image, passes)


def predict_image(session, predictor, image, passes=averaging.DEFAULTS):
    """Predicts one image, uint8 RGB [H, W, 3]: softmax, float32 [H, W, C]."""
    return averaging.join_strips(predict_strips(session, predictor, image, passes), image.shape[:2])


def predict_example(session, predictor, example, record, passes=averaging.DEFAULTS):
    """predict_image for an example of batches.whole_images; UserError, with the record's path, if memory runs out."""
    try:
        return predict_image(session, predictor, example['image'], passes)
    except (tf.errors.OpError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        height, width, _ = example['image'].shape
        raise UserError(f'{record}: out of memory at {example["filename"].decode(errors="replace")}, '
                        f'{width} x {height} pixels; leave it out, or run on the CPU') from None


def predict_record(session, predictor, reader, before_each=lambda: None, passes=averaging.DEFAULTS):
    """Predicts every image of a record, a batches.Reader, at its true size, one after the other.
    Yields an example, dict (see batches.whole_images), and its probabilities, float32 [H, W, C]. `before_each` is
    called before each image; an exception there ends the iteration. Raises UserError if the record cannot be read, or
    memory does not suffice for an image."""
    session.run(reader.initializer)
    for _ in range(reader.num_examples):
        before_each()
        example = run_input(session, reader.next_example, reader.record)
        yield example, predict_example(session, predictor, example, reader.record, passes)


def score_record(session, predictor, reader, before_each=lambda: None):
    """Scores the network on every image of a record; for the arguments see predict_record. Returns a scores.Score, and
    the loss per pixel, float: mean cross-entropy over all pixels that are not void; nan if there are none."""
    score, loss = Score(predictor.network.number_of_classes), 0.0
    predictions = predict_record(session, predictor, reader, before_each)
    for example, probabilities in tqdm.tqdm(predictions, 'evaluating', reader.num_examples, leave=False, disable=None):
        score.add(example['label'], probabilities.argmax(axis=-1))
        loss += cross_entropy(example['label'], probabilities)
    pixels = score.confusion.sum()
    return score, loss / pixels if pixels else float('nan')
