"""Exports a network as a SavedModel, weights only, in the folder layout of TensorFlow Serving."""
import os
import shutil

import tensorflow.compat.v1 as tf

import utils
from datasets import classes
from inference.weights import check_path
from utils import UserError


def export(session, fcn, network, folder, class_set):
    """Writes the network into folder/1, or one above the highest version there; returns that folder.
    The session has the network's weights, and its graph is the default one; `fcn` as in predictor.build_predictor.
    Raises UserError if it cannot be written.

    The classes' names go to assets.extra/classes.txt, in the format of --classes; servers ignore that file. As another
    output they would not have the batch's first axis, which TensorFlow Serving's REST interface refuses.
    """
    check_path(folder)
    image = tf.placeholder(tf.uint8, [1, None, None, 3], name='one_image')
    signatures = {'serving_default': build_signature(fcn, network),
                  'one_image': make_signature(image, tf.nn.softmax(fcn(image, network)))}
    os.makedirs(folder, exist_ok=True)
    versions = [int(name) for name in os.listdir(folder) if name.isdecimal()]
    version = os.path.join(folder, str(max(versions, default=0) + 1))
    partial = os.path.join(folder, f'partial-{os.getpid()}')  # a server ignores names that are not numbers
    try:
        builder = tf.saved_model.Builder(partial)
        builder.add_meta_graph_and_variables(session, [tf.saved_model.tag_constants.SERVING],
                                             signatures, strip_default_attrs=True)
        builder.save()
        os.makedirs(os.path.join(partial, 'assets.extra'))
        utils.save_text(os.path.join(partial, 'assets.extra', 'classes.txt'), classes.as_text(class_set))
        os.rename(partial, version)
    except tf.errors.OpError as error:
        raise UserError(f'--export {folder}: cannot be written ({utils.find_reason(error)})') from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return version


def build_signature(fcn, network):
    """Builds the network for batches of any size, on the variables of the default graph; see make_signature.
    A batch is computed image by image. A convolution of the complete batch would add in another order: where two
    classes are nearly equal, rounding would then give other classes than predict.py."""
    def predict_one(image):
        return tf.nn.softmax(fcn(image[tf.newaxis], network))[0]

    images = tf.placeholder(tf.uint8, [None, None, None, 3], name='images')
    probabilities = tf.map_fn(predict_one, images, fn_output_signature=tf.float32, parallel_iterations=1)
    return make_signature(images, probabilities)


def make_signature(images, probabilities):
    """Signature of `image`, uint8 [B, H, W, 3] RGB of any H and W, to `classes`, uint8 [B, H, W], and `probabilities`,
    float32 [B, H, W, C]."""
    labels = tf.cast(tf.argmax(probabilities, axis=-1), tf.uint8)
    return tf.saved_model.predict_signature_def({'image': images}, {'classes': labels, 'probabilities': probabilities})
