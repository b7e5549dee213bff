"""The earlier suite's converter, for comparison: one process, colours through a table, labels as raw bytes.

    python -m benchmarks.earlier_convert IMAGE_DIR LABEL_DIR LIST.txt FILE.record [IMAGE_DIR LABEL_DIR ...]
"""
import os
import sys

import cv2
import numpy as np
import tensorflow as tf

from utils import voc_palette


def make_table():
    """Class index of each RGB colour, int64 [256^3]; 0 for the colours of no class, and for void."""
    table = np.zeros(256 ** 3, np.int64)
    for index, (red, green, blue) in enumerate(voc_palette()[:21].astype(int)):
        table[(red * 256 + green) * 256 + blue] = index
    return table


def look_up(mask, table):
    """Mask as cv2.imread returns it, uint8 BGR [H, W, 3], to class indices, int64 [H, W]."""
    data = mask.astype(np.int32)
    return table[(data[:, :, 2] * 256 + data[:, :, 1]) * 256 + data[:, :, 0]]


def make_example(name, image_path, mask_path, table):
    """One image and its mask as tf.train.Example."""
    def of_bytes(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def of_int(value):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    with open(image_path, 'rb') as file:
        encoded = file.read()
    height, width, _ = cv2.imread(image_path).shape
    label = look_up(cv2.imread(mask_path), table).astype(np.uint8)
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
            example = make_example(name, os.path.join(image_dir, f'{name}.jpg'),
                                   os.path.join(label_dir, f'{name}.png'), table)
            writer.write(example.SerializeToString())


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    for begin in range(0, len(argv), 4):  # one list after the other
        convert(*argv[begin:begin + 4])


if __name__ == '__main__':
    main()
