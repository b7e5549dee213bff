"""The results page of a run: one static OUT/index.html that opens from the file system, its curves in OUT/page/.

    python report.py --output_dir results

train.py rebuilds it at every validation and evaluate.py after every evaluation. It is made from the files of the run
folder alone; what is missing or damaged there is left out, so that a page never stops a training. Its looks are in
page.html.jinja.
"""
import collections
import csv
import datetime
import io
import json
import math
import os
import re
import shlex
import urllib.parse

import jinja2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

import utils
from datasets import classes
from utils import UserError

CURVE_POINTS = 1000  # more than a screen has pixels for
OPEN_ROWS = 8  # validation steps in sight; older ones are folded up
FOLDED_ROWS = 100

# Of the page and the curves in it, for a bright and for a dark screen; `plain` and `crf` are the two series everywhere.
COLOURS = {
    'light': {'paper': '#f6f6f3', 'card': '#ffffff', 'ink': '#1f2630', 'muted': '#5f6977', 'line': '#e3e3dd',
              'plain': '#2f6fa8', 'crf': '#c9761a', 'good': '#2b7a4b', 'bad': '#b3403a'},
    'dark': {'paper': '#13161b', 'card': '#1b1f26', 'ink': '#e4e7eb', 'muted': '#9aa4b2', 'line': '#2e343e',
             'plain': '#6fb0e6', 'crf': '#efaa5a', 'good': '#6cc592', 'bad': '#ee8b84'},
}
VALIDATION_PICTURES = {'img': 'image', 'annotation': 'annotation', 'prediction': 'prediction',
                       'prediction_crfed': 'with CRF', 'overlay': 'overlay'}
EVALUATION_PICTURES = {'img': 'image', 'annotation': 'annotation', 'prediction': 'prediction', 'error': 'errors',
                       'prediction_crfed': 'with CRF', 'error_crfed': 'errors with CRF'}
FIGURES = {'mean_iou': 'Mean IoU', 'pixel_accuracy': 'Pixel accuracy', 'mean_accuracy': 'Mean accuracy',
           'frequency_weighted_iou': 'Frequency-weighted IoU', 'boundary_iou': 'Boundary mean IoU'}
FILES = ('train/log.csv', 'train/eval.csv', 'train/settings.json', 'evaluation/metrics.json')

Picture = collections.namedtuple('Picture', 'name caption url width height')
PictureRow = collections.namedtuple('PictureRow', 'id title note pictures')
Line = collections.namedtuple('Line', 'label colour steps values noisy')
Curve = collections.namedtuple('Curve', 'name title alt lines hint')

# ------------------------------------------------------------------------------------------- the run folder's files


def read_table(path):
    """Rows of a CSV file with a column `step`, sorted by it; of two rows for one step the later one counts.

    Rows that are cut short or have no step are left out, and so is a last line without an end: it may be half a number.

    Returns:
        list of dicts, column to float, or to None where there is no finite number. Empty if the file cannot be read.
    """
    try:
        with utils.open_file(path, encoding='utf-8', errors='replace', newline='') as file:
            whole_lines = file.read().rpartition('\n')[0]
        header, *rows = csv.reader(io.StringIO(whole_lines))
    except (OSError, ValueError, csv.Error):
        return []
    by_step = {}
    for row in rows:
        values = dict(zip(header, map(as_number, row)))
        step = values.get('step')
        if len(row) == len(header) and step is not None and 0 <= step < 1e12:
            by_step[int(step)] = values
    return [by_step[step] for step in sorted(by_step)]


def read_json(path):
    """The object in a JSON file; {} if it cannot be read or holds something else."""
    try:
        with utils.open_file(path, encoding='utf-8', errors='replace') as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def as_number(value):
    """A finite float from a JSON value or a text, else None."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def as_list(value):
    """A JSON value if it is a list, else []."""
    return value if isinstance(value, list) else []


def as_dict(value):
    """A JSON value if it is an object, else {}."""
    return value if isinstance(value, dict) else {}


def find_pictures(output_dir, stem, captions):
    """Those of the pictures OUT/STEM_NAME.jpg that are there and open.

    Args:
        output_dir: str.
        stem: str, relative to output_dir.
        captions: dict of NAME to caption.

    Returns:
        list of Picture.
    """
    pictures = [find_picture(output_dir, f'{stem}_{name}.jpg', name, caption) for name, caption in captions.items()]
    return [picture for picture in pictures if picture]


def find_picture(output_dir, path, name, caption):
    """Picture of a file, its path relative to output_dir, or None if it is missing or damaged."""
    try:
        with Image.open(os.path.join(output_dir, path)) as image:  # reads the size alone: the page keeps its place
            width, height = image.size
        url = urllib.parse.quote(os.fsencode(path))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # SyntaxError is Pillow's for bad chunks
        return None
    return Picture(name, caption, url, width, height)


def thin(items, most):
    """At most `most` items of a list or array, evenly spread, always with the first and the last."""
    if len(items) <= most:
        return items
    kept = np.linspace(0, len(items) - 1, most).astype(int)
    return items[kept] if isinstance(items, np.ndarray) else [items[index] for index in kept]


# ------------------------------------------------------------------------------------------- curves


def training_curves(output_dir, log, scores):
    """What to draw of train/log.csv and train/eval.csv (see read_table).

    Returns:
        list of Curve; one without lines has nothing to show yet, and its hint is the command that changes that.
    """
    command = f'python train.py --output_dir {shlex.quote(output_dir)}'
    return [
        make_curve('loss', 'Loss per pixel', command,
                   make_line('training', 'plain', log, 'loss_per_pixel', noisy=True),
                   make_line('validation', 'crf', scores, 'loss_per_pixel')),
        make_curve('mean_iou', 'Validation mean IoU', f'{command} --eval_steps 200',
                   make_line('mean IoU', 'plain', scores, 'mean_iou'),
                   make_line('along borders', 'crf', scores, 'boundary_iou')),
        make_curve('speed', 'Images per second', command,
                   make_line('training', 'plain', log, 'images_per_second', noisy=True)),
        make_curve('learning_rate', 'Learning rate', command, make_line('training', 'plain', log, 'learning_rate')),
    ]


def make_curve(name, title, hint, *lines):
    """Curve of those of the lines that have points."""
    lines = [drawn for drawn in lines if len(drawn.steps)]
    ends = [f'{drawn.label} {drawn.values[-1]:.4g} at step {drawn.steps[-1]:,.0f}' for drawn in lines]
    return Curve(name, title, f'{title} over the steps: {", ".join(ends)}', lines, hint)


def make_line(label, colour, rows, column, noisy=False):
    """Line of a table's column over the steps; rows without that number are left out."""
    points = [(row['step'], row[column]) for row in rows if row.get(column) is not None]
    steps, values = np.array(points, float).reshape(-1, 2).T
    return Line(label, colour, steps, values, noisy)


def draw_curve(curve, colours):
    """Draws a curve as SVG without background, with the colours of one theme of COLOURS. Returns the file's text."""
    # A Figure of its own, without pyplot, leaves the backend of whoever imports this as it is.
    figure = Figure(figsize=(4.8, 2.4), layout='constrained')
    axes = figure.add_subplot()
    for drawn in curve.lines:
        draw_line(axes, drawn, colours[drawn.colour])
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))  # 0.0001, with no power at the top
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.0f}'))
    axes.grid(axis='y', color=colours['line'])
    axes.tick_params(colors=colours['muted'], length=0, labelsize=9)
    axes.spines[['top', 'left', 'right']].set_visible(False)
    axes.spines['bottom'].set_color(colours['line'])
    if len(curve.lines) > 1:
        axes.legend(frameon=False, labelcolor=colours['muted'], fontsize=9)
    file = io.StringIO()
    figure.savefig(file, format='svg', transparent=True, metadata={'Date': None})
    return file.getvalue()


def draw_line(axes, drawn, colour):
    """Draws a Line; a noisy one faint, with its running mean on top. Few points are marked each."""
    steps, values = drawn.steps, drawn.values
    if drawn.noisy and len(steps) >= 20:
        axes.plot(thin(steps, CURVE_POINTS), thin(values, CURVE_POINTS), color=colour, alpha=0.3, linewidth=1)
        values = running_mean(values, len(values) // 20)
    axes.plot(thin(steps, CURVE_POINTS), thin(values, CURVE_POINTS), color=colour, label=drawn.label, linewidth=1.8,
              marker='o' if len(steps) < 20 else None, markersize=4)


def running_mean(values, reach):
    """Mean over each value and `reach` neighbours on either side, fewer near the ends, float64 [N] -> float64 [N]."""
    index = np.arange(len(values))
    reach = np.minimum(reach, np.minimum(index, index[::-1]))  # as many on both sides, or a falling start would sag
    sums = np.concatenate([[0], np.cumsum(values)])
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)


def write_curves(curves, folder):
    """Draws each curve that has lines, for a bright and for a dark screen: folder/NAME-light.svg, NAME-dark.svg."""
    os.makedirs(folder, exist_ok=True)
    for curve in curves:
        if curve.lines:
            light = draw_curve(curve, COLOURS['light'])
            for theme, svg in (('light', light), ('dark', darken(light))):
                utils.save_text(os.path.join(folder, f'{curve.name}-{theme}.svg'), svg)


def darken(svg):
    """The same drawing in the dark theme's colours, in a hundredth of the time that drawing it again takes."""
    dark = {colour: COLOURS['dark'][key] for key, colour in COLOURS['light'].items()}
    return re.sub('#[0-9a-f]{6}', lambda match: dark.get(match[0], match[0]), svg)


# ------------------------------------------------------------------------------------------- what the page says


def summarise(log, scores, settings, metrics):
    """The tiles at the top: list of (label, value, note), all str."""
    tiles = []
    if log:
        last, of = log[-1], as_number(settings.get('max_steps'))
        tiles.append(('Step', f'{last["step"]:,.0f}', f'of {of:,.0f}' if of else ''))
        tiles.append(('Loss per pixel', show(last.get('loss_per_pixel')), 'at the last step logged'))
    scored = [row for row in scores if row.get('mean_iou') is not None]
    if scored:
        best = max(scored, key=lambda row: row['mean_iou'])
        tiles.append(('Best validation mean IoU', show(best['mean_iou']), f'at step {best["step"]:,.0f}'))
    if as_number(metrics.get('mean_iou')) is not None:
        refined = as_number(as_dict(metrics.get('crf')).get('mean_iou'))
        tiles.append(('Evaluation mean IoU', show(metrics['mean_iou']),
                      'without CRF' if refined is None else f'with CRF {show(refined)}'))
    return tiles


def show(value):
    """A figure of 0..1 or so as the terminal prints it, four decimals; an n-dash where there is none."""
    number = as_number(value)
    return '–' if number is None else f'{number:.4f}'


def percent(share):
    """Length of a bar in CSS: 0..1 to '0.00%'..'100.00%'; what is beyond is cut."""
    return f'{100 * min(max(share, 0), 1):.2f}%'


def validation_rows(output_dir, scores):
    """A PictureRow each validation step, newest first."""
    try:
        names = os.listdir(os.path.join(output_dir, 'eval'))
    except OSError:
        return [], 0
    steps = {int(match[1]) for name in names if (match := re.fullmatch(r'val_(\d{1,15})_[a-z_]+\.jpg', name))}
    steps = sorted(steps, reverse=True)
    shown = steps[:OPEN_ROWS] + thin(steps[OPEN_ROWS:], FOLDED_ROWS)
    mean_ious = {int(row['step']): row.get('mean_iou') for row in scores}
    rows = [PictureRow(f'step-{step}', f'Step {step:,}', note_of(mean_ious.get(step)),
                       find_pictures(output_dir, f'eval/val_{step}', VALIDATION_PICTURES)) for step in shown]
    return [row for row in rows if row.pictures], len(steps)


def note_of(mean_iou):
    """What a validation row says of the whole validation set at its step."""
    return '' if mean_iou is None else f'validation mean IoU {mean_iou:.4f}'


def extreme_rows(output_dir, metrics, kind):
    """A PictureRow each of the `kind` ('worst' or 'best') images of an evaluation."""
    rows = []
    for number, entry in enumerate(map(as_dict, as_list(metrics.get(kind))), start=1):
        refined = as_number(entry.get('crf_mean_iou'))
        note = f'mean IoU {show(entry.get("mean_iou"))}' + ('' if refined is None else f', with CRF {refined:.4f}')
        pictures = find_pictures(output_dir, f'evaluation/{entry.get("stem")}', EVALUATION_PICTURES)
        rows.append(PictureRow(f'{kind}-{number}', str(entry.get('filename', '–')), note, pictures))
    return [row for row in rows if row.pictures]


def headline_figures(metrics):
    """The evaluation's figures: list of (title, without CRF, with CRF, change by it, better), None for no CRF."""
    refined, rows = as_dict(metrics.get('crf')), []
    for key, title in FIGURES.items():
        before, after = as_number(metrics.get(key)), as_number(refined.get(key))
        change = None if before is None or after is None else after - before
        rows.append((title, show(before), show(after), '' if change is None else f'{change:+.4f}', (change or 0) >= 0))
    return rows


def class_bars(metrics, class_set):
    """A dict each class of the evaluation: name, colour, before and after CRF (IoU, float or None), accuracy."""
    refined = as_dict(as_dict(metrics.get('crf')).get('per_class_iou'))
    accuracy = as_dict(metrics.get('per_class_accuracy'))
    colours = {entry['name']: entry['colour'] for entry in class_legend(class_set)}
    return [{'name': name, 'colour': colours.get(name, 'transparent'), 'before': as_number(iou),
             'after': as_number(refined.get(name)), 'accuracy': as_number(accuracy.get(name))}
            for name, iou in as_dict(metrics.get('per_class_iou')).items()]


def read_classes(settings):
    """The run's classes.ClassSet; VOC's where its settings tell none, or damaged ones."""
    try:
        return classes.from_json(settings['classes'])
    except (KeyError, ValueError):
        return classes.VOC


def class_legend(class_set):
    """Name and CSS colour of every class, and of void."""
    palette = class_set.palette
    named = [*enumerate(class_set.names), (classes.IGNORE_LABEL, 'void: not counted')]
    return [{'name': name, 'colour': 'rgb({}, {}, {})'.format(*palette[index])} for index, name in named]


def readable(value):
    """A JSON value as text for a table."""
    if value is None:
        return 'none'
    if isinstance(value, dict) and value.keys() == {'name', 'colour'}:
        return str(value['name'])  # a class, whose colour is in the legend
    if isinstance(value, dict):
        return ', '.join(f'{key} {readable(inner)}' for key, inner in value.items())
    if isinstance(value, list):
        return ', '.join(map(readable, value))
    return str(value)


# ------------------------------------------------------------------------------------------- the page


def write_page(output_dir):
    """Builds OUT/index.html and OUT/page/ from the run folder OUT; earlier ones are replaced whole.

    Args:
        output_dir: str, the run folder. Missing and damaged files in it are left out.

    Returns:
        str, path of the page.

    Raises:
        OSError: it cannot be written.
    """
    log = read_table(os.path.join(output_dir, 'train', 'log.csv'))
    scores = read_table(os.path.join(output_dir, 'train', 'eval.csv'))
    settings = read_json(os.path.join(output_dir, 'train', 'settings.json'))
    metrics = read_json(os.path.join(output_dir, 'evaluation', 'metrics.json'))
    curves, class_set = training_curves(output_dir, log, scores), read_classes(settings)
    write_curves(curves, os.path.join(output_dir, 'page'))
    html = load_template().render(
        curves=curves, tiles=summarise(log, scores, settings, metrics), settings=settings,
        classes=class_legend(class_set), **describe_run(output_dir, settings),
        **describe_validation(output_dir, scores), **describe_evaluation(output_dir, metrics, class_set))
    path = os.path.join(output_dir, 'index.html')
    utils.save_text(path, html)
    return path


def load_template():
    """page.html.jinja, which escapes all that it is given."""
    folder = os.path.dirname(os.path.abspath(__file__))
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(show=show, percent=percent, readable=readable)
    return environment.get_template('page.html.jinja')


def describe_run(output_dir, settings):
    """The template's values that belong to no section."""
    record = settings.get('dataset_val', 'data/fcn_val.record')
    return {'name': os.path.basename(os.path.abspath(output_dir)) or output_dir,
            'model': str(settings.get('model', 'fcn_8s')).replace('fcn_', 'FCN-'),
            'train_command': f'python train.py --output_dir {shlex.quote(output_dir)}',
            'evaluate_command': f'python evaluate.py --checkpoint_path {shlex.quote(os.path.join(output_dir, "train"))}'
                                f' --dataset {shlex.quote(str(record))} --crf',
            'written': datetime.datetime.now().strftime('%Y-%m-%d %H:%M'),
            'files': [path for path in FILES if os.path.isfile(os.path.join(output_dir, path))],
            'colours': COLOURS}


def describe_validation(output_dir, scores):
    """The template's values for the validation pictures."""
    rows, number_of_steps = validation_rows(output_dir, scores)
    return {'open_rows': rows[:OPEN_ROWS], 'folded_rows': rows[OPEN_ROWS:], 'number_of_steps': number_of_steps}


def describe_evaluation(output_dir, metrics, class_set):
    """The template's values for the evaluation."""
    confusions = [find_picture(output_dir, f'evaluation/{name}.png', name, caption)
                  for name, caption in (('confusion', 'without CRF'), ('confusion_crf', 'with CRF'))]
    return {'evaluated': bool(metrics), 'images': metrics.get('images'), 'with_crf': bool(as_dict(metrics.get('crf'))),
            'figures': headline_figures(metrics), 'bars': class_bars(metrics, class_set),
            'absent': [str(name) for name in as_list(metrics.get('absent_classes'))],
            'confusions': PictureRow('confusion', 'Confusion matrix', '', [found for found in confusions if found]),
            'extremes': {'Worst images': extreme_rows(output_dir, metrics, 'worst'),
                         'Best images': extreme_rows(output_dir, metrics, 'best')},
            'scorecard': as_dict(metrics.get('scorecard'))}


def check_run_folder(output_dir):
    """Raises UserError unless output_dir is there and holds a run."""
    if not os.path.isdir(output_dir):
        raise UserError(f'--output_dir {output_dir}: no such folder; give the --output_dir of train.py')
    if not any(os.path.isdir(os.path.join(output_dir, name)) for name in ('train', 'eval', 'evaluation')):
        raise UserError(f'--output_dir {output_dir}: holds no run (no train, eval or evaluation folder); '
                        'give the --output_dir of train.py')


def parse_args(argv=None):
    """The program's flags; see --help."""
    parser = utils.ArgumentParser('Builds the results page of a run, index.html in its folder.')
    parser.add_argument('--output_dir', default='results', help='run folder, as given to train.py')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    check_run_folder(args.output_dir)
    print(f'results page: {write_page(args.output_dir)}')


if __name__ == '__main__':
    utils.run_program(main)
