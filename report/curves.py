"""The curves of a run: columns of its tables over the steps, drawn as SVG in the colours of the page."""
import io
from typing import NamedTuple

import numpy as np

MAX_POINTS = 1000  # of a line, more than it has pixels
FEW_POINTS = 20  # fewer are marked one by one and have no running mean

# Of the page and of its curves. `plain` and `crf` are the colours of the two series everywhere.
COLOURS = {
    'light': {'paper': '#f6f6f3', 'card': '#ffffff', 'ink': '#1f2630', 'muted': '#5f6977', 'line': '#e3e3dd',
              'plain': '#2f6fa8', 'crf': '#c9761a', 'good': '#2b7a4b', 'bad': '#b3403a'},
    'dark': {'paper': '#13161b', 'card': '#1b1f26', 'ink': '#e4e7eb', 'muted': '#9aa4b2', 'line': '#2e343e',
             'plain': '#6fb0e6', 'crf': '#efaa5a', 'good': '#6cc592', 'bad': '#ee8b84'},
}


class Line(NamedTuple):
    """A line of a curve: steps and values float64 [N]; colour a key of COLOURS; a noisy one gets a running mean."""
    label: str
    colour: str
    steps: np.ndarray
    values: np.ndarray
    noisy: bool


class Curve(NamedTuple):
    """A curve: its title, and its lines; without one there is nothing to draw."""
    title: str
    lines: list

    @property
    def description(self):
        """What the curve shows, for readers who do not see it."""
        ends = [f'{line.label} {line.values[-1]:.4g} at step {line.steps[-1]:,.0f}' for line in self.lines]
        return f'{self.title} over the steps: {", ".join(ends)}'


def make_curves(log, scores):
    """The curves of a run, list of Curve, from the rows of train/log.csv and train/eval.csv, see page.read_table."""
    loss = make_lines(('training', 'plain', log, 'loss_per_pixel', True),
                      ('validation', 'crf', scores, 'loss_per_pixel'))
    mean_iou = make_lines(('mean IoU', 'plain', scores, 'mean_iou'), ('along borders', 'crf', scores, 'boundary_iou'))
    speed = make_lines(('training', 'plain', log, 'images_per_second', True))
    learning_rate = make_lines(('training', 'plain', log, 'learning_rate'))
    return [Curve('Loss per pixel', loss),
            Curve('Validation mean IoU', mean_iou),
            Curve('Images per second', speed),
            Curve('Learning rate', learning_rate)]


def make_lines(*descriptions):
    """Lines from tuples (label, colour, rows, column, noisy); one whose rows have no number is left out."""
    lines = []
    for label, colour, rows, column, *noisy in descriptions:
        points = [(row['step'], row[column]) for row in rows if row.get(column) is not None]
        if points:
            lines.append(Line(label, colour, *np.array(points, float).T, bool(noisy)))
    return lines


def draw_curve(curve):
    """Draws a curve without background. Returns the text of an SVG element, whose colours are the page's variables."""
    from matplotlib.figure import Figure  # here, because predict.py, which imports this through train.py, draws none
    from matplotlib.ticker import FuncFormatter, MaxNLocator
    colours = COLOURS['light']
    figure = Figure(figsize=(4.8, 2.4), layout='constrained')  # without pyplot, which would choose a backend
    axes = figure.add_subplot()
    for line in curve.lines:
        draw_line(axes, line, colours[line.colour])
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.0f}'))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))  # no power of ten above the axis
    axes.grid(axis='y', color=colours['line'])
    axes.tick_params(colors=colours['muted'], length=0, labelsize=9)
    axes.spines[['top', 'left', 'right']].set_visible(False)
    axes.spines['bottom'].set_color(colours['line'])
    if len(curve.lines) > 1:
        axes.legend(frameon=False, labelcolor=colours['muted'], fontsize=9)
    file = io.StringIO()
    figure.savefig(file, format='svg', transparent=True, metadata={'Date': None})
    svg = file.getvalue()
    for name, colour in colours.items():
        svg = svg.replace(colour, f'var(--{name})')
    for before_an_id in ('id="', '"#', '(#'):  # which must differ from those of the page's other curves
        svg = svg.replace(before_an_id, before_an_id + curve.title.replace(' ', '-') + '-')
    return svg[svg.index('<svg'):]


def draw_line(axes, line, colour):
    """Draws a Line; a noisy one pale, below its running mean."""
    from scipy.ndimage import uniform_filter1d
    few, values = len(line.steps) < FEW_POINTS, line.values
    steps = thin(line.steps, MAX_POINTS)
    if line.noisy and not few:
        axes.plot(steps, thin(values, MAX_POINTS), color=colour, alpha=0.3, linewidth=1)
        values = uniform_filter1d(values, len(values) // 20 * 2 + 1, mode='nearest')
    axes.plot(steps, thin(values, MAX_POINTS), color=colour, label=line.label, linewidth=1.8,
              marker='o' if few else None, markersize=4)


def thin(values, most):
    """At most `most` items of an array, evenly spaced, with the first and the last."""
    return values[np.linspace(0, len(values) - 1, min(most, len(values))).astype(int)]
