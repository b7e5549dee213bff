"""Which room imports which, what an import does, and what must start without TensorFlow."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WINGS = ('datasets', 'inference', 'report', 'training')
# What each room may import beside itself; the rooms of tools and benchmarks may import anything but each other.
ALLOWED = {
    'utils': (),
    'vgg': (),
    'datasets': ('utils',),
    'inference': ('datasets', 'utils'),
    'report': ('datasets.classes', 'inference', 'utils'),
    'training': ('datasets', 'inference', 'report', 'utils'),
    'convert_fcn_dataset': ('datasets', 'utils'),
    'train': (*WINGS, 'vgg', 'utils'),
    'evaluate': ('train', 'inference', 'datasets', 'report', 'utils'),
    'predict': ('train', 'inference', 'datasets', 'utils'),
    'tools': (*WINGS, 'convert_fcn_dataset', 'train', 'evaluate', 'predict', 'vgg', 'utils'),
    'benchmarks': (*WINGS, 'convert_fcn_dataset', 'train', 'evaluate', 'predict', 'vgg', 'utils'),
}
WITHOUT_TENSORFLOW = ('report.page', 'report.crops', 'report.validation', 'inference.crf', 'inference.scores',
                      'inference.averaging', 'datasets.classes', 'datasets.pictures', 'datasets.check')


def list_files():
    """The Python files of all rooms but tests, list of Path relative to ROOT."""
    names = [name for room in ALLOWED for name in (ROOT.glob(f'{room}.py'), ROOT.glob(f'{room}/**/*.py'))]
    return sorted(path.relative_to(ROOT) for paths in names for path in paths)


def module_name(path):
    """The name under which a file is imported, str."""
    return '.'.join(path.with_suffix('').parts).removesuffix('.__init__')


def list_imports(path):
    """The modules that a file imports anywhere in it, set of str; of `from a import b` both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}:{node.lineno}: a relative import'
            found.update(f'{node.module}.{alias.name}' for alias in node.names)
    return found


def run_python(program):
    """Runs a program in a Python of its own; returns what it prints."""
    done = subprocess.run([sys.executable, '-c', program, '--no_such_flag'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_file_has_a_room():
    files = {path.relative_to(ROOT) for path in ROOT.glob('*.py')}
    files |= {path.relative_to(ROOT) for path in ROOT.glob('*/*.py')} - {
        path.relative_to(ROOT) for path in ROOT.glob('tests/*.py')}
    assert files <= set(list_files())


@pytest.mark.parametrize('room', ALLOWED)
def test_a_room_imports_only_what_the_layout_allows(room):
    wrong = []
    for path in list_files():
        if path.parts[0].removesuffix('.py') == room:
            wrong += [f'{path} imports {name}' for name in sorted(list_imports(path))
                      if name.split('.')[0] in (*ALLOWED, 'tests') and name.split('.')[0] != room
                      and not any(f'{name}.'.startswith(f'{allowed}.') for allowed in ALLOWED[room])]
    assert wrong == []


def test_importing_a_module_has_no_effect():
    """No flag is parsed, no op is built, no session is opened and nothing is printed."""
    modules = [module_name(path) for path in list_files() if path.parts[0] not in ('tools', 'benchmarks')]
    assert run_python(f'import argparse, importlib\n'
                      f'import tensorflow.compat.v1 as tf\n'
                      f'tf.disable_eager_execution()  # else an op would leave no trace\n'
                      f'argparse.ArgumentParser.parse_known_args = tf.Session = None  # a call fails\n'
                      f'for name in {modules}:\n'
                      f'    importlib.import_module(name)\n'
                      f'assert not tf.get_default_graph().get_operations()\n') == ''


def test_what_needs_no_tensorflow_does_not_import_it():
    """Conversion checks and the process that draws pictures start in a tenth of the time."""
    run_python(f'import importlib, sys\n'
               f'for name in {WITHOUT_TENSORFLOW}:\n'
               f'    importlib.import_module(name)\n'
               f"    assert 'tensorflow' not in sys.modules, name\n")
