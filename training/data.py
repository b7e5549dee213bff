"""The records of a training: checked, counted, of the same classes, and weighted class by class."""
from typing import NamedTuple

import numpy as np

from datasets import classes
from datasets.records import count_examples
from utils import UserError


class Data(NamedTuple):
    """The records' classes and numbers of images, and the class weights of the loss, float32 [C] or None."""
    class_set: classes.ClassSet
    num_examples: int
    num_val_examples: int
    class_weights: np.ndarray | None


def read_data(dataset_train, dataset_val, classes_file, class_weights, complete_images):
    """Checks the records of a training and returns its Data; classes_file and class_weights are the flags of these
    names. Raises UserError if a record is damaged, they are of other classes, the training masks lack a second class,
    or the counts for the class weights are missing."""
    num_examples = count_examples(dataset_train, whole=complete_images)
    num_val_examples = count_examples(dataset_val)
    class_set = classes.of_record(dataset_train, classes_file)
    val_classes = classes.of_record(dataset_val, classes_file)
    classes.check_same(class_set, classes.name_record(dataset_train), val_classes, classes.name_record(dataset_val))
    counted, weights = classes.read_side_file(dataset_train), None
    if counted and (lack := classes.describe_lack(class_set, counted['pixels'][:-1], needed=2)):
        raise UserError(f'{dataset_train}: {lack}')
    if class_weights == 'median_frequency':
        if counted is None:
            raise UserError(f'{classes.side_file(dataset_train)}: missing, and --class_weights needs its counts; write '
                            'the record again with convert_fcn_dataset.py')
        weights = median_frequency_weights(counted['pixels'][:-1])
    return Data(class_set, num_examples, num_val_examples, weights)


def median_frequency_weights(pixels):
    """Weights against class imbalance: the median of the classes' shares of all pixels, divided by each class's share.
    `pixels` are C ints, the training pixels of each class. Returns float32 [C]; 1 for a class that does not occur.

    Source: Eigen and Fergus, "Predicting Depth, Surface Normals and Semantic Labels with a Common Multi-Scale
    Convolutional Architecture", ICCV 2015, with shares of all images instead of those that show the class.
    """
    pixels = np.asarray(pixels, np.float64)
    occurs = pixels > 0
    median = np.median(pixels[occurs]) if occurs.any() else 1.0
    return np.divide(median, pixels, out=np.ones_like(pixels), where=occurs).astype(np.float32)
