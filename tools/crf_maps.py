"""Softmax maps of a record's images on disk, and how well the dense CRF does on them with some parameters.

tools/search_crf.py tries many parameters on the same maps. Its processes are given paths, and start quickly, because
nothing here imports TensorFlow.
"""
import os
import zipfile
import zlib

import numpy as np

import utils
from inference import crf
from inference.scores import confusion_matrix


def map_path(folder, number):
    """Where the map of a record's image lies, str; `number` counts from 0, in the record's order."""
    return os.path.join(folder, f'{number:06}.npz')


def save_map(path, image, label, probabilities):
    """Writes one image's map, complete or not at all; only the labels that take part in the CRF are kept, as float16.

    Args:
        path: str.
        image: uint8 RGB [H, W, 3]. label: uint8 [H, W], 255 = void. probabilities: float32 [H, W, C].
    """
    labels = crf.find_labels(probabilities)
    with utils.whole_file(path) as partial, open(partial, 'wb') as file:
        np.savez_compressed(file, image=image, label=label, labels=labels,
                            plain=probabilities.argmax(axis=-1).astype(np.uint8),
                            probabilities=probabilities[:, :, labels].astype(np.float16))


def load_map(path):
    """What save_map wrote.

    Returns:
        dict: 'image', 'label' as given to save_map; 'plain', uint8 [H, W], the most probable class; 'labels',
        uint8 [K], and 'probabilities', float32 [H, W, K], theirs. None if there is not a file, or a damaged one.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ('image', 'label', 'plain', 'labels', 'probabilities')}
    except (FileNotFoundError, zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError):
        return None
    return {**arrays, 'probabilities': arrays['probabilities'].astype(np.float32)}


def score_plain(path, number_of_classes):
    """confusion_matrix of an image's most probable classes; None if its map is missing or damaged."""
    found = load_map(path)
    return found and confusion_matrix(found['label'], found['plain'], number_of_classes)


def score_refined(path, parameters, number_of_classes):
    """confusion_matrix of an image's classes after the CRF.

    Args:
        path: str, of a whole map. parameters: crf.Parameters. number_of_classes: int, C.

    Returns:
        int64 [C, C].
    """
    found = load_map(path)
    refined = found['labels'][crf.refine(found['image'], found['probabilities'], parameters)]
    return confusion_matrix(found['label'], refined, number_of_classes)
