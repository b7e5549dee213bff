"""The earlier suite's way of conversion, for comparison: one process, colours through a table, labels as raw bytes.

    python -m benchmarks.earlier_convert IMAGE_DIR LABEL_DIR LIST.txt FILE.record [IMAGE_DIR LABEL_DIR ...]
"""
import os
import sys

import cv2
import numpy as np
import tensorflow as tf

# The VOC palette of the 21 classes, RGB.
COLOURS = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128),
           (128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128),
           (64, 128, 128), (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128)]


def make_table():
    """Class index of every colour, int64 [256^3]; 0 for the colours that stand for no class, void among them."""
    table = np.zeros(256 ** 3, np.int64)
    for index, (red, green, blue) in enumerate(COLOURS):
        table[(red * 256 + green) * 256 + blue] = index
    return table


def look_up(mask, table):
    """Mask as cv2.imread gives it, uint8 BGR [H, W, 3], to class indices, int64 [H, W]."""
    data = mask.astype(np.int32)
    return table[(data[:, :, 2] * 256 + data[:, :, 1]) * 256 + data[:, :, 0]]


def make_example(name, image_path, mask_path, table):
    """One image and its mask as tf.train.Example."""
    with open(image_path, 'rb') as file:
        encoded = file.read()
    image = cv2.imread(image_path)
    label = look_up(cv2.imread(mask_path), table).astype(np.uint8)
    height, width, _ = image.shape

    def of_bytes(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def of_int(value):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    return tf.train.Example(features=tf.train.Features(feature={
        'image/height': of_int(height), 'image/width': of_int(width), 'image/filename': of_bytes(name.encode()),
        'image/encoded': of_bytes(encoded), 'image/label': of_bytes(label.tobytes()),
        'image/format': of_bytes(b'jpeg')}))


def convert(image_dir, label_dir, list_path, record):
    """Writes the images of a list to a record, one after the other."""
    with open(list_path) as file:
        names = file.read().split()
    table = make_table()
    with tf.io.TFRecordWriter(record) as writer:
        for name in names:
            example = make_example(name, os.path.join(image_dir, name + '.jpg'),
                                   os.path.join(label_dir, name + '.png'), table)
            writer.write(example.SerializeToString())


if __name__ == '__main__':
    for number in range(1, len(sys.argv), 4):  # one list after the other
        convert(*sys.argv[number:number + 4])
