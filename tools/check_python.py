"""Checks that the packages can be installed with this Python, in a second: pip would find out after minutes.

    python3.12 tools/check_python.py

It runs on Python 3.6 and later, and ends in one line that names what is missing.
"""
import importlib.util
import os
import shutil
import sys
import sysconfig

VERSIONS = ((3, 11), (3, 12))  # for which all of requirements.txt can be installed


def find_fault():
    """What keeps this Python from being used, and the cure, one line of str; None if nothing does."""
    version = '{}.{}'.format(*sys.version_info)
    if sys.version_info[:2] not in VERSIONS:
        return (f'Python {version} cannot run this project; install Python 3.11 or 3.12 (Debian: apt install '
                'python3.12-venv python3.12-dev) and give it: make PYTHON=python3.12')
    if not importlib.util.find_spec('ensurepip'):
        return f'Python {version} has no venv; install it (Debian: apt install python{version}-venv)'
    compiler = (os.environ.get('CXX') or sysconfig.get_config_var('CXX') or 'c++').split()[0]
    if not shutil.which(compiler):
        return f'pydensecrf2 needs a C++ compiler, and {compiler} is missing; install it (Debian: apt install g++)'
    if not os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h')):
        return f'pydensecrf2 needs Python.h; install it (Debian: apt install python{version}-dev)'
    return None


if __name__ == '__main__':
    fault = find_fault()
    sys.exit(fault and 'error: ' + fault)
