"""The results page of a run: one static OUT/index.html that opens from the file system.

train.py rebuilds it at every validation, evaluate.py after every evaluation. It is made from the files of the run
folder alone. Missing and damaged ones are left out, so that the page never stops a training. page.html.jinja has its
layout.
"""
import datetime
import json
import math
import os
import re
import urllib.parse
from typing import NamedTuple

import jinja2
from PIL import Image

import utils
from datasets import classes
from inference.scores import FIGURES
from report.curves import COLOURS, draw_curve, make_curves

OPEN_ROWS = 8  # validation steps in sight; older ones are folded

# NAME in the pictures' file names, and their captions.
VALIDATION_PICTURES = {'img': 'image', 'annotation': 'annotation', 'prediction': 'prediction',
                       'prediction_crfed': 'with CRF', 'overlay': 'overlay'}
EVALUATION_PICTURES = {'img': 'image', 'annotation': 'annotation', 'prediction': 'prediction', 'error': 'errors',
                       'prediction_crfed': 'with CRF', 'error_crfed': 'errors with CRF'}
CROP_PICTURES = {'img': 'as the network gets them', 'overlay': 'under their labels'}
CONFUSION_PICTURES = {'confusion': 'without CRF', 'confusion_crf': 'with CRF'}


class Picture(NamedTuple):
    """A picture file on the page; its size in pixels keeps its place free while it loads."""
    name: str
    caption: str
    url: str
    width: int
    height: int


class PictureRow(NamedTuple):
    """Pictures of one image or step, list of Picture, side by side; `id` is the row's place on the page."""
    id: str
    title: str
    note: str
    pictures: list


def write_page(output_dir):
    """Builds OUT/index.html from the run folder OUT, and replaces an earlier one.
    Returns the page's path; raises OSError if it cannot be written."""
    log, scores = (read_table(os.path.join(output_dir, 'train', name)) for name in ('log.csv', 'eval.csv'))
    settings = read_json(os.path.join(output_dir, 'train', 'settings.json'))
    metrics = read_json(os.path.join(output_dir, 'evaluation', 'metrics.json'))
    html = load_template().render(
        name=os.path.basename(os.path.abspath(output_dir)),
        model=str(settings.get('model', 'fcn_8s')).replace('fcn_', 'FCN-'),
        written=datetime.datetime.now().strftime('%Y-%m-%d %H:%M'),
        tiles=make_tiles(log, scores, settings, metrics), draw_curve=draw_curve,
        curves=make_curves(log, scores), settings=settings, metrics=metrics,
        crf=metrics.get('crf') or {}, figures=FIGURES, classes=make_legend(read_classes(settings)), colours=COLOURS,
        crops=find_pictures(output_dir, 'train/crops_', CROP_PICTURES),
        confusions=find_pictures(output_dir, 'evaluation/', CONFUSION_PICTURES, '.png'),
        extremes={f'{end.title()} images': make_extreme_rows(output_dir, metrics, end) for end in ('worst', 'best')},
        **make_validation_rows(output_dir, scores))
    path = os.path.join(output_dir, 'index.html')
    utils.save_text(path, html)
    return path


def load_template():
    """page.html.jinja, which escapes all values."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(os.path.dirname(os.path.abspath(__file__))),
                                     autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     undefined=jinja2.StrictUndefined)
    environment.filters.update(show=show, readable=readable)
    return environment.get_template('page.html.jinja')


def show(number):
    """A number with four decimals, as on the terminal; a dash for None."""
    return '–' if number is None else f'{number:.4f}'


def readable(value):
    """A JSON value as text for a table."""
    if isinstance(value, dict) and value.keys() == {'name', 'colour'}:
        return str(value['name'])  # a class, whose colour is in the legend
    if isinstance(value, dict):
        return ', '.join(f'{key} {readable(inner)}' for key, inner in value.items())
    if isinstance(value, list):
        return ', '.join(map(readable, value))
    return 'none' if value is None else str(value)


def read_table(path):
    """A table of a run: list of dicts, sorted by step, of column to float, or to None where there is no finite number.
    Of two rows of one step the later one counts."""
    rows = [{column: parse_number(text) for column, text in row.items()} for row in utils.read_rows(path)]
    by_step = {row['step']: row for row in rows if row.get('step') is not None}
    return [by_step[step] for step in sorted(by_step)]


def parse_number(text):
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def read_json(path):
    """The object in a JSON file, dict; empty if it cannot be read."""
    try:
        with utils.open_file(path, encoding='utf-8') as file:
            return dict(json.load(file))
    except (OSError, ValueError, TypeError):
        return {}


def read_classes(settings):
    """The run's classes.ClassSet; VOC's if its settings name none."""
    try:
        return classes.from_json(settings['classes'])
    except (KeyError, ValueError):
        return classes.VOC


def find_pictures(output_dir, stem, captions, ending='.jpg'):
    """The pictures OUT/STEMname.jpg that exist and are not damaged, for each name and caption; list of Picture."""
    pictures = []
    for name, caption in captions.items():
        path = f'{stem}{name}{ending}'
        try:
            with Image.open(os.path.join(output_dir, path)) as image:  # reads the header alone
                pictures.append(Picture(name, caption, urllib.parse.quote(path), *image.size))
        except (OSError, ValueError, SyntaxError):  # SyntaxError is Pillow's for a damaged PNG
            pass
    return pictures


def make_tiles(log, scores, settings, metrics):
    """The tiles at the top: list of (label, value, note), all str."""
    tiles = []
    if log:
        max_steps = settings.get('max_steps')
        tiles.append(('Step', f'{log[-1]["step"]:,.0f}', f'of {max_steps:,}' if max_steps else ''))
        tiles.append(('Loss per pixel', show(log[-1].get('loss_per_pixel')), 'at the last step logged'))
    scored = [row for row in scores if row.get('mean_iou') is not None]
    if scored:
        best = max(scored, key=lambda row: row['mean_iou'])
        tiles.append(('Best validation mean IoU', show(best['mean_iou']), f'at step {best["step"]:,.0f}'))
    if metrics:
        crf = metrics.get('crf')
        tiles.append(('Evaluation mean IoU', show(metrics.get('mean_iou')),
                      f'with CRF {show(crf["mean_iou"])}' if crf else 'without CRF'))
    return tiles


def make_legend(class_set):
    """The CSS colour of every class and of void, dict by name."""
    named = [*enumerate(class_set.names), (classes.IGNORE_LABEL, 'void: not counted')]
    return {name: 'rgb({}, {}, {})'.format(*class_set.palette[index]) for index, name in named}


def make_validation_rows(output_dir, scores):
    """A PictureRow for each of the newest steps, and for the older ones."""
    folder = os.path.join(output_dir, 'eval')
    names = os.listdir(folder) if os.path.isdir(folder) else []
    steps = {int(match[1]) for name in names if (match := re.fullmatch(r'val_(\d+)_[a-z_]+\.jpg', name))}
    mean_ious = {row['step']: row.get('mean_iou') for row in scores}
    rows = []
    for step in sorted(steps, reverse=True):
        mean_iou = mean_ious.get(step)
        note = '' if mean_iou is None else f'validation mean IoU {show(mean_iou)}'
        rows.append(PictureRow(f'step-{step}', f'Step {step:,}', note,
                               find_pictures(output_dir, f'eval/val_{step}_', VALIDATION_PICTURES)))
    rows = [row for row in rows if row.pictures]
    return {'open_rows': rows[:OPEN_ROWS], 'folded_rows': rows[OPEN_ROWS:]}


def make_extreme_rows(output_dir, metrics, end):
    """A PictureRow for each of the `end` ('worst' or 'best') images of an evaluation."""
    rows = []
    for number, entry in enumerate(metrics.get(end, []), start=1):
        note = f'mean IoU {show(entry["mean_iou"])}'
        if entry['crf_mean_iou'] is not None:
            note += f', with CRF {show(entry["crf_mean_iou"])}'
        pictures = find_pictures(output_dir, f'evaluation/{entry["stem"]}_', EVALUATION_PICTURES)
        rows.append(PictureRow(f'{end}-{number}', entry['filename'], note, pictures))
    return [row for row in rows if row.pictures]
