"""How a training computes: on how many devices, in which precision, compiled or not.

Precision and compilation come from TensorFlow's own graph rewrites: the network's code is the same for all of them.
"""
import os

import tensorflow
import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

from inference import predictor
from training import towers


def session_config(num_gpus=None, xla=False, mixed_precision=False):
    """The tf.ConfigProto of a training session.

    Args:
        num_gpus: int or None, see towers.count_devices.
        xla: bool, compile the training step.
        mixed_precision: bool, float16 where it is safe; on GPUs only.
    """
    config = predictor.session_config()
    if towers.has_gpu():
        config.device_count['GPU'] = towers.count_devices(num_gpus)  # else a session takes all
    else:
        config.inter_op_parallelism_threads = 1  # one after the other, on all cores: fc6 has two gradients of 0.4 GB
        config.device_count['CPU'] = towers.count_devices(num_gpus)
    if xla:
        config.graph_options.optimizer_options.global_jit_level = tf.OptimizerOptions.ON_1
    if mixed_precision:
        config.graph_options.rewrite_options.auto_mixed_precision = RewriterConfig.ON
    return config


def prepare_process(deterministic, xla, mixed_precision):
    """Applies what no tf.ConfigProto can say, before the first session; prints what mixed precision comes to here."""
    if deterministic:
        tensorflow.config.experimental.enable_op_determinism()  # for good; tf.compat.v1 has no name for it
    if mixed_precision:
        print('--mixed_precision: ' + (
            'convolutions in float16 on the GPU' if towers.has_gpu() else
            'no GPU: the arithmetic stays float32, the loss is scaled all the same'))
    if xla:
        os.environ['TF_XLA_FLAGS'] = os.environ.get('TF_XLA_FLAGS', '') + ' --tf_xla_cpu_global_jit'
