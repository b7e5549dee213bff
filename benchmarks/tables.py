"""The result file: comparisons, tables and plots of growth, and what they were measured on. Only what was measured."""
import collections
import datetime
import importlib.metadata
import os
import platform
import sys

from matplotlib.figure import Figure

import utils
from benchmarks import measure

PACKAGES = ('tensorflow', 'tf-slim', 'numpy', 'opencv-python-headless', 'pillow', 'pydensecrf2', 'torch')

Target = collections.namedtuple('Target', 'sign bound')
Target.__doc__ = """'>=' or '<=' a number, for the ratio of a Line; without an opponent's figures, for its own."""
Line = collections.namedtuple('Line', 'row measured ours opponent theirs target', defaults=('', None, None))
Line.__doc__ = """One line of the comparisons.

row: str. measured: str, quantity with its unit.
ours: list of float, a figure each round.
opponent: str. theirs: list of as many floats; or str, why there are none; or None.
target: Target or None.
"""
Table = collections.namedtuple('Table', 'title y columns rows picture')
Table.__doc__ = """How something grows: one column against which the others are drawn.

title: str. y: str, quantity and unit of all columns but the first. columns: list of str.
rows: list of tuples of numbers. picture: str, name of the plot's PNG.
"""

# ------------------------------------------------------------------------------------------- comparisons


def format_number(value):
    """Three digits or a few more, as str: 1234.5 -> '1,234', 12.34 -> '12.3', 1.234 -> '1.23', 0.01234 -> '0.0123'."""
    size = abs(value)
    return f'{value:,.0f}' if size >= 100 else f'{value:.1f}' if size >= 10 else f'{value:.2f}' if size >= 1 \
        else f'{value:.3g}'


def format_figures(values, unit='', form=format_number):
    """Median and spread of the rounds: '1.20 (1.10..1.30)'; of a single round, that."""
    found = measure.summarise(values)
    middle = form(found.median) + unit
    return middle if len(values) == 1 else f'{middle} ({form(found.lowest)}{unit}..{form(found.highest)}{unit})'


def format_share(value):
    """A percentage of which the last digits matter: 99.9987."""
    return f'{value:.4f}'


def compare(line):
    """The ratio of a Line in each round, list of float; its own figures where nobody is compared with; else None."""
    if line.theirs is None:
        return line.ours
    return None if isinstance(line.theirs, str) else measure.ratios(line.ours, line.theirs)


def is_met(line):
    """Whether the median reaches the target: 'yes' or 'no'; '-' without a target, '?' without an opponent."""
    compared = compare(line)
    if line.target is None:
        return '-'
    if compared is None:
        return '?'
    median = measure.summarise(compared).median
    return 'yes' if (median >= line.target.bound if line.target.sign == '>=' else median <= line.target.bound) else 'no'


def format_line(line):
    """A Line as a row of the Markdown table."""
    share = line.measured.startswith('%')
    unit, form = ('%', format_share) if share else ('', format_number)
    theirs, ratio = '-', '-'
    if isinstance(line.theirs, str):
        theirs = line.theirs
    elif line.theirs is not None:
        theirs, ratio = format_figures(line.theirs), format_figures(compare(line), 'x', '{:.2f}'.format)
    target = '-'
    if line.target:
        target = f'{line.target.sign} {line.target.bound:g}{"x" if line.theirs is not None else unit}'
    cells = [line.row, line.measured, format_figures(line.ours, unit, form), line.opponent or '-', theirs, ratio,
             str(len(line.ours)), target, is_met(line)]
    return f'| {" | ".join(cells)} |'


def format_lines(lines):
    """All Lines as a Markdown table, list of str."""
    header = ['row', 'measured', 'ours', 'opponent', "the opponent's", 'ours / theirs', 'rounds', 'target',
              'met']
    return [f'| {" | ".join(header)} |', '|' + '---|' * len(header), *map(format_line, lines)]


# ------------------------------------------------------------------------------------------- growth


def format_table(table):
    """A Table in Markdown with its plot, list of str."""
    return [f'### {table.title}', '', f'{table.y}:', '',
            f'| {" | ".join(table.columns)} |', '|' + '---|' * len(table.columns),
            *(f'| {" | ".join([f"{row[0]:,}", *map(format_number, row[1:])])} |' for row in table.rows),
            '', f'![{table.title}]({table.picture})', '']


def draw(table, folder):
    """Draws a Table into FOLDER/PICTURE."""
    figure = Figure(figsize=(4.8, 3.2), layout='constrained')
    axes = figure.subplots()
    first, *others = zip(*table.rows)
    for name, values in zip(table.columns[1:], others):
        axes.plot(first, values, marker='o', label=name)
    axes.set(xlabel=table.columns[0], ylabel=table.y, title=table.title)
    axes.set_ylim(bottom=0)
    axes.title.set_fontsize(10)
    axes.grid(color='lightgrey', linewidth=0.5)
    if len(others) > 1:
        axes.legend(fontsize=8)
    with utils.whole_file(os.path.join(folder, table.picture)) as partial:
        figure.savefig(partial, dpi=90)


# ------------------------------------------------------------------------------------------- machine and page


def describe_cpu():
    """The processor's name as the system gives it."""
    try:
        with open('/proc/cpuinfo') as file:
            names = [line.partition(':')[2].strip() for line in file if line.startswith('model name')]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def describe_memory():
    """The machine's memory, such as '15.6 GiB'."""
    return f'{os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2 ** 30:.1f} GiB'


def package_version(name):
    """A package's version, or 'not installed'."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return 'not installed'


def describe_system():
    """The operating system's name."""
    try:
        return f'{platform.freedesktop_os_release()["PRETTY_NAME"]}, {platform.platform()}'
    except OSError:
        return platform.platform()


def describe_surroundings(command, data):
    """What figures depend on, list of Markdown lines.

    Args:
        command: str, what was typed. data: list of str, what it was measured on.
    """
    cores = measure.count_cores()
    load = ', '.join(f'{value:.1f}' for value in os.getloadavg())
    return [f'- machine: {describe_cpu()}, {cores} cores, {describe_memory()} of memory; no GPU is used',
            f'- system: {describe_system()}',
            f'- versions: python {sys.version.split()[0]}, '
            + ', '.join(f'{name} {package_version(name)}' for name in PACKAGES),
            f'- threads: {cores} for TensorFlow (its default), PyTorch (torch.set_num_threads) and the converter (its '
            'default), except where a row says otherwise',
            f'- date: {datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}; load average at the start: {load}',
            *(f'- data: {line}' for line in data),
            f'- command: `{command}`']


def read_remarks():
    """The hand-written remarks.md of this folder, list of str; empty without one."""
    path = os.path.join(measure.ROOT, 'benchmarks', 'remarks.md')
    if not os.path.exists(path):
        return []
    with open(path, encoding='utf-8') as file:
        return ['## Remarks', '', file.read().strip(), '']


def write_page(folder, surroundings, lines, tables, methods):
    """Writes FOLDER/benchmarks.md and its plots.

    Args:
        folder: str. surroundings: list of str, see describe_surroundings.
        lines: list of Line. tables: list of Table. methods: dict of row to how it is measured.

    Returns:
        str, the page's path.
    """
    page = ['# Benchmarks', '', *surroundings, '',
            'Figures are the median of the rounds and their spread (lowest..highest). Contenders run in processes of '
            'their own and take turns, round by round, after a warm-up; "ours / theirs" is the median of the ratios '
            'of each round. MB are 10^6 bytes.', '']
    if lines:
        page += ['## Comparisons', '', *format_lines(lines), '']
    if tables:
        page += ['## How cost grows', '']
        for table in tables:
            draw(table, folder)
            page += format_table(table)
    page += read_remarks()
    page += ['## What the rows measure', '', *(f'- **{row}**: {method}' for row, method in methods.items()), '']
    path = os.path.join(folder, 'benchmarks.md')
    utils.save_text(path, '\n'.join(page).rstrip() + '\n')
    return path
