"""The least that a program with TensorFlow and these weights can do, for comparison: import it, read them, end.

    python -m benchmarks.read_weights CHECKPOINT
"""
import sys

import tensorflow.compat.v1 as tf

if __name__ == '__main__':
    checkpoint = tf.train.load_checkpoint(sys.argv[1])
    names = [name for name in checkpoint.get_variable_to_shape_map() if 'Adam' not in name]
    print(f'{sum(checkpoint.get_tensor(name).nbytes for name in names):,} bytes read')
