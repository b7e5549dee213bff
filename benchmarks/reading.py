"""Contenders for the input pipeline alone."""
import time

import tensorflow.compat.v1 as tf

import train
import vgg
from benchmarks import earlier_suite
from benchmarks.measure import Round
from datasets import batches as input_pipeline


def ours(record, batch_size, crop_size, batches, threads=None):
    """Contender: the batches of train.py.

    Args:
        record: str. batch_size, crop_size: ints.
        batches: int, drawn in one round.
        threads: int, size of a thread pool of the pipeline's own; None for what TensorFlow gives it.
    """
    def build():
        pipeline = input_pipeline.training_batches(record, input_pipeline.count_examples(record), batch_size, crop_size,
                                                   pad_rgb=vgg.RGB_MEAN, seed=0)
        return limit_threads(pipeline, threads) if threads else pipeline
    return draw(build, batch_size, batches)


def limit_threads(pipeline, threads):
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    return pipeline.with_options(options)


def whole_then_crop(record, batch_size, crop_size, batches):
    """Contender: decodes the whole image before it crops; see earlier_suite.training_batches."""
    return draw(lambda: earlier_suite.training_batches(record, batch_size, crop_size), batch_size, batches)


def draw(build, batch_size, batches):
    """Draws batches as fast as they come. Each round starts the pipeline anew and first draws a quarter untimed.

    A pipeline that goes on while the others have their turn would fill its buffers, which prefetch doubles each time
    that they are drawn empty.

    Args:
        build: function that returns a tf.data.Dataset in the default graph. batch_size, batches: ints.
    """
    train.quiet_tensorflow()
    with tf.Graph().as_default(), tf.Session(config=train.session_config()) as session:
        iterator = tf.data.make_initializable_iterator(build())
        next_batch = tf.group(*iterator.get_next())
        session.run(iterator.initializer)
        while True:
            for _ in range(batches // 4 + 1):
                session.run(next_batch)
            started = time.perf_counter()
            for _ in range(batches):
                session.run(next_batch)
            seconds = time.perf_counter() - started
            session.run(iterator.initializer)  # at once: TensorFlow takes half as long as one has run to let it go
            yield Round(batches * batch_size, seconds)
