"""The records: what is in one example, and how it is written. They are read in input_pipeline.py.

One `tf.train.Example` an image:

    image/encoded       bytes of a JPEG or PNG file, the image's own unless it was scaled
    image/label         PNG bytes, one channel, uint8 class index, 255 kept
    image/height, image/width   int64, pixels
    image/filename      bytes, the image's id in its split file
    image/format        b'jpeg' or b'png'
    image/label_format  b'png'

Nothing here imports TensorFlow, which takes 3 seconds and 600 MB: that is why reading has a file of its own, and why
the few bytes around the contents are put together by hand. Sources: example.proto and feature.proto in
tensorflow/core/example, the page "Encoding" of Protocol Buffers, tensorflow/core/lib/io/record_writer.h.
"""
import itertools
import struct

import google_crc32c

# What bounds the memory and the time that a damaged or hostile file can take.
MAX_PIXELS = 2 ** 26  # of an image or a mask
MAX_FILE_BYTES = 2 ** 28  # of an image's or a mask's file
MAX_SCANS = 1000  # of a JPEG: each of 20 bytes may be a pass over the whole image, and ten are usual
MAX_EXAMPLE_BYTES = 2 * MAX_FILE_BYTES + 2 ** 20


def has_endless_scans(jpeg_bytes):
    """Whether a progressive JPEG's bytes hold more passes over the image than MAX_SCANS."""
    return jpeg_bytes.count(b'\xff\xda') > MAX_SCANS  # what begins a scan; in pixels these two bytes never meet


def make_example(filename, image_bytes, label_png_bytes, height, width, image_format=b'jpeg'):
    """One image and its label as a serialised `tf.train.Example` of the schema above.

    Args:
        filename, image_bytes, label_png_bytes: bytes.
        height, width: int, pixels.
        image_format: bytes, b'jpeg' or b'png'.

    Returns:
        bytes, the same for the same input.
    """
    features = {
        'image/encoded': _bytes_feature(image_bytes),
        'image/filename': _bytes_feature(filename),
        'image/format': _bytes_feature(image_format),
        'image/height': _int_feature(height),
        'image/label_format': _bytes_feature(b'png'),
        'image/label': _bytes_feature(label_png_bytes),
        'image/width': _int_feature(width),
    }
    entries = [_field(1, [name.encode()]) + _field(2, feature) for name, feature in features.items()]
    entries = itertools.chain.from_iterable(_field(1, entry) for entry in entries)  # Features.feature
    return b''.join(_field(1, list(entries)))  # Example.features


def _bytes_feature(value):
    return _field(1, _field(1, [value]))  # Feature.bytes_list, BytesList.value


def _int_feature(value):
    return _field(3, _field(1, [_varint(value)]))  # Feature.int64_list, Int64List.value, packed


def _field(number, parts):
    """A field of a protobuf message, of the wire type 2: bytes with their length in front.

    All is kept in parts, list of bytes, to the end: joined at every level, a JPEG would be copied six times.
    """
    return [_varint(number << 3 | 2) + _varint(sum(map(len, parts))), *parts]


def _varint(number):
    """An int of at least 0, seven bits a byte from the low end; the top bit says that more follow."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def write_example(file, example):
    """Adds a serialised example to a TFRecord file.

    Args:
        file: binary file, open for writing.
        example: bytes.

    Raises:
        OSError: the disk is full, or the like; closing the file may raise it as well.
    """
    length = struct.pack('<Q', len(example))
    file.writelines([length, masked_crc(length), example, masked_crc(example)])


def masked_crc(content):
    """CRC-32C, turned and shifted as TFRecord has it: 4 bytes, little-endian."""
    crc = google_crc32c.value(content)
    return struct.pack('<I', (crc >> 15 | crc << 17) + 0xa282ead8 & 0xffffffff)
