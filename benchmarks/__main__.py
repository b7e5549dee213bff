"""python -m benchmarks: see run.py."""
import sys

import utils
from benchmarks import run

if __name__ == '__main__':
    sys.argv[0] = 'benchmarks'  # what messages begin with
    utils.run_program(run.main)
