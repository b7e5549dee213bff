"""A network predicts one image, and scores a record."""
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import draw_photo, randomize_pool3

import train
import utils
from datasets.batches import Reader, build_reader
from inference.predictor import Predictor, build_predictor, load_predictor, predict_image, predict_record, score_record
from inference.weights import find_checkpoint, network_variables
from train import Network
from utils import UserError


def test_score_record_against_the_definition(small_runs, trained, record, pairs):
    checkpoint = find_checkpoint(str(trained))
    with tf.Session() as session:
        predictor = load_predictor(session, checkpoint, train.fcn, train.read_network(checkpoint))
        reader = build_reader(record, 5)
        examples = [(example['label'], probabilities)
                    for example, probabilities in predict_record(session, predictor, reader)]
        score, loss = score_record(session, predictor, reader)  # a second pass over the same reader
    entropies, hits = [], []
    for label, probabilities in examples:
        for annotated, of_classes in zip(label.ravel(), probabilities.reshape(-1, 21), strict=True):
            if annotated != 255:
                entropies.append(-math.log(of_classes[annotated]))
                hits.append(annotated == of_classes.argmax())
    assert len(hits) == sum((label != 255).sum() for _, label in pairs)
    assert loss == pytest.approx(np.mean(entropies), rel=1e-5)
    assert score.figures()['pixel_accuracy'] == pytest.approx(np.mean(hits), rel=1e-12)


PREDICT = """
import sys
import utils
utils.import_tensorflow(frozen_weights=True)
import numpy as np
import tensorflow.compat.v1 as tf
import train
from inference.predictor import load_predictor, predict_image
path, checkpoint, *images = sys.argv[1:]
with tf.Session() as session:
    predictor = load_predictor(session, checkpoint, train.fcn, train.read_network(checkpoint))
    np.savez(path, *[predict_image(session, predictor, np.load(image)) for image in images])
"""


def save_random_network(path):
    """Writes a checkpoint of a network whose random scores of pool3 find many classes."""
    with tf.Graph().as_default(), tf.Session() as session:
        build_predictor(train.fcn, Network(fc_channels=8))
        session.run(tf.global_variables_initializer())
        randomize_pool3(session, seed=3, spread=0.03)
        return tf.train.Saver(network_variables()).save(session, path, write_meta_graph=False)


@pytest.mark.slow
def test_frozen_weights_change_no_probability(full_network, tmp_path):
    """Images of several sizes, the first one again: oneDNN may want another copy of the weights for each size."""
    checkpoint, images, paths = save_random_network(str(tmp_path / 'model.ckpt')), [], []
    for number, size in enumerate(((64, 96), (375, 500), (40, 33), (64, 96))):
        images.append(draw_photo(*size, seed=number))
        paths.append(tmp_path / f'{number}.npy')
        np.save(paths[-1], images[-1])
    environment = {name: value for name, value in os.environ.items() if name != 'TF_ONEDNN_ASSUME_FROZEN_WEIGHTS'}
    subprocess.run([sys.executable, '-c', PREDICT, tmp_path / 'frozen.npz', checkpoint, *paths], check=True,
                   env=environment, cwd=os.path.dirname(utils.__file__))
    frozen = np.load(tmp_path / 'frozen.npz')
    with tf.Session() as session:
        predictor = load_predictor(session, checkpoint, train.fcn, train.read_network(checkpoint))
        for number, image in enumerate(images):
            np.testing.assert_allclose(frozen[f'arr_{number}'], predict_image(session, predictor, image), rtol=1e-4)


class Session:
    """Gives one example, and then has no memory left."""

    def __init__(self):
        self.results = [None, {'filename': b'big', 'image': np.zeros((3, 4, 3), np.uint8)}]

    def run(self, *_):
        if not self.results:
            raise tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating')
        return self.results.pop(0)


def test_an_image_too_large_for_memory_is_named():
    predictor = Predictor('image', 'probabilities', Network())
    reader = Reader('a.record', 1, 'initializer', 'next')
    with pytest.raises(UserError, match='^a.record: out of memory at big, 4 x 3 pixels; leave it out'):
        next(predict_record(Session(), predictor, reader))


def test_what_is_called_before_each_image_may_end_the_iteration():
    def stop():
        raise KeyboardInterrupt

    predictor = Predictor('image', 'probabilities', Network())
    session = Session()
    with pytest.raises(KeyboardInterrupt):
        next(predict_record(session, predictor, Reader('a.record', 1, 'initializer', 'next'), stop))
    assert len(session.results) == 1  # the initializer alone was run
