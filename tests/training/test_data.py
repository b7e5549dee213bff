"""The records of a training: their classes, and weights of the classes."""
import os
import shutil

import numpy as np
import pytest
from conftest import short_run

import train
from datasets import classes
from inference.weights import find_checkpoint, find_classes
from training import data
from utils import UserError

THINGS = tuple(f'thing {number}' for number in range(25))


@pytest.fixture
def own_record(record, tmp_path):
    """The record of the tests for 25 classes of its own, which include its values 0 to 20."""
    path = str(shutil.copy(record, tmp_path / 'own.record'))
    classes.save_side_file(classes.side_file(path), classes.make_class_set(THINGS), 5, np.arange(256))
    return path


def read_data(record, dataset_val=None, class_weights='none'):
    return data.read_data(record, dataset_val or record, None, class_weights, complete_images=False)


def test_records_are_counted_and_without_a_side_file_of_voc(record):
    assert read_data(record) == data.Data(classes.VOC, 5, 5, None)


@pytest.mark.slow
def test_own_classes_are_taken_from_the_record(small_runs, own_record, tmp_path):
    train.main(short_run(own_record, tmp_path / 'run', '--max_steps', 1, '--val_steps', 1))
    checkpoint = find_checkpoint(str(tmp_path / 'run'))
    assert train.read_network(checkpoint).number_of_classes == 25 and find_classes(checkpoint).names == THINGS


def test_records_of_different_classes_are_refused(record, own_record, tmp_path):
    with pytest.raises(UserError, match='has 25 classes, of which number 0 is thing 0; .* has 21 classes, of which '
                                        'number 0 is background'):
        train.main([*short_run(own_record, tmp_path / 'run', '--max_steps', 1), '--dataset_val', record])
    assert not os.path.exists(tmp_path / 'run')


def test_class_weights_come_from_the_side_file(own_record, record):
    """Pixels 0, 1, ..., 24: the median of the 24 that occur is 12.5."""
    weights = read_data(own_record, class_weights='median_frequency').class_weights
    np.testing.assert_allclose(weights, [1, *(12.5 / np.arange(1, 25))], rtol=1e-6)
    with pytest.raises(UserError, match='small.record.json: missing'):
        read_data(record, class_weights='median_frequency')


def test_median_frequency_weights():
    """Shares 50, 30 and 20 %: the median is 30 %; the class that does not occur keeps 1."""
    np.testing.assert_allclose(data.median_frequency_weights([500, 300, 0, 200]), [0.6, 1, 1, 1.5])
