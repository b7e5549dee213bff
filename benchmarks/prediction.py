"""Contenders for prediction."""
import time

import numpy as np
import tensorflow.compat.v1 as tf

import train
from benchmarks.measure import Round


def ours(checkpoint, height, width, images):
    """Contender: uint8 image in, float32 softmax out, both NumPy, as predict.py does it.

    Args:
        checkpoint: str. height, width: ints, of the image. images: int, predicted a round.
    """
    image = np.random.RandomState(0).randint(0, 256, (height, width, 3), np.uint8)
    train.quiet_tensorflow()
    with tf.Graph().as_default(), tf.Session(config=train.session_config()) as session:
        predictor = train.load_predictor(session, checkpoint)
        while True:
            started = time.perf_counter()
            for _ in range(images):
                probabilities = session.run(predictor.probabilities, {predictor.image: image[np.newaxis]})[0]
            yield Round(images, time.perf_counter() - started, extra=probabilities.shape)
