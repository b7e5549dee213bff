"""Checks the index of a TensorFlow checkpoint before TensorFlow reads it.

Where an index is whole, but tells of negative or endless shapes, unknown types or the like, TensorFlow's reader does
not raise an error: it ends the process.

Sources: tensorflow/core/util/tensor_bundle/tensor_bundle.h, tensorflow/core/protobuf/tensor_bundle.proto and, for the
table that an index is, doc/table_format.md of LevelDB.
"""
import math
import os

import tensorflow.compat.v1 as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework.types_pb2 import DT_RESOURCE, DT_VARIANT
from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto

from datasets import records

MAGIC = bytes.fromhex('57fb808b247547db')
MAX_BYTES = 2 ** 26  # of an index; that of VGG16 has 4,000
MAX_RANK = 254


def check_index(checkpoint):
    """Checks what CHECKPOINT.index says of each tensor; a checkpoint of the old form, which has no index, passes.

    Args:
        checkpoint: str, path without .index.

    Raises:
        ValueError: it is damaged, or tells of something that no checkpoint holds.
        OSError: it cannot be read.
    """
    path = checkpoint + '.index'
    if os.path.exists(checkpoint) and not os.path.isfile(checkpoint):  # a pipe would be waited for
        raise ValueError(f'{checkpoint} is no file')
    if not os.path.exists(path):
        return
    if not os.path.isfile(path) or os.path.getsize(path) > MAX_BYTES:
        raise ValueError(f'{path} is no index of a checkpoint')
    with open(path, 'rb') as file:
        table = file.read()
    try:
        entries = list(read_table(table))
        if not entries or entries[0][0]:
            raise ValueError('the header is missing')
        num_shards = BundleHeaderProto.FromString(entries[0][1]).num_shards
        for _, value in entries[1:]:
            check_entry(BundleEntryProto.FromString(value), num_shards)
    except (ValueError, TypeError, IndexError, DecodeError) as error:
        raise ValueError(f'{path} is damaged: {error}') from None


def check_entry(entry, num_shards):
    """Raises ValueError or TypeError unless an entry tells of a tensor that can be."""
    dtype, dims = tf.as_dtype(entry.dtype), [dim.size for dim in entry.shape.dim]
    if entry.dtype in (DT_RESOURCE, DT_VARIANT) or entry.shape.unknown_rank or entry.slices:
        raise ValueError('a tensor that is no variable')
    if len(dims) > MAX_RANK or min(dims, default=0) < 0 or math.prod(max(dim, 1) for dim in dims) >= 2 ** 62:
        raise ValueError('an impossible shape')
    least = math.prod(dims) * (1 if dtype == tf.string else dtype.size)
    if entry.size < least or (entry.size != least and dtype != tf.string):
        raise ValueError('a shape that does not fit the size')
    if not 0 <= entry.shard_id < num_shards or entry.offset < 0:
        raise ValueError('an impossible place')


# ------------------------------------------------------------------------------------------- LevelDB's tables


def read_table(table):
    """Yields the (key, value) pairs, bytes, of a table without compression, as checkpoints have it.

    Raises:
        ValueError, IndexError: it is damaged.
    """
    footer = table[-48:]
    if len(footer) < 48 or footer[40:] != MAGIC:
        raise ValueError('it does not end as a table')
    _, position = read_handle(footer, 0)
    index, _ = read_handle(footer, position)
    for _, handle in read_block(table, index):
        yield from read_block(table, read_handle(handle, 0)[0])


def read_block(table, handle):
    """Yields the (key, value) pairs, bytes, of the block at (offset, size), whose checksum must be right."""
    offset, size = handle
    block, trailer = table[offset:offset + size], table[offset + size:offset + size + 5]
    if len(trailer) < 5 or trailer[0] or records.masked_crc(block + trailer[:1]) != trailer[1:]:
        raise ValueError('a block is compressed, or its checksum is wrong')
    end = size - 4 - 4 * int.from_bytes(block[-4:], 'little')  # where the list of restarts begins
    position, key = 0, b''
    while position < end:
        shared, position = read_varint(block, position)
        added, position = read_varint(block, position)
        length, position = read_varint(block, position)
        if shared > len(key) or position + added + length > end:
            raise ValueError('an entry is beyond its block')
        key = key[:shared] + block[position:position + added]
        position += added
        yield key, block[position:position + length]
        position += length


def read_handle(data, position):
    """((offset, size) of a block, the position after it)."""
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return (offset, size), position


def read_varint(data, position):
    """(An int of up to 64 bits, seven a byte from the low end; the position after it.)"""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
    raise ValueError('a number without end')
