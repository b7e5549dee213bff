"""Writes docs/flags.md, the flags of all programs, from their parsers.

    python tools/write_flags.py

A test fails when the file is not current.
"""
import importlib
import os
import sys
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import utils
from training import recipes

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAMS = {  # command to module
    'train.py': 'train',
    'convert_fcn_dataset.py': 'convert_fcn_dataset',
    'evaluate.py': 'evaluate',
    'predict.py': 'predict',
    '-m report.page': 'report.page',
    'tools/download.py': 'tools.download',
    'tools/convert_vgg_weights.py': 'tools.convert_vgg_weights',
    'tools/search_crf.py': 'tools.search_crf',
    'tools/compare_recipes.py': 'tools.compare_recipes',
    'tools/overfit.py': 'tools.overfit',
    'tools/make_sample_dataset.py': 'tools.make_sample_dataset',
    '-m benchmarks': 'benchmarks.__main__',
}
OF_CORES = {'num_workers'}  # flags whose default depends on the machine
INTRODUCTION = """# Flags

Written by `python tools/write_flags.py` from the programs' parsers; `--help` prints the same. Every flag has its
default; an empty cell means none, or off. A flag that a program does not know is an error.
"""


class Captured(Exception):
    """Carries a parser out of a program's parse_args."""


def find_parser(module):
    """The argparse parser that a program's parse_args builds."""
    def capture(parser, *_):
        raise Captured(parser)
    try:
        with mock.patch.object(utils.ArgumentParser, 'parse_args', capture):
            importlib.import_module(module).parse_args([])
    except Captured as captured:
        return captured.args[0]
    raise ValueError(f'{module}.parse_args does not use utils.ArgumentParser')


def list_flags(parser):
    """A parser's actions, without --help."""
    return [action for action in parser._actions if action.dest != 'help']


def format_default(action):
    """The cell of a flag's default, str."""
    if action.required:
        return 'required'
    if action.dest in OF_CORES:
        return 'by CPU cores'
    if action.default in (None, []) or isinstance(action.default, bool):
        return ''
    return 'all' if action.default == action.choices else f'`{format_value(action.default)}`'


def format_value(value):
    """A value as one would give it on the command line, str; of a NamedTuple, with its fields' names."""
    if hasattr(value, '_asdict'):
        return ', '.join(f'{name} {format_value(field)}' for name, field in value._asdict().items())
    if isinstance(value, (list, tuple)):
        return ' '.join(map(format_value, value)) or '(none)'
    return f'{value:g}' if isinstance(value, float) else '' if value is None else str(value)


def format_flag(action):
    """The table row of a flag, str."""
    choices = [str(choice) for choice in action.choices or () if str(choice) not in action.help]
    choices = f' ({", ".join(map(str, action.choices))})' if choices else ''
    text = action.help.replace('%%', '%').replace('|', '\\|')
    return f'| `{action.option_strings[0]}` | {format_default(action)} | {text}{choices} |'


def format_program(command, module):
    """The section of a program, str."""
    parser = find_parser(module)
    rows = [format_flag(action) for action in list_flags(parser)]
    return '\n'.join([f'## `python {command}`', '', parser.description, '', '| flag | default | |', '|---|---|---|',
                      *rows, ''])


def format_recipes():
    """The table of recipes, str. An entry without a flag is set by the recipe alone."""
    lines = ['## Recipes', '', '`--recipe` of `train.py` sets these; a flag that is given overrides the recipe. Rows',
             'without `--` are entries of `training/recipes.py` and have no flag.', '',
             '| | ' + ' | '.join(f'`{name}`' for name in recipes.RECIPES) + ' |',
             '|---' * (len(recipes.RECIPES) + 1) + '|']
    for entry in recipes.Recipe._fields[1:]:
        values = [format_entry(recipe, entry) for recipe in recipes.RECIPES.values()]
        lines.append(f'| `{"--" if entry in recipes.FLAGS else ""}{entry}` | ' + ' | '.join(values) + ' |')
    return '\n'.join([*lines, ''])


def format_entry(recipe, entry):
    """The cell of a recipe's entry, str; empty where its optimiser does not use it."""
    if entry in ('momentum', 'bias_rate') and recipe.optimizer != 'momentum':
        return ''
    return format_value(getattr(recipe, entry))


def write():
    """The text of docs/flags.md, str."""
    sections = [format_program(command, module) for command, module in PROGRAMS.items()]
    return '\n'.join([INTRODUCTION, sections[0], format_recipes(), *sections[1:]])


def main():
    utils.ArgumentParser('Writes docs/flags.md from the parsers of all programs.').parse_args()
    utils.save_text(os.path.join(ROOT, 'docs', 'flags.md'), write())


if __name__ == '__main__':
    utils.run_program(main)
