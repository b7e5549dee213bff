import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import write_record

import crf
import evaluate
import train
from utils import UserError


def score_by_hand(folder, pairs, refine):
    """Confusion matrix counted pixel by pixel from the network's predictions."""
    confusion = np.zeros((21, 21), np.int64)
    with tf.Graph().as_default(), tf.Session() as session:
        predictor = train.load_predictor(session, train.find_checkpoint(str(folder / 'train')))
        for image, label in pairs:
            probabilities = session.run(predictor.probabilities, {predictor.image: image[np.newaxis]})[0]
            prediction = crf.refine(image, probabilities) if refine else probabilities.argmax(axis=-1)
            for annotated, predicted in zip(label.ravel(), prediction.ravel(), strict=True):
                if annotated != 255:
                    confusion[annotated, predicted] += 1
    return confusion


@pytest.fixture
def flat_record(tmp_path):
    """Images of one colour, which JPEG keeps to the level, so that a test can hold them too."""
    random = np.random.RandomState(0)
    pairs = [(np.full((*size, 3), level, np.uint8), random.choice([0, 3, 255], size).astype(np.uint8))
             for size, level in (((40, 33), 60), ((20, 50), 200))]
    return write_record(tmp_path / 'flat.record', pairs), pairs


@pytest.mark.parametrize('with_crf', [False, True])
def test_evaluate_counts_every_pixel_of_every_image(trained, flat_record, with_crf):
    record, pairs = flat_record
    scores = evaluate.evaluate(train.find_checkpoint(str(trained / 'train')), record, with_crf).scores
    assert list(scores) == (['plain', 'crf'] if with_crf else ['plain'])
    for name, confusion in ((name, score.confusion) for name, score in scores.items()):
        np.testing.assert_array_equal(confusion, score_by_hand(trained, pairs, refine=name == 'crf'))
        assert confusion.sum() == sum((label != 255).sum() for _, label in pairs)


def test_print_scores(capsys):
    confusion = np.zeros((21, 21), np.int64)
    confusion[0, 0], confusion[0, 2], confusion[2, 2] = 6, 2, 4
    evaluate.print_scores({'plain': confusion, 'crf': confusion.T})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ['IoU', 'with', 'CRF']
    assert lines[1].split() == ['background', '0.7500', '0.7500']
    assert lines[2].split() == ['aeroplane', 'absent', 'absent']
    assert lines[3].split() == ['bicycle', '0.6667', '0.6667']
    assert lines[-2].split() == ['mean', 'IoU', '0.7083', '0.7083']
    assert lines[-1].split() == ['pixel', 'accuracy', '0.8333', '0.8333']


def test_a_checkpoint_of_another_network_is_named(tmp_path, record):
    with tf.Graph().as_default(), tf.Session() as session:
        variable = tf.get_variable('vgg_16/conv1/conv1_1/weights', [3, 3, 3, 64])
        session.run(variable.initializer)
        tf.train.Saver().save(session, str(tmp_path / 'other.ckpt'))
    with pytest.raises(UserError, match='other.ckpt: variable vgg_16/fc6/weights is missing'):
        evaluate.evaluate(str(tmp_path / 'other.ckpt'), record, False)


def test_the_script(trained, record):
    done = subprocess.run([sys.executable, os.path.join(os.path.dirname(train.__file__), 'evaluate.py'),
                           '--checkpoint_path', str(trained / 'train'), '--dataset', record, '--crf'],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'mean IoU' in done.stdout and 'with CRF' in done.stdout
