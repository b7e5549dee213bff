"""The pictures of an evaluation: confusion matrices, and the images with the lowest and the highest scores."""
import os
import re
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

import utils
from inference import fonts

LEGIBLE = 60  # classes up to which the cells of a confusion matrix show their numbers
OWN_PICTURES = re.compile(r'confusion(_crf)?\.png|(worst|best)_\d_.*'
                          r'_(img|annotation|prediction|prediction_crfed|error|error_crfed)\.jpg')


class Sample(NamedTuple):
    """One evaluated image."""
    filename: str
    image: np.ndarray  # uint8 RGB [H, W, 3]
    label: np.ndarray  # uint8 [H, W]
    predictions: dict  # of 'plain', and 'crf' if there is a CRF, to uint8 [H, W]
    mean_ious: dict  # likewise, to float


def write_pictures(folder, class_set, scores, extremes):
    """Draws the confusion matrices, the worst and the best images; removes those of an earlier evaluation.
    For scores and extremes see evaluate.Evaluation. Returns a dict of 'worst' and 'best' to lists of {'filename',
    'mean_iou', 'crf_mean_iou', 'stem'} for metrics.json."""
    names, written = class_set.names, ['confusion.png']
    draw_confusion(os.path.join(folder, 'confusion.png'), scores['plain'].confusion, names, 'without CRF')
    if 'crf' in scores:
        written.append('confusion_crf.png')
        draw_confusion(os.path.join(folder, 'confusion_crf.png'), scores['crf'].confusion, names, 'with CRF')
    shown = {end: [] for end in extremes}
    for end, samples in extremes.items():
        for rank, sample in enumerate(samples, start=1):
            stem = f'{end}_{rank}_{safe_name(sample.filename)}'
            written += write_sample(folder, stem, sample, class_set)
            shown[end].append({'filename': sample.filename, 'mean_iou': sample.mean_ious['plain'],
                               'crf_mean_iou': sample.mean_ious.get('crf'), 'stem': stem})
    for name in set(os.listdir(folder)).difference(written):
        if OWN_PICTURES.fullmatch(name):
            os.remove(os.path.join(folder, name))
    return shown


def safe_name(filename):
    """An image's name as a part of a file name that every file system and URL accepts."""
    return re.sub(r'[^A-Za-z0-9_-]+', '_', filename)[:100]


def write_sample(folder, stem, sample, class_set):
    """Writes FOLDER/STEM_{img,annotation,prediction,error}.jpg, with a CRF also prediction_crfed and error_crfed.
    Returns the files' names."""
    palette = class_set.palette
    pictures = {'img': sample.image, 'annotation': palette[sample.label]}
    for name, prediction in sample.predictions.items():
        suffix = '_crfed' if name == 'crf' else ''
        pictures['prediction' + suffix] = palette[prediction]
        pictures['error' + suffix] = utils.error_map(sample.image, sample.label, prediction, len(class_set.names))
    for name, pixels in pictures.items():
        utils.save_image(os.path.join(folder, f'{stem}_{name}.jpg'), pixels)
    return [f'{stem}_{name}.jpg' for name in pictures]


def draw_confusion(path, confusion, class_names, title):
    """Draws a confusion matrix, int64 [C, C], each row in percent of its annotated pixels, as a PNG.
    With more than LEGIBLE classes the cells are small and have no numbers; metrics.json has them."""
    shares = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    ticks, small = range(len(class_names)), len(class_names) > LEGIBLE
    side = max(5.6, 0.6 + len(class_names) * (0.12 if small else 0.4))  # inches
    figure = Figure(figsize=(side + 1, side), layout='constrained')
    axes = figure.subplots()
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=100)
    for row, column in [] if small else zip(*np.nonzero(shares >= 0.5)):
        axes.text(column, row, f'{shares[row, column]:.0f}', ha='center', va='center', fontsize=8,
                  color='white' if shares[row, column] > 50 else 'black')
    labels = fonts.choose(tuple(class_names))
    axes.set_xticks(ticks, [label.text for label in labels], rotation=90, parse_math=False)  # a dollar is a dollar
    axes.set_yticks(ticks, [f'{label.text}{"" if row.any() else " (none)"}' for label, row in zip(labels, confusion)],
                    parse_math=False)
    for label, *texts in zip(labels, axes.get_xticklabels(), axes.get_yticklabels()):
        for text in texts:
            text.set_fontproperties(FontProperties(fname=label.font, size=5 if small else 10))
    axes.set(xlabel='predicted', ylabel='annotated', title=f'where the pixels of each class went, in percent; {title}')
    with utils.whole_file(path) as partial:
        figure.savefig(partial, dpi=110)
