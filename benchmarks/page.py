"""The page of results, results/benchmarks.md: a table of what was measured, and on what machine."""
import contextlib
import datetime
import importlib.metadata
import os
import platform
from typing import NamedTuple

import psutil

import utils
from benchmarks import measure

PACKAGES = ('tensorflow', 'tf-slim', 'numpy', 'opencv-python-headless', 'pillow', 'pydensecrf2', 'torch')
HEADER = ('row', 'measured', 'ours', 'opponent', "the opponent's", 'ours / theirs', 'rounds', 'target', 'met')
INTRODUCTION = """
Figures are the median of the rounds and their spread (lowest..highest). Contenders run in processes of their own and
take turns, round by round, after a warm-up; "ours / theirs" is the median of the ratios of each round. Memory is the
resident memory of all processes of a contender together, read 20 times a second. MB are 10^6 bytes. All cores are
used, except where a row says otherwise.

## Comparisons
"""


class Line(NamedTuple):
    """One line of a row.

    measured: quantity with its unit. ours: a figure for each round.
    opponent: name. theirs: list of as many figures; or str, why there are none; or None without an opponent.
    target: '>= 6' or '<= 6', for the ratio, or for our own figures without an opponent; None for no target.
    """
    measured: str
    ours: list
    opponent: str = '-'
    theirs: list | str | None = None
    target: str | None = None


# ------------------------------------------------------------------------------------------- the table


def format_number(value):
    """Three digits or a few more, as str: 1234.5 -> '1,234', 12.34 -> '12.3', 1.234 -> '1.23', 0.01234 -> '0.0123'."""
    size = abs(value)
    return f'{value:,.0f}' if size >= 100 else f'{value:.1f}' if size >= 10 else f'{value:.2f}' if size >= 1 \
        else f'{value:.3g}'


def format_figures(values, unit='', form=format_number):
    """Median and spread of the rounds: '1.20 (1.10..1.30)'; a single round's figure alone."""
    median, lowest, highest = (form(value) + unit for value in measure.summarise(values))
    return median if len(values) == 1 else f'{median} ({lowest}..{highest})'


def is_met(target, values):
    """Whether the median of `values` reaches the target: 'yes' or 'no'; '-' without a target, '?' without values."""
    if not target or not values:
        return '?' if target else '-'
    sign, bound = target.split()
    median = measure.summarise(values)[0]
    return 'yes' if (median >= float(bound) if sign == '>=' else median <= float(bound)) else 'no'


def format_line(row, line):
    """A Line of a row as a line of the Markdown table."""
    unit, form = ('%', '{:.4f}'.format) if line.measured.startswith('%') else ('', format_number)
    theirs, ratio, judged = line.theirs or '-', '-', None if line.theirs else line.ours
    if isinstance(line.theirs, list):
        judged = measure.ratios(line.ours, line.theirs)
        theirs, ratio = format_figures(line.theirs), format_figures(judged, 'x', '{:.2f}'.format)
    target = line.target + ('x' if line.theirs else unit) if line.target else '-'
    cells = (row, line.measured, format_figures(line.ours, unit, form), line.opponent, theirs, ratio, len(line.ours),
             target, is_met(line.target, judged))
    return f'| {" | ".join(map(str, cells))} |'


# ------------------------------------------------------------------------------------------- machine and page


def describe_machine():
    """Processor, cores and memory, such as 'AMD EPYC, 2 cores, 15.6 GiB of memory'."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open('/proc/cpuinfo') as file:
        name = next((line.partition(':')[2].strip() for line in file if line.startswith('model name')), name)
    memory = psutil.virtual_memory().total / 2 ** 30
    return f'{name}, {len(measure.find_cores())} cores, {memory:.1f} GiB of memory'


def describe_surroundings():
    """What figures depend on, list of Markdown lines."""
    versions = {each.name: each.version for each in importlib.metadata.distributions()}
    return [f'- machine: {describe_machine()}; no GPU is used; load average at the start: {os.getloadavg()[0]:.1f}',
            f'- system: {platform.platform()}; {datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}',
            f'- versions: python {platform.python_version()}, '
            + ', '.join(f'{name} {versions.get(name, "not installed")}' for name in PACKAGES)]


def write_page(path, surroundings, lines, methods):
    """Writes the page.

    Args:
        path: str. surroundings: list of str, see describe_surroundings. lines: list of (row, Line).
        methods: dict of row to str, how it is measured.
    """
    with open(os.path.join(measure.ROOT, 'benchmarks', 'remarks.md'), encoding='utf-8') as file:
        remarks = file.read().strip()
    page = ['# Benchmarks', '', *surroundings, INTRODUCTION,
            f'| {" | ".join(HEADER)} |', '|' + '---|' * len(HEADER), *(format_line(*line) for line in lines),
            '', '## Remarks', '', remarks, '', '## What the rows measure', '',
            *(f'- **{row}**: {" ".join(method.split())}' for row, method in methods.items())]
    utils.save_text(path, '\n'.join(page) + '\n')
