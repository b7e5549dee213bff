"""Scores worked out by hand."""
import numpy as np
import pytest

from inference.scores import (
    Score,
    accuracy_per_class,
    boundary_band,
    confusion_matrix,
    cross_entropy,
    iou_per_class,
    mean_iou,
    pixel_accuracy,
)

LABELS = np.array([[0, 0, 1], [1, 2, 2], [255, 255, 2]], np.uint8)
PREDICTIONS = np.array([[0, 1, 1], [1, 2, 0], [0, 2, 2]], np.uint8)


def test_scores_of_a_3x3_example():
    confusion = confusion_matrix(LABELS, PREDICTIONS, 4)
    np.testing.assert_array_equal(confusion, [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(iou_per_class(confusion), [1 / 3, 2 / 3, 2 / 3, np.nan])
    assert mean_iou(confusion) == pytest.approx(5 / 9)  # class 3 occurs nowhere: not in the mean
    assert pixel_accuracy(confusion) == pytest.approx(5 / 7)  # two of the nine pixels are void


def test_every_figure_of_the_3x3_example():
    """By hand. All seven annotated pixels: 1 of 2, 2 of 2, 2 of 3 right; IoU 1/3, 2/3, 2/3 (see above).

    The void pixels of the last row take the classes 1 and 2 of those above them, so that every pixel but the last
    touches a border. Without it and the void: IoU 1/3, 2/3, 1/2.
    """
    score = Score(4, boundary_width=1)
    assert score.add(LABELS, PREDICTIONS) == pytest.approx(5 / 9)
    np.testing.assert_array_equal(score.boundary_confusion, [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    assert score.figures() == pytest.approx({
        'mean_iou': 5 / 9, 'pixel_accuracy': 5 / 7, 'mean_accuracy': (1 / 2 + 1 + 2 / 3) / 3,
        'frequency_weighted_iou': (2 * 1 / 3 + 2 * 2 / 3 + 3 * 2 / 3) / 7, 'boundary_iou': (1 / 3 + 2 / 3 + 1 / 2) / 3})
    np.testing.assert_allclose(accuracy_per_class(score.confusion), [1 / 2, 1, 2 / 3, np.nan])


def test_a_score_adds_up_images():
    score = Score(4)
    score.add(LABELS, PREDICTIONS)
    score.add(np.full((1, 2), 3, np.uint8), np.full((1, 2), 0, np.uint8))
    assert score.image_ious == pytest.approx([5 / 9, 0])
    np.testing.assert_array_equal(score.confusion, [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 2, 0], [2, 0, 0, 0]])
    # class 0 now: 1 hit, 2 annotated, 4 predicted, IoU 1 / (2 + 4 - 1); class 3: no hit
    assert score.figures()['mean_iou'] == pytest.approx((1 / 5 + 2 / 3 + 2 / 3 + 0) / 4)
    assert score.figures()['boundary_iou'] == pytest.approx(5 / 9)  # the second image has no border


def test_scores_of_nothing_are_nan():
    score = Score(3)
    assert np.isnan(score.add(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8)))
    assert score.confusion.sum() == 0 and all(np.isnan(value) for value in score.figures().values())


def test_the_border_runs_in_the_middle_of_the_void():
    labels = np.zeros((5, 12), np.uint8)
    labels[:, 6:] = 1
    labels[:, 5:7] = 255
    for width, band in ((1, []), (2, [4, 7]), (3, [3, 4, 7, 8])):  # 5 and 6 touch at the border, but are void
        expected = np.zeros((5, 12), bool)
        expected[:, band] = True
        np.testing.assert_array_equal(boundary_band(labels, 21, width), expected)


@pytest.mark.parametrize('labels', [[[0]], [[255]], [[255] * 3] * 2, [[1, 1], [1, 255]]])
def test_without_two_classes_there_is_no_band(labels):
    assert not boundary_band(np.array(labels, np.uint8), 21, 5).any()


def test_cross_entropy():
    labels = np.array([[0, 1, 255], [1, 0, 255]], np.uint8)
    probabilities = np.full((2, 3, 2), 0.5, np.float32)
    probabilities[0, 1], probabilities[1, 1] = (0.75, 0.25), (0, 1)
    # ln 2 + ln 4 + ln 2, and a pixel whose probability is 0: the smallest normal float32 is 2 ** -126
    assert cross_entropy(labels, probabilities) == pytest.approx((1 + 2 + 1 + 126) * np.log(2))
