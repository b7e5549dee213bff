"""How a training computes: on how many devices, in which precision, compiled or not.

Precision and compilation come from TensorFlow's own graph rewrites: the network's code is the same for all of them.
"""
import os

import tensorflow
import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

from inference import devices


def session_config(num_gpus=1, xla=False, mixed_precision=False):
    """The tf.ConfigProto of a training session.
    `num_gpus` is the number of GPUs, or without a GPU of the parts into which the CPU is divided; `xla` compiles the
    training step; mixed_precision uses float16 where it is safe, on GPUs only."""
    config = devices.session_config(num_gpus)
    # It fails at dropout with an error message. Where it works, TF32 is slower: 503 instead of 580 images/s on an H200.
    config.graph_options.rewrite_options.layout_optimizer = RewriterConfig.OFF
    if not devices.list_gpus():
        config.inter_op_parallelism_threads = 1  # one after the other, on all cores: fc6 has two gradients of 0.4 GB
        config.device_count['CPU'] = num_gpus
    if xla:
        config.graph_options.optimizer_options.global_jit_level = tf.OptimizerOptions.ON_1
    if mixed_precision:
        config.graph_options.rewrite_options.auto_mixed_precision = RewriterConfig.ON
    return config


def prepare_process(num_gpus, deterministic, xla, mixed_precision):
    """Applies what no tf.ConfigProto can say, before the first session; prints which devices compute, and how.
    Raises UserError if there are fewer GPUs."""
    os.environ['TF_ONEDNN_ASSUME_FROZEN_WEIGHTS'] = '0'  # else convolutions might keep the weights of the first step
    if xla:  # first, because TensorFlow reads this once, when it looks for devices
        os.environ['TF_XLA_FLAGS'] = os.environ.get('TF_XLA_FLAGS', '') + ' --tf_xla_cpu_global_jit'
    if deterministic:
        tensorflow.config.experimental.enable_op_determinism()  # for good; tf.compat.v1 has no name for it
        tf.config.experimental.enable_tensor_float_32_execution(False)
    devices.check_number(num_gpus)
    print(devices.describe(num_gpus), flush=True)
    if mixed_precision:
        print('--mixed_precision: ' + (
            'convolutions in float16 on the GPU' if devices.list_gpus() else
            'no GPU: the arithmetic stays float32, the loss is scaled all the same'))
