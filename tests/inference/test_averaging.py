"""Averages over scales and mirrors, by networks whose answers are known."""
import argparse

import numpy as np
import pytest

from inference import averaging


def two_classes(first):
    """Probabilities [H, W, 2] whose first class has float [H, W]."""
    return np.dstack([first, 1 - first]).astype(np.float32)


def test_scale_1_alone_is_the_network_to_the_last_bit():
    image = np.random.RandomState(0).randint(0, 256, (5, 7, 3), np.uint8)
    probabilities = np.random.RandomState(1).dirichlet(np.ones(21), (5, 7)).astype(np.float32)
    seen = []

    def run(image):
        seen.append(image)
        return probabilities.copy()

    np.testing.assert_array_equal(averaging.average_probabilities(run, image), probabilities)
    assert len(seen) == 1 and seen[0] is image


def test_the_mirror_is_undone():
    """A network that says the brightness gives it at every place; one that says 0.8 on the left half gives 0.5."""
    image = np.zeros((2, 4, 3), np.uint8)
    image[:, :, 0] = (0, 51, 102, 255)
    said = averaging.average_probabilities(lambda seen: two_classes(seen[:, :, 0] / 255), image, flip=True)
    np.testing.assert_allclose(said, two_classes(np.array([[0, 0.2, 0.4, 1]] * 2)), atol=1e-6)

    left = np.array([[0.8, 0.8, 0.2, 0.2]] * 2)
    said = averaging.average_probabilities(lambda seen: two_classes(left), image, flip=True)
    np.testing.assert_allclose(said, np.full((2, 4, 2), 0.5), atol=1e-6)


def test_every_scale_and_mirror_weighs_the_same():
    """The network tells by the width which scale it sees, 0.2 at 4, 0.4 at 8, 0.9 at 16, and 0.1 less if mirrored."""
    image = np.zeros((6, 8, 3), np.uint8)
    image[:, -1] = 255
    seen_sizes = []

    def run(seen):
        seen_sizes.append(seen.shape)
        value = {4: 0.2, 8: 0.4, 16: 0.9}[seen.shape[1]] - 0.1 * (seen[0, 0, 0] > 0)
        return two_classes(np.full(seen.shape[:2], value))

    said = averaging.average_probabilities(run, image, (0.5, 1, 2))
    np.testing.assert_allclose(said, two_classes(np.full((6, 8), 0.5)), atol=1e-6)
    assert seen_sizes == [(3, 4, 3), (6, 8, 3), (12, 16, 3)]
    said = averaging.average_probabilities(run, image, (0.5, 2), flip=True)
    np.testing.assert_allclose(said, two_classes(np.full((6, 8), (0.2 + 0.1 + 0.9 + 0.8) / 4)), atol=1e-6)
    assert said.dtype == np.float32 and said.shape == (6, 8, 2)


@pytest.mark.parametrize('scales', [(0.5,), (2,), (1.25,), (0.75, 1, 1.25), (1.5, 0.3)])
@pytest.mark.parametrize('flip', [False, True])
def test_a_linear_ramp_survives(scales, flip):
    """What lies at a share of the width is said to lie there: pixel centres are at (column + 1/2) / width.

    The network tells by the image's ends, dark and bright, whether it sees the mirrored one.
    """
    image = np.zeros((30, 40, 3), np.uint8)
    image[:, 20:] = 200

    def run(seen):
        height, width, _ = seen.shape
        ramp = (np.arange(width) + 0.5) / width
        return two_classes(np.tile(ramp if seen[0, 0, 0] < seen[0, -1, 0] else ramp[::-1], (height, 1)))

    said = averaging.average_probabilities(run, image, scales, flip)
    edge = 4  # beyond the outermost centres of the smallest scale there is nothing to interpolate with
    expected = np.tile((np.arange(40) + 0.5) / 40, (30, 1))
    np.testing.assert_allclose(said[:, edge:-edge, 0], expected[:, edge:-edge], atol=1e-5)


@pytest.mark.parametrize('scale, expected', [(2, [0, 2, 6, 8]), (0.5, [4])])
def test_images_are_scaled_about_their_pixel_centres(scale, expected):
    """To twice the size by quarters and three quarters (8 * 1/4 = 2), to half of it by the mean."""
    image = np.repeat(np.array([[0, 8]] * 2, np.uint8)[:, :, np.newaxis], 3, axis=2)
    scaled = averaging.scale_image(image, scale)
    assert scaled.shape == (2 * scale, 2 * scale, 3) and scaled[0, :, 0].tolist() == expected


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (17, 3)])
@pytest.mark.parametrize('classes', [1, 2, 254])
def test_any_size_and_number_of_classes_sums_to_1(size, classes):
    random = np.random.RandomState(0)

    def run(seen):
        return random.dirichlet(np.ones(classes), seen.shape[:2]).astype(np.float32)

    said = averaging.average_probabilities(run, np.zeros((*size, 3), np.uint8), (0.1, 0.75, 1, 1.7), flip=True)
    assert said.shape == (*size, classes) and said.min() >= 0
    np.testing.assert_allclose(said.sum(axis=-1), 1, atol=1e-5)


def test_parse_scales():
    assert averaging.parse_scales('0.75,1,1.25') == (0.75, 1, 1.25) and averaging.parse_scales('2') == (2,)


@pytest.mark.parametrize('text, message', [
    ('', "'' is not a number"), ('1,', "'' is not a number"), ('1;2', "'1;2' is not a number"),
    ('1,0', '0 is not a number above 0'), ('nan', 'nan is not a number above 0'), ('5', '5 is above 4'),
    ('-1', '-1 is not a number above 0'), ('inf', 'inf is too large')])
def test_scales_that_are_none_are_named(text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        averaging.parse_scales(text)
