"""The earlier suite's converter, for comparison: one process, colours through a table, labels as raw bytes.

    python -m benchmarks.earlier_convert VOC_DIR OUTPUT_DIR
"""
import os
import sys

import cv2
import numpy as np
import tensorflow as tf

from datasets import records
from utils import voc_palette


def make_example(name, image_path, mask_path, table):
    with open(image_path, 'rb') as file:
        encoded = file.read()
    height, width, _ = cv2.imread(image_path).shape
    blue, green, red = cv2.split(cv2.imread(mask_path).astype(np.int32))
    label = table[(red * 256 + green) * 256 + blue].astype(np.uint8)
    return records.make_example(name.encode(), encoded, label.tobytes(), height, width)


def main(argv=None):
    data_dir, output_dir = sys.argv[1:] if argv is None else argv
    table = np.zeros(256 ** 3, np.int64)  # class index of each colour; 0 for those of no class, and for void
    table[voc_palette()[:21].astype(int) @ [256 ** 2, 256, 1]] = np.arange(21)
    for split in ('train', 'val'):
        with open(os.path.join(data_dir, 'ImageSets', 'Segmentation', f'{split}.txt')) as file:
            names = file.read().split()
        with tf.io.TFRecordWriter(os.path.join(output_dir, f'{split}.record')) as writer:
            for name in names:
                writer.write(make_example(name, os.path.join(data_dir, 'JPEGImages', f'{name}.jpg'),
                                          os.path.join(data_dir, 'SegmentationClass', f'{name}.png'), table))


if __name__ == '__main__':
    main()
