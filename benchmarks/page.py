"""The page of results, results/benchmarks.md: a table of what was measured, and on what machine."""
import datetime
import importlib.metadata
import os
import platform
import statistics

import psutil

import utils
from benchmarks import measure

PACKAGES = ('tensorflow', 'tf-slim', 'numpy', 'opencv-python-headless', 'pillow', 'pydensecrf2', 'torch')
INTRODUCTION = """
Figures are the median of the rounds and their spread (lowest..highest). Contenders take turns, round by round, each
round in a process of its own, with a warm-up that is not timed; "ours / theirs" is the median of the ratios of each
round, because what slowed the machine down in a round has slowed both. A target is for that ratio. Memory is the
resident memory of all processes of a contender together, read 50 times a second. MB are 10^6 bytes. All cores are used,
except where a row says otherwise.

## Comparisons

| row | measured | ours | opponent | the opponent's | ours / theirs | rounds | target |
|---|---|---|---|---|---|---|---|
"""


def format_figures(values, unit=''):
    """Median and spread of the rounds: '1.20 (1.10..1.30)'; a single round's figure alone."""
    median, lowest, highest = (f'{value:,.0f}{unit}' if value >= 100 else f'{value:.2f}{unit}'
                               for value in (statistics.median(values), min(values), max(values)))
    return median if len(values) == 1 else f'{median} ({lowest}..{highest})'


def compare(measured, ours, opponent, theirs, target='-'):
    """The cells of a line after the row's name; ours and theirs are a figure for each round, or theirs is empty."""
    figures, ratio = 'not installed', '-'
    if theirs:
        figures = format_figures(theirs)
        ratio = format_figures([own / other for own, other in zip(ours, theirs, strict=True)], 'x')
    return [measured, format_figures(ours), opponent, figures, ratio, str(len(ours)), target]


def describe_surroundings():
    """What figures depend on, list of Markdown lines."""
    versions = {each.name: each.version for each in importlib.metadata.distributions()}
    with open('/proc/cpuinfo') as file:
        name = next((line.partition(':')[2].strip() for line in file if line.startswith('model name')), 'CPU')
    memory = psutil.virtual_memory().total / 2 ** 30
    return [f'- machine: {name}, {len(os.sched_getaffinity(0))} cores, {memory:.1f} GiB of memory; no GPU is used; '
            f'load average at the start: {os.getloadavg()[0]:.1f}',
            f'- system: {platform.platform()}; {datetime.date.today()}; python {platform.python_version()}, '
            + ', '.join(f'{name} {versions.get(name, "not installed")}' for name in PACKAGES)]


def write_page(path, facts, lines, methods):
    """Writes the page: facts, list of Markdown lines; lists of cells; a dict of row to str, how it is measured."""
    with open(os.path.join(measure.ROOT, 'benchmarks', 'remarks.md'), encoding='utf-8') as file:
        remarks = file.read()
    head = '\n'.join(['# Benchmarks', '', *facts, INTRODUCTION])
    table = ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)
    notes = ''.join(f'- **{row}**: {" ".join(method.split())}\n' for row, method in methods.items())
    utils.save_text(path, f'{head}{table}\n## Remarks\n\n{remarks}\n## What the rows measure\n\n{notes}')
