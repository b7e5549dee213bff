"""The pictures of a validation."""
import numpy as np
import pytest
from PIL import Image

from datasets import classes
from inference import crf
from report import validation


def test_the_refined_classes_follow_the_parameters(tmp_path):
    """A red and a blue half: the CRF removes the noise, and without an iteration it stays."""
    labels = np.repeat([[1] * 30 + [2] * 30], 40, axis=0).astype(np.uint8)
    image = np.array([(0, 0, 0), (200, 30, 30), (30, 30, 200)], np.uint8)[labels]
    noisy = np.where(np.random.RandomState(1).rand(40, 60) < 0.9, labels, 0)
    probabilities = np.where(np.eye(3)[noisy] == 1, 0.6, 0.2).astype(np.float32)
    for parameters, expected in ((crf.DEFAULTS, labels), (crf.Parameters(iterations=0), noisy)):
        paths, scores = validation.write_validation(str(tmp_path), 1, image, labels, probabilities,
                                                    classes.make_class_set(('a', 'b', 'c')), parameters)
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / 'val_1_prediction_crfed.png')), expected)
        assert scores[1] == (1 if expected is labels else scores[0]) and scores[0] < 0.7
    assert paths['overlay'] == str(tmp_path / 'val_1_overlay.jpg') and len(list(tmp_path.iterdir())) == 8


def test_write_validation_scores_the_image(tmp_path):
    label = np.array([[0, 0, 3, 255]] * 4, np.uint8)
    probabilities = np.full((4, 4, 21), 0.001, np.float32)
    probabilities[:, :, 0] = 0.98
    _, (plain, _) = validation.write_validation(str(tmp_path), 7, np.zeros((4, 4, 3), np.uint8), label, probabilities,
                                                classes.VOC)
    assert plain == pytest.approx((8 / 12 + 0) / 2)  # background: 8 right of 12; class 3: none of 4
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / 'val_7_prediction.png')), 0)
