"""Reading records: complete images, and training batches."""
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import draw_pair, write_examples, write_png_record, write_record

from datasets import records
from datasets.batches import Sampling, build_reader, run_input, training_batches, whole_images
from utils import UserError

GREY = (100.4, 109.6, 120.0)


def run_batches(record, count, num_examples=5, batch_size=2, crop_size=32, seed=0, start_step=0, **options):
    """The first `count` batches, as a list of (images, labels)."""
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(seed)
        sampling = Sampling(record, num_examples, batch_size, crop_size, GREY, seed, **options)
        batches = training_batches(sampling, start_step)
        batch = tf.data.make_one_shot_iterator(batches).get_next()[:2]
        return [session.run(batch) for _ in range(count)]


def assert_same_batches(batches, others, expected=True):
    same = all(np.array_equal(images, other_images) and np.array_equal(labels, other_labels)
               for (images, labels), (other_images, other_labels) in zip(batches, others, strict=True))
    assert same is expected


def run_all(examples):
    with tf.Graph().as_default(), tf.Session() as session:
        next_example = tf.data.make_one_shot_iterator(examples()).get_next()
        found = []
        try:
            while True:
                found.append(session.run(next_example))
        except tf.errors.OutOfRangeError:
            return found


@pytest.mark.parametrize('value', [21, 254])
def test_a_label_that_is_not_a_class_ends_reading(tmp_path, value):
    label = np.zeros((100, 60), np.uint8)
    label[50, 30] = value
    path = write_record(tmp_path / 'bad.record', [(np.zeros((100, 60, 3), np.uint8), label)])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r'not a class in the label of.*image0'):
        run_all(lambda: whole_images(path))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r'not a class in the label of.*image0'):
        run_batches(path, 1, num_examples=1, crop_size=100)


@pytest.mark.parametrize('value, number_of_classes', [(11, 12), pytest.param(253, 254, marks=pytest.mark.slow)])
def test_labels_of_other_class_sets(tmp_path, value, number_of_classes):
    label = np.full((32, 32), value, np.uint8)
    record = write_record(tmp_path / 'own.record', [(np.zeros((32, 32, 3), np.uint8), label)])
    options = {'num_examples': 1, 'augment': ('scale',)}
    assert value in run_batches(record, 1, number_of_classes=number_of_classes, **options)[0][1]
    assert run_all(lambda: whole_images(record, number_of_classes))[0]['label'].max() == value
    with pytest.raises(tf.errors.InvalidArgumentError, match='not a class in the label of'):
        run_batches(record, 1, number_of_classes=value, **options)
    with pytest.raises(tf.errors.InvalidArgumentError, match='not a class in the label of'):
        run_all(lambda: whole_images(record, value))


def test_a_png_comes_without_loss(tmp_path):
    image = np.random.RandomState(0).randint(0, 256, (40, 30, 3)).astype(np.uint8)
    label = np.arange(1200).reshape(40, 30).astype(np.uint8) % 21
    record = write_png_record(tmp_path / 'png.record', [(image, label), (image[:, :, 0], label)])
    assert records.count_examples(record, whole=True) == 2
    rgb, grey = run_all(lambda: whole_images(record))
    np.testing.assert_array_equal(rgb['image'], image)
    np.testing.assert_array_equal(grey['image'], np.repeat(image[:, :, :1], 3, axis=-1))


def test_whole_images_come_in_order_at_true_size_with_void(record, pairs):
    found = run_all(lambda: whole_images(record))
    assert [example['filename'] for example in found] == [f'image{i}'.encode() for i in range(5)]
    for example, (image, label) in zip(found, pairs, strict=True):
        assert example['image'].dtype == np.uint8 and example['label'].dtype == np.uint8
        np.testing.assert_array_equal(example['label'], label)
        assert np.abs(example['image'].astype(int) - image).mean() < 3  # what JPEG loses
    assert any((label == 255).any() for _, label in pairs)


def test_a_grey_jpeg_becomes_rgb(tmp_path):
    grey = np.full((40, 40), 77, np.uint8)
    path = write_record(tmp_path / 'grey.record', [(grey, np.zeros_like(grey))])
    found = run_all(lambda: whole_images(path))
    np.testing.assert_array_equal(found[0]['image'], np.full((40, 40, 3), 77))


def test_batches_have_the_contracts_shapes(record):
    images, labels = run_batches(record, 1, batch_size=3, crop_size=32)[0]
    assert images.shape == (3, 32, 32, 3) and images.dtype == np.uint8
    assert labels.shape == (3, 32, 32) and labels.dtype == np.int32


def test_crop_and_label_stay_in_step(record):
    """The images' brightness is 12 * class: 600 crops, mirrored or not, must match their labels pixel by pixel."""
    for images, labels in run_batches(record, 300):
        known = labels != 255
        distance = np.abs(images.mean(axis=-1) - labels * 12.0)[known]
        assert np.median(distance) < 3 and (distance > 24).mean() < 0.02  # JPEG blurs the blocks' edges


def test_an_image_smaller_than_the_crop_is_filled_with_void(tmp_path):
    image, label = np.full((20, 12, 3), 200, np.uint8), np.full((20, 12), 7, np.uint8)
    images, labels = run_batches(write_record(tmp_path / 'tiny.record', [(image, label)]), 1, num_examples=1,
                                 batch_size=1, crop_size=32)[0]
    np.testing.assert_array_equal(labels[0, :20, :12], 7)
    assert (labels == 255).sum() == 32 * 32 - 20 * 12
    np.testing.assert_allclose(images[0, :20, :12], 200, atol=1e-3)
    np.testing.assert_array_equal(images[0, 20:], np.broadcast_to((100, 110, 120), (12, 32, 3)))
    np.testing.assert_array_equal(images[0, :, 12:], np.broadcast_to((100, 110, 120), (32, 20, 3)))


def expected_crop(image, label, size, seed, index):
    """The crop of the default path, worked out without TensorFlow but for the three random numbers."""
    with tf.Graph().as_default(), tf.Session() as session:
        chance = session.run(tf.random.stateless_uniform([3], tf.constant([seed, index], tf.int64)))
    height, width = np.minimum(label.shape, size)
    top = int(chance[0] * np.float32(label.shape[0] - height + 1))
    left = int(chance[1] * np.float32(label.shape[1] - width + 1))
    step = -1 if chance[2] < 0.5 else 1
    filled = np.full((size, size, 3), (100, 110, 120)), np.full((size, size), 255)
    for one, source in zip(filled, (image, label)):
        one[:height, :width] = source[top:top + height, left:left + width][:, ::step]
    return filled


@pytest.mark.parametrize('crop_size', [32, 64])
def test_crops_are_what_they_always_were(tmp_path, pairs, crop_size):
    """An interrupted run of an earlier version goes on with the same crops."""
    record = write_png_record(tmp_path / 'exact.record', pairs)
    batches = training_batches(Sampling(record, 5, 4, crop_size, GREY, seed=3), start_step=2)
    batch = tf.data.make_one_shot_iterator(batches).get_next()
    with tf.Session() as session:
        found = [example for _ in range(6) for example in zip(*session.run(batch))]
    for index, (image, label, filename) in enumerate(found, start=8):
        expected = expected_crop(*pairs[int(filename.removeprefix(b'image'))], crop_size, 3, index)
        np.testing.assert_array_equal(image, expected[0])
        np.testing.assert_array_equal(label, expected[1])


def test_without_flip_the_crops_are_the_same_unmirrored(record):
    for plain, mirrored in zip(run_batches(record, 10, augment=()), run_batches(record, 10), strict=True):
        for label, other in zip(plain[1], mirrored[1], strict=True):
            inside = (label != 255).any(axis=0).nonzero()[0].max() + 1  # the fill stays on the right
            assert np.array_equal(label, other) or np.array_equal(label[:, :inside], other[:, :inside][:, ::-1])


@pytest.mark.parametrize('augment', [(), ('flip',)])
def test_whole_images_as_batches(tmp_path, pairs, augment):
    """crop_size 0: each at its true size, filled up to the batch's largest, below and to the right."""
    record = write_png_record(tmp_path / 'exact.record', pairs)
    batches = training_batches(Sampling(record, 5, 2, 0, GREY, seed=0, augment=augment))
    batch = tf.data.make_one_shot_iterator(batches).get_next()
    steps = set()
    with tf.Session() as session:
        for images, labels, names in (session.run(batch) for _ in range(10)):
            own = [pairs[int(name.removeprefix(b'image'))] for name in names]
            assert images.dtype == np.uint8 and labels.dtype == np.int32
            assert images.shape == (*labels.shape, 3)
            assert labels.shape == (2, *np.max([label.shape for _, label in own], axis=0))
            for image, label, (true_image, true_label) in zip(images, labels, own, strict=True):
                height, width = true_label.shape
                step = 1 if np.array_equal(label[:height, :width], true_label) else -1
                steps.add(step)
                np.testing.assert_array_equal(image[:height, :width], true_image[:, ::step])
                np.testing.assert_array_equal(label[:height, :width], true_label[:, ::step])
                assert (label[height:] == 255).all() and (label[:, width:] == 255).all()
                assert (image[height:] == (100, 110, 120)).all() and (image[:, width:] == (100, 110, 120)).all()
    assert steps == ({1, -1} if augment else {1})


def test_crops_reach_every_corner_and_both_mirrors(tmp_path):
    """Labels number the columns: crops must begin at each of the 5 places, in both directions."""
    label = np.tile(np.arange(20, dtype=np.uint8), (16, 1))
    record = write_record(tmp_path / 'columns.record', [(np.zeros((16, 20, 3), np.uint8), label)])
    starts = {(int(labels[0, 0, 0]), int(labels[0, 0, -1]))
              for _, labels in run_batches(record, 150, num_examples=1, batch_size=1, crop_size=16)}
    assert starts == {(i, i + 15) for i in range(5)} | {(i + 15, i) for i in range(5)}


def test_each_epoch_shows_every_example_once_in_another_order(tmp_path):
    pairs = [(np.zeros((16, 16, 3), np.uint8), np.full((16, 16), number, np.uint8)) for number in range(7)]
    record = write_record(tmp_path / 'seven.record', pairs)
    seen = [int(labels[0, 0, 0]) for _, labels in run_batches(record, 70, num_examples=7, batch_size=1, crop_size=16)]
    epochs = [tuple(seen[i:i + 7]) for i in range(0, 70, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) > 5


def test_same_seed_same_batches_other_seed_other_batches(record):
    batches = run_batches(record, 10, seed=4)
    assert_same_batches(batches, run_batches(record, 10, seed=4))
    assert_same_batches(batches, run_batches(record, 10, seed=5), expected=False)


@pytest.mark.parametrize('start_step', [1, 7])
def test_a_resumed_run_sees_what_it_would_have_seen(record, start_step):
    batches = run_batches(record, 10, batch_size=3)
    assert_same_batches(batches[start_step:], run_batches(record, 10 - start_step, batch_size=3, start_step=start_step))


def test_batches_tell_whose_crops_they_are(record, pairs):
    """The crops are as large as all images: which label it is shows which image."""
    batches = training_batches(Sampling(record, 5, 2, 100, GREY, seed=0))
    batch = tf.data.make_one_shot_iterator(batches).get_next()
    with tf.Session() as session:
        for _, labels, filenames in (session.run(batch) for _ in range(5)):
            for label, filename in zip(labels, filenames, strict=True):
                height, width = pairs[int(filename.removeprefix(b'image'))][1].shape
                own = label[:height, :width]
                assert any(np.array_equal(own, known) for known in (pairs[int(filename[5:])][1],
                                                                    pairs[int(filename[5:])][1][:, ::-1]))


def test_draw_pair_is_not_trivial():
    _, label = draw_pair(70, 50, 0)
    assert len(np.unique(label)) > 5


# ------------------------------------------------------------------------------------------- lost while it is read


def empty(path):
    os.truncate(path, 0)


def truncate(path):
    os.truncate(path, os.path.getsize(path) // 2)


def cut_off_the_last(path):
    """Cuts between two examples, where only their number shows that some are missing."""
    write_examples(path, list(tf.io.tf_record_iterator(path))[:-1])


@pytest.mark.parametrize('which', ['train', 'val'])
@pytest.mark.parametrize('harm', [os.remove, empty, truncate, cut_off_the_last])
def test_a_record_that_is_lost_while_it_is_read(tmp_path, which, harm):
    record = write_record(tmp_path / f'{which}.record', [draw_pair(40, 40, number) for number in range(3)])
    with tf.Session() as session:
        if which == 'train':
            batches = training_batches(Sampling(record, 3, 1, 32, (0, 0, 0), seed=0))
            fetch = tf.data.make_one_shot_iterator(batches).get_next()
        else:
            reader = build_reader(record, 3)
            session.run(reader.initializer)
            fetch = reader.next_example
        run_input(session, fetch, record)
        harm(record)
        with pytest.raises(UserError, match=rf'{which}.record: cannot be read or decoded \(.*\); write it again with '):
            for _ in range(100):
                run_input(session, fetch, record)
