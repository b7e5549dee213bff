"""What `make` does before it installs: Python and compiler are looked at, and whether there is a GPU."""
import os
import shutil
import subprocess
import sys

import pytest
from lives import ROOT

from tools import check_python


@pytest.mark.parametrize('version, fault', [
    ((2, 7), 'Python 2.7 cannot run this project; install Python 3.11 or 3.12 (Debian: apt install python3.12-venv '
             'python3.12-dev) and give it: make PYTHON=python3.12'),
    ((3, 10), 'Python 3.10 cannot'), ((3, 13), 'Python 3.13 cannot'), ((3, 14), 'Python 3.14 cannot'),
    ((3, 11), None), ((3, 12), None)])
def test_p2_a_python_that_does_not_serve_is_named(monkeypatch, version, fault):
    monkeypatch.setattr(sys, 'version_info', (*version, 0, 'final', 0))
    found = check_python.find_fault()
    assert found is None if fault is None else found.startswith(fault) and '\n' not in found


@pytest.mark.parametrize('module, name, value, fault', [
    (shutil, 'which', lambda _: None, 'pydensecrf2 needs a C++ compiler, and clang++ is missing; install it (Debian: '),
    (os.path, 'exists', lambda _: False, 'pydensecrf2 needs Python.h; install it (Debian: apt install python3.1'),
    (check_python.importlib.util, 'find_spec', lambda _: None, 'Python 3.1')])
def test_p2_what_is_missing_is_named(monkeypatch, module, name, value, fault):
    monkeypatch.setenv('CXX', 'clang++ -O2')
    monkeypatch.setattr(shutil, 'which', lambda compiler: compiler)
    monkeypatch.setattr(module, name, value)
    assert check_python.find_fault().startswith(fault)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A function that runs make in a copy of what it needs; nvidia-smi ends with the exit code that it is given."""
    if not shutil.which('make'):
        pytest.skip('no make here')
    for name in ('Makefile', 'requirements.txt', 'requirements-dev.txt'):
        shutil.copy(os.path.join(ROOT, name), tmp_path)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')

    def run(nvidia_smi, *arguments):
        (tmp_path / 'nvidia-smi').write_text(f'#!/bin/sh\nexit {nvidia_smi}\n')
        (tmp_path / 'nvidia-smi').chmod(0o755)
        return subprocess.run(['make', '-C', str(tmp_path), *arguments], capture_output=True, text=True)
    return run


@pytest.mark.parametrize('nvidia_smi, more', [(0, ' tensorflow[and-cuda]==2.21.0'), (9, '')])
def test_g1_make_takes_cuda_where_there_is_a_gpu(make, nvidia_smi, more):
    lines = [line.strip() for line in make(nvidia_smi, '-n', 'voc').stdout.splitlines()]
    assert f'.venv/bin/pip install -r requirements-dev.txt{more}' in lines


@pytest.mark.parametrize('target', ['demo', 'voc', 'install', 'test'])
def test_p2_make_ends_before_it_installs(make, tmp_path, target):
    done = make(9, target, "PYTHON=sh -c 'echo error: refused >&2; exit 1'")
    assert done.returncode and done.stderr.startswith('error: refused\n') and not (tmp_path / '.venv').exists()
