"""Scale, rotation, mirror and colour: image and label stay one, and each draw has the range that it should have."""
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import write_png_record

from datasets import augmentation
from datasets.batches import Sampling, training_batches

FILL = (9.0, 7.0, 200.0)  # the only colour here with any blue
MOVES = ('flip', 'scale', 'rotate')
# The colours of 21 classes and void lie on a circle: no mixture of some of them is another.
ANGLES = np.linspace(0, 2 * np.pi, 22, endpoint=False)
COLOURS = np.stack([128 + 120 * np.cos(ANGLES), 128 + 120 * np.sin(ANGLES), 0 * ANGLES], axis=-1).round().astype(int)


def run_batches(record, count, num_examples=5, batch_size=10, crop_size=48, augment=MOVES, seed=0, start_step=0,
                threads=None):
    """The first `count` batches, as a list of (images, labels, filenames)."""
    config = tf.ConfigProto(intra_op_parallelism_threads=threads or 0, inter_op_parallelism_threads=threads or 0)
    with tf.Graph().as_default(), tf.Session(config=config) as session:
        tf.set_random_seed(seed)
        sampling = Sampling(record, num_examples, batch_size, crop_size, FILL, seed, augment)
        batches = training_batches(sampling, start_step)
        if threads:
            options = tf.data.Options()
            options.threading.private_threadpool_size = threads
            batches = batches.with_options(options)
        batch = tf.data.make_one_shot_iterator(batches).get_next()
        return [session.run(batch) for _ in range(count)]


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        for one, another in zip(batch, other, strict=True):
            np.testing.assert_array_equal(one, another)


@pytest.fixture(scope='module')
def painted(tmp_path_factory, pairs):
    """A record of the small pairs' labels, each painted into its image in COLOURS, without loss."""
    labels = [label for _, label in pairs]
    return write_png_record(tmp_path_factory.mktemp('painted') / 'painted.record', [
        (COLOURS[np.where(label == 255, 21, label)].astype(np.uint8), label) for label in labels])


@pytest.fixture(scope='module')
def ruled(tmp_path_factory):
    """A record of one image, 90 x 120, whose red and green are each pixel's x and y; the label is class 3."""
    y, x = np.mgrid[:90, :120]
    image = np.stack([x, y, 0 * x], axis=-1).astype(np.uint8)
    return write_png_record(tmp_path_factory.mktemp('ruled') / 'ruled.record', [(image, np.full((90, 120), 3))])


def measure(image):
    """Which affine map shows a ruled image: float64 [3, 2], from (x, y, 1) of a crop to (x, y) of the source.

    Interpolation is exact in what is linear, but for the source's outermost pixels, and bytes are rounded: the fit
    over some hundred pixels is good to a hundredth of a pixel.
    """
    inside = (image[..., 2] == 0) & (image[..., :2] > 1).all(axis=-1) & (image[..., :2] < (118, 88)).all(axis=-1)
    y, x = np.nonzero(inside)
    positions = np.stack([x + 0.5, y + 0.5, np.ones(len(x))], axis=-1)
    return np.linalg.lstsq(positions, image[y, x, :2] + 0.5, rcond=None)[0]


# --------------------------------------------------------------------------------------- image and label are one


@pytest.mark.slow
def test_augmented_image_and_label_stay_aligned_in_1000_draws(painted):
    """Wherever a crop shows a class's own colour the label is that class, and void lies exactly under the fill."""
    mixed = shown = filled = 0
    for images, labels, _ in run_batches(painted, 100):
        fill = labels == 255
        beyond = images[..., 2] != 0
        np.testing.assert_array_equal(images[beyond], np.broadcast_to(FILL, (beyond.sum(), 3)))  # nothing bled
        assert fill[beyond].all()
        matches = (images[..., np.newaxis, :] == COLOURS).all(axis=-1)
        pure = matches.any(axis=-1)
        expected = np.append(np.arange(21), 255)[matches.argmax(axis=-1)]
        np.testing.assert_array_equal(labels[pure], expected[pure])
        mixed, shown, filled = mixed + (~pure & ~beyond).sum(), shown + (~beyond).sum(), filled + beyond.sum()
    # Blocks of 16 pixels: on the last of each, in either direction, two colours mix: 1 - (15/16)^2 = 12 %.
    assert mixed < 0.15 * shown
    assert 0.05 < filled / (shown + filled) < 0.5


def test_labels_hold_the_sources_values_only(tmp_path):
    """Classes 2 and 200 with a void border between them: no class between, and no void become background."""
    label = np.full((60, 80), 2, np.uint8)
    label[:, 38:] = 255
    label[:, 42:] = 200
    record = write_png_record(tmp_path / 'two.record', [(np.repeat(label[..., np.newaxis], 3, axis=-1), label)])
    batches = training_batches(Sampling(record, 1, 10, 40, FILL, 0, augment=MOVES, number_of_classes=254))
    batch = tf.data.make_one_shot_iterator(batches).get_next()
    with tf.Session() as session:
        labels = np.stack([session.run(batch)[1] for _ in range(20)])
    assert set(np.unique(labels)) == {2, 200, 255}


# --------------------------------------------------------------------------------------- what is drawn


def test_scales_and_angles_cover_their_ranges_evenly(ruled):
    linear = np.stack([measure(image)[:2] for images, _, _ in run_batches(ruled, 60, 1, augment=('scale', 'rotate'))
                       for image in images])
    scales = 1 / np.sqrt(np.abs(np.linalg.det(linear)))
    angles = np.degrees(np.arctan2(linear[:, 0, 1], linear[:, 0, 0]))
    for drawn, low, high in ((scales, 0.5, 2.0), (angles, -10.0, 10.0)):
        margin = (high - low) / 100
        assert low - margin < drawn.min() < low + 3 * margin and high - 3 * margin < drawn.max() < high + margin
        # 600 draws in five bins: 120 each, with a standard deviation of 10.
        assert (np.abs(np.histogram(drawn, 5, (low, high))[0] - 120) < 40).all()
    assert abs(np.corrcoef(scales, angles)[0, 1]) < 0.15


@pytest.mark.parametrize('augment, free', [(('scale',), 'scale'), (('rotate',), 'angle')])
def test_each_kind_moves_its_own_alone(ruled, augment, free):
    linear = np.stack([measure(image)[:2] for image in run_batches(ruled, 1, 1, augment=augment)[0][0]])
    scales = 1 / np.sqrt(np.linalg.det(linear))
    angles = np.degrees(np.arctan2(linear[:, 0, 1], linear[:, 0, 0]))
    assert (np.ptp(scales) < 0.01) == (free != 'scale')
    assert (np.ptp(angles) < 0.5) == (free != 'angle')


def test_a_scaled_image_and_the_crop_overlap_fully(ruled):
    """To a tenth of a pixel, in each direction: the crop lies in the image, or the image in the crop, anywhere."""
    places = []
    for images, labels, _ in run_batches(ruled, 40, 1, crop_size=64, augment=('scale',)):
        for image, label in zip(images, labels):
            fit = measure(image)
            for axis, length in ((0, 120), (1, 90)):
                first, size = fit[2, axis], 64 * fit[axis, axis]
                assert (-0.1 < first and first + size < length + 0.1) or (
                    first < 0.1 and first + size > length - 0.1)
                if abs(length - size) > 5:
                    places.append(first / (length - size))
            covered = [min(64, length / fit[axis, axis]) for axis, length in ((0, 120), (1, 90))]
            assert abs((label == 3).sum() - covered[0] * covered[1]) < 1 + sum(covered)  # half a row and column
    assert min(places) < 0.03 and max(places) > 0.97
    assert (np.abs(np.histogram(places, 4, (0, 1))[0] / len(places) - 0.25) < 0.06).all()


def test_a_turned_crop_is_mirrored_half_the_time(ruled):
    signs = [np.sign(measure(image)[0, 0]) for images, _, _ in run_batches(ruled, 40, 1) for image in images]
    assert 150 < signs.count(1) < 250 and signs.count(1) + signs.count(-1) == 400


# --------------------------------------------------------------------------------------- colour


@pytest.mark.parametrize('factors, expected', [
    ((1, 1, 1), (10, 20, 30)),
    ((2, 1, 1), (20, 40, 60)),
    ((20, 1, 1), (200, 255, 255)),
    ((1, 0, 1), (100, 110, 120)),  # no contrast: the mean colour
    ((1, 1, 0), (18.15, 18.15, 18.15)),  # 0.299 * 10 + 0.587 * 20 + 0.114 * 30
    ((1, 1, 5), (0, 27.4, 77.4)),  # 18.15 + 5 * (-8.15, 1.85, 11.85), of which the first is below 0
    ((2, 0.5, 0.5), (114.075, 129.075, 144.075)),  # saturation: (14.075, 19.075, 24.075); contrast: half way to 100...
])
def test_colour_by_hand(monkeypatch, factors, expected):
    monkeypatch.setattr(tf.random, 'stateless_uniform', lambda *args: tf.constant(factors, tf.float32))
    changed = augmentation.jitter_colour(np.full((1, 2, 3), (10, 20, 30), np.uint8), (100.0, 110.0, 120.0), [0, 0])
    with tf.Session() as session:
        np.testing.assert_allclose(session.run(changed), np.full((1, 2, 3), expected), atol=1e-4)


def test_colour_is_rounded_to_bytes():
    with tf.Session() as session:
        rounded = session.run(augmentation.to_bytes(tf.constant([0.0, 0.4, 0.6, 254.4, 254.6, 255.0])))
    assert rounded.dtype == np.uint8 and rounded.tolist() == [0, 0, 1, 254, 255, 255]


@pytest.mark.parametrize('moves', [(), ('flip',), MOVES])
def test_colour_changes_images_but_neither_labels_nor_fill(painted, moves):
    plain, coloured = (run_batches(painted, 3, crop_size=80, augment=augment)
                       for augment in (moves, (*moves, 'colour')))
    for (images, labels, names), (other_images, other_labels, other_names) in zip(plain, coloured, strict=True):
        np.testing.assert_array_equal(labels, other_labels)
        np.testing.assert_array_equal(names, other_names)
        fill = images[..., 2] == 200
        assert fill.any() and (labels[fill] == 255).all()
        np.testing.assert_array_equal(other_images[fill], images[fill])
        assert (other_images[~fill] != images[~fill]).any(axis=-1).mean() > 0.8


def test_colours_differ_from_draw_to_draw(painted):
    images = np.concatenate([batch[0] for batch in run_batches(painted, 20, augment=('colour',), crop_size=32)])
    brightness = images.astype(float).mean(axis=(1, 2, 3))
    assert len(np.unique(brightness.round(3))) == 200 and brightness.max() > 1.8 * brightness.min()


# --------------------------------------------------------------------------------------- chance is a function


@pytest.mark.slow
@pytest.mark.parametrize('crop_size', [48, 0])
def test_threads_change_nothing(painted, crop_size):
    one, many = (run_batches(painted, 10, crop_size=crop_size, augment=augmentation.KINDS, threads=threads)
                 for threads in (1, 8))
    assert_same(one, many)


@pytest.mark.slow
@pytest.mark.parametrize('crop_size', [48, 0])
def test_a_resumed_run_draws_what_it_would_have_drawn(painted, crop_size, start_step=3):
    flags = {'batch_size': 3, 'crop_size': crop_size, 'augment': augmentation.KINDS}
    batches = run_batches(painted, 6, **flags)
    assert_same(batches[start_step:], run_batches(painted, 6 - start_step, start_step=start_step, **flags))


def test_another_seed_draws_something_else(painted):
    assert not np.array_equal(run_batches(painted, 1)[0][0], run_batches(painted, 1, seed=1)[0][0])


# --------------------------------------------------------------------------------------- whole images


def test_whole_images_keep_their_size_when_they_are_warped(painted, pairs):
    """What an image shows never leaves its own height and width; a batch is as large as its largest."""
    for images, labels, names in run_batches(painted, 30, batch_size=3, crop_size=0):
        sizes = [pairs[int(name.removeprefix(b'image'))][1].shape for name in names]
        assert labels.shape[1:] == tuple(np.max(sizes, axis=0))
        for image, label, (height, width) in zip(images, labels, sizes):
            beyond = np.ones(label.shape, bool)
            beyond[:height, :width] = False
            assert (label[beyond] == 255).all() and (image[beyond] == np.array(FILL)).all()
            assert (image[:height, :width, 2] == 0).mean() > 0.15  # at the smallest scale a quarter, less when turned
