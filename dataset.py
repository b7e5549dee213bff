"""The records: what is in one example. They are read in input_pipeline.py.

One `tf.train.Example` an image:

    image/encoded       the JPEG file's own bytes
    image/label         PNG bytes, one channel, uint8 class index, 255 kept
    image/height, image/width   int64, pixels
    image/filename      bytes, the image's id in its split file
    image/format        b'jpeg'
    image/label_format  b'png'
"""
import tensorflow.compat.v1 as tf

CLASS_NAMES = (
    'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
    'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor')
NUMBER_OF_CLASSES = len(CLASS_NAMES)
IGNORE_LABEL = 255  # VOC's void: borders and things too hard to annotate, in no loss and in no score


def make_example(filename, jpeg_bytes, label_png_bytes, height, width):
    """One image and its label as a `tf.train.Example` of the schema above; strings as bytes, sizes as int."""
    def bytes_feature(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def int_feature(value):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    return tf.train.Example(features=tf.train.Features(feature={
        'image/encoded': bytes_feature(jpeg_bytes),
        'image/label': bytes_feature(label_png_bytes),
        'image/height': int_feature(height),
        'image/width': int_feature(width),
        'image/filename': bytes_feature(filename),
        'image/format': bytes_feature(b'jpeg'),
        'image/label_format': bytes_feature(b'png'),
    }))
