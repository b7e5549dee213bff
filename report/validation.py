"""The pictures of one validation image, without and with the dense CRF.

train.py draws them in another process, so that training does not wait. That process starts quickly, because nothing
here imports TensorFlow.
"""
import os

import numpy as np

import utils
from inference import crf
from inference.scores import confusion_matrix, mean_iou


def write_validation(folder, step, image, label, probabilities, class_set, crf_parameters=crf.DEFAULTS):
    """Writes the pictures of one validation image, uint8 RGB [H, W, 3], at its true size.
    They are FOLDER/val_STEP_NAME.jpg for NAME in img, annotation, prediction, prediction_crfed and overlay (of the
    refined prediction, if there is one); the label maps also as palette PNGs of class indices. `label` is uint8 [H, W],
    255 = void; `probabilities` are float32 [H, W, C]; crf_parameters is None for no CRF.

    Returns a dict of NAME to the JPEG's path, and a list of the mean IoU as predicted, and after the CRF if there is
    one.
    """
    maps = {'annotation': label,
            'prediction': probabilities.argmax(axis=-1).astype(np.uint8)}
    if crf_parameters:
        maps['prediction_crfed'] = crf.refine(image, probabilities, crf_parameters)
    best, palette = maps.get('prediction_crfed', maps['prediction']), class_set.palette
    pictures = {'img': image,
                **{name: palette[labels] for name, labels in maps.items()},
                'overlay': utils.overlay(image, best, palette, class_set.has_background)}

    stem = os.path.join(folder, f'val_{step}_')
    paths = {name: f'{stem}{name}.jpg' for name in pictures}
    for name, pixels in pictures.items():
        utils.save_image(paths[name], pixels)
    for name, labels in maps.items():
        utils.save_labels(f'{stem}{name}.png', labels, palette)
    scores = [mean_iou(confusion_matrix(label, maps[name], probabilities.shape[-1]))
              for name in maps if name != 'annotation']
    return paths, scores
