"""The pictures of a validation."""
import numpy as np
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
