"""The walk-through of both READMEs shows the code as it is, and their tables every flag."""
import os
import re

import pytest

import convert_fcn_dataset
import evaluate
import predict
import train
from report import page

ROOT = os.path.dirname(train.__file__)
both_languages = pytest.mark.parametrize('readme', ['README.md', 'README.zh-CN.md'])


def read(name):
    with open(os.path.join(ROOT, name), encoding='utf-8') as file:
        return file.read()


def significant_lines(text):
    return [line.strip() for line in text.splitlines() if line.strip()]


@both_languages
def test_the_walk_through_is_train_py_line_for_line(readme):
    code = significant_lines(read('train.py'))
    blocks = re.findall(r'```python\n(.*?)```', read(readme), re.DOTALL)
    assert len(blocks) >= 10
    for block in blocks:
        lines = significant_lines(block)
        assert lines[0] in code, lines[0]
        start = code.index(lines[0])
        assert code[start:start + len(lines)] == lines


@both_languages
def test_every_step_is_marked_in_train_py(readme):
    steps = re.findall(r'Step (\d):? ', read('train.py'))
    assert steps == [str(number) for number in range(1, 9)]
    assert re.findall(r'^\*\*(\d)\. ', read(readme), re.MULTILINE) == steps


@both_languages
@pytest.mark.parametrize('program', [train, convert_fcn_dataset, evaluate, predict, page])
def test_every_flag_is_in_the_readme(program, readme):
    for flag in vars(program.parse_args(['--images', 'photo.jpg'] if program is predict else [])):
        assert f'`--{flag}`' in read(readme), flag


@both_languages
def test_every_file_that_the_readme_names_exists(readme):
    named = re.findall(r'\((results/[^)]+|LICENSE)\)|"(results/[^"]+)"', read(readme))
    for name in [first or second for first, second in named]:
        assert os.path.exists(os.path.join(ROOT, name)), name


def table_rows(text):
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line.startswith('|')]


@both_languages
def test_speed_figures_are_those_of_the_benchmarks(readme):
    """A row of README has the medians of a line of results/benchmarks.md."""
    lines = [[re.sub(r' \(.*', '', cell) for cell in cells[:6]] for cells in table_rows(read('results/benchmarks.md'))]
    section = re.search(r'make bench VOC.*?\n## ', read(readme), re.DOTALL).group()
    quoted = table_rows(section)[2:]
    assert len(quoted) >= 10
    for cells in quoted:
        assert cells in lines


@both_languages
def test_compared_runs_are_those_of_the_results(readme):
    """A row of README has name, images and scores of a line of results/compare."""
    lines = [[cells[i] for i in (0, 3, 4, 5, 6)] for study in ('camvid', 'voc')
             for cells in table_rows(read(f'results/compare/{study}.md'))]
    quoted = [cells for cells in table_rows(read(readme)) if len(cells) == 5 and re.match('[0-9]', cells[1])]
    assert len(quoted) >= 10
    for cells in quoted:
        assert cells in lines
