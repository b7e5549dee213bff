"""Averages over scales and mirrors, and windows, by networks whose answers are known."""
import argparse
import tracemalloc

import cv2
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


# ------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize('side', [1, 31, 64, 65, 96, 127, 128, 129, 500, 1000, 2049])
@pytest.mark.parametrize('tile, overlap', [(64, 32), (128, 0), (100, 30), (256, 224), (1024, 128)])
def test_windows_cover_a_side_and_weigh_1(side, tile, overlap):
    windows, total = averaging.place_windows(side, tile, overlap), np.zeros(side)
    for window in windows:
        assert window.start % 32 == 0 and 0 < window.stop - window.start <= tile and window.weights.min() >= 0
        total[window.start:window.stop] += window.weights
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert windows[0].start == 0 and windows[-1].stop == side
    for first, second in zip(windows, windows[1:]):
        assert first.start < second.start <= first.stop - overlap
    if tile >= side:
        assert len(windows) == 1 and (windows[0].weights == 1).all()


def test_the_weights_are_a_raised_cosine():
    """Two windows of 64 pixels over 96 share 32: the first falls there as (1 + cos) / 2."""
    first, second = averaging.place_windows(96, 64, 32)
    falling = (1 + np.cos(np.pi * (np.arange(32) + 0.5) / 32)) / 2
    np.testing.assert_allclose(first.weights, [1] * 32 + falling.tolist(), atol=1e-6)
    np.testing.assert_allclose(second.weights, (1 - falling).tolist() + [1] * 32, atol=1e-6)


@pytest.mark.parametrize('scales, flip', [((1.0,), False), ((0.5, 1.0), True)])
@pytest.mark.parametrize('size', [(300, 500), (129, 64), (40, 700)])
def test_without_context_windows_give_what_one_pass_gives(size, scales, flip):
    """A network that looks at each pixel alone, on an image whose brightness is smooth."""
    image = np.zeros((*size, 3), np.uint8)
    image[:] = np.linspace(0, 255, size[1])[:, np.newaxis].round()

    def run(seen):
        assert max(seen.shape[:2]) <= 64
        return two_classes(seen[:, :, 0] / 255)

    strips = list(averaging.predict_strips(run, image, averaging.Passes(scales, flip, 64, 16)))
    assert [top for top, _ in strips] == np.cumsum([0] + [len(strip) for _, strip in strips])[:-1].tolist()
    np.testing.assert_allclose(averaging.join_strips(strips, size), two_classes(image[:, :, 0] / 255), atol=0.01)


def test_memory_holds_two_rows_of_windows():
    image, tile, classes = np.zeros((1500, 600, 3), np.uint8), 128, 21
    row = tile * 600 * classes * 4
    tracemalloc.start()
    for _, strip in averaging.predict_strips(lambda seen: np.ones((*seen.shape[:2], classes), np.float32), image,
                                             averaging.Passes(tile=tile, overlap=32)):
        assert len(strip) <= tile
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.2 * row  # with the windows themselves; the complete map would be 11.7


@pytest.mark.parametrize('size', [(90, 160), (22, 500), (90, 40)])
def test_enlarge_is_bilinear_in_every_strip(size):
    small = np.random.RandomState(0).dirichlet(np.ones(5), (22, 40)).astype(np.float32)
    strips = list(averaging.enlarge(small, size, rows=16))
    assert max(len(strip) for _, strip in strips) <= 16
    np.testing.assert_allclose(averaging.join_strips(strips, size), cv2.resize(small, size[::-1]), atol=1e-5)


def test_parse_scales():
    assert averaging.parse_scales('0.75,1,1.25') == (0.75, 1, 1.25) and averaging.parse_scales('2') == (2,)


@pytest.mark.parametrize('text, message', [
    ('', "'' is not a number"), ('1,', "'' is not a number"), ('1;2', "'1;2' is not a number"),
    ('1,0', '0 is not a number above 0'), ('nan', 'nan is not a number above 0'), ('5', '5 is above 4'),
    ('-1', '-1 is not a number above 0'), ('inf', 'inf is too large')])
def test_scales_that_are_none_are_named(text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        averaging.parse_scales(text)
