"""Writes docs/flags.md: what --help of each program prints, and the recipes. A test fails when it is not current.

    python tools/write_flags.py
"""
import contextlib
import importlib
import io
import os
import sys
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import utils
from training import recipes

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAMS = ('train.py', 'convert_fcn_dataset.py', 'evaluate.py', 'predict.py', 'tools/download.py',
            'tools/import_coco.py', 'tools/convert_fcn8s.py', 'tools/convert_vgg_weights.py', 'tools/search_crf.py',
            'tools/compare_recipes.py', 'tools/overfit.py', 'tools/make_sample_dataset.py', '-m benchmarks')
INTRODUCTION = """# Flags

What `--help` prints; written by `python tools/write_flags.py`. A flag that a program does not know is an error. Values
of `--num_workers` are those of a machine with 8 CPU cores.
"""
RECIPES = """## Recipes

`--recipe` of `train.py` sets these; a flag that is given overrides the recipe. Entries without a flag are changed in
`training/recipes.py`.
"""


def read_help(program):
    """What --help of a program, such as '-m benchmarks' or 'tools/download.py', prints below its usage."""
    module = program.removeprefix('-m ').removesuffix('.py').replace('/', '.')
    module = importlib.import_module(f'{module}.__main__' if module == 'benchmarks' else module)
    with (mock.patch.dict(os.environ, COLUMNS='120'), mock.patch('os.cpu_count', lambda: 8),
          contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit)):
        module.parse_args(['--help'])
    return text.getvalue().partition('\n\n')[2]


def write():
    """The text of docs/flags.md, str."""
    table = [['', *recipes.RECIPES], ['---'] * (len(recipes.RECIPES) + 1)]
    for entry in recipes.Recipe._fields[1:]:
        flag = f'`--{entry}`' if entry in recipes.FLAGS else f'`{entry}`'
        table.append([flag, *(getattr(recipe, entry) for recipe in recipes.RECIPES.values())])
    rows = ('| ' + ' | '.join(map(str, row)) + ' |\n' for row in table)
    sections = [f'## `python {program}`\n\n```\n{read_help(program)}```\n' for program in PROGRAMS]
    return '\n'.join([INTRODUCTION, sections[0], RECIPES, ''.join(rows), *sections[1:]])


if __name__ == '__main__':
    utils.save_text(os.path.join(ROOT, 'docs', 'flags.md'), write())
