"""The classes over a photo, and their legend."""
import numpy as np
import pytest
from conftest import CAMVID

import utils
from datasets import classes
from inference import legend


@pytest.mark.parametrize('size', [(1, 1), (300, 400), (400, 60), (4, 2000), (1500, 1600)])
def test_the_legend_names_the_classes(size):
    labels = np.zeros(size, np.uint8)
    labels.flat[:3] = (15, 0, 20) if labels.size > 3 else 15
    image = np.full((*size, 3), 100, np.uint8)
    overlay = legend.draw_overlay(image, labels, classes.VOC)
    key = overlay.copy()
    key[:size[0], :size[1]] = 255
    text_size = max(16, round((size[0] * size[1]) ** 0.5 / 40))
    assert (key == (192, 128, 128)).all(axis=-1).sum() >= (text_size - 1) ** 2
    assert (key == (0, 64, 128)).all(axis=-1).any() == (labels.size > 3)
    assert (key < 60).all(axis=-1).sum() > 50  # letters
    photo = overlay[:size[0], :size[1]]
    np.testing.assert_array_equal(photo, utils.overlay(image, labels, utils.voc_palette(), has_background=True))


def test_a_legend_without_classes_says_so():
    def draw(labels):
        return legend.draw_legend(labels, classes.VOC, 300, 16)

    assert (draw([0]) < 60).all(axis=-1).sum() > 50
    assert draw([0, 1]).shape == draw([1]).shape == (32, 300, 3)
    assert draw(range(21)).shape[0] > 100  # wrapped


def test_place_in_rows():
    assert legend.place_in_rows([30, 40, 50, 200, 10], 100, start=5, row_height=20) == [
        (5, 5), (35, 5), (5, 25), (5, 45), (5, 65)]


def test_a_class_0_that_is_no_background_is_drawn_like_the_others():
    image, labels = np.full((60, 300, 3), 100, np.uint8), np.zeros((60, 300), np.uint8)
    labels[:, 200:] = 10
    overlay = legend.draw_overlay(image, labels, CAMVID)
    assert overlay[30, 100].tolist() == [117, 40, 40] and overlay[30, 250].tolist() == [155, 117, 40]
    for colour in ((128, 0, 0), (192, 128, 0)):  # 60% of these on 40% of 100, above; in the legend as they are
        assert (overlay[60:] == colour).all(axis=-1).sum() >= 15 ** 2
    assert (legend.draw_legend([0], CAMVID, 300, 16) != legend.draw_legend([0], classes.VOC, 300, 16)).any()
