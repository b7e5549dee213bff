"""The contender's side: a process that does a round of its work whenever it is asked, and prints a JSON line about it.

The first line of its input is a measure.Contender, each further line asks for a round. The contender's function gets a
Turns and the contender's settings. measure.Worker is the other side.
"""
import contextlib
import importlib
import json
import os
import subprocess
import sys
import time


class Turns:
    """Hands a contender its turns, read from the text file `requests`; the others wait meanwhile."""

    def __init__(self, requests, results):
        self.requests, self.results = requests, results

    def wait(self):
        """Waits for the next turn. Where there is none, the process ends."""
        if not self.requests.readline():
            os._exit(0)  # a normal exit would wait for TensorFlow's threads, up to a minute

    def report(self, items, seconds, **extra):
        """Ends the turn: `items` (images, say) took so many seconds; `extra` is what else the row needs."""
        print(json.dumps({'items': items, 'seconds': seconds, 'extra': extra}), file=self.results, flush=True)

    @contextlib.contextmanager
    def round(self, items):
        """A complete turn, in which the block is timed."""
        self.wait()
        started = time.perf_counter()
        yield
        self.report(items, time.perf_counter() - started)


def run_program(turns, arguments, items, files=()):
    """Contender: `python ARGUMENTS`, from its start to its end. `extra` has 'file_mb', the size of `files` in MB."""
    while True:
        turns.wait()
        started = time.perf_counter()
        exit_code = subprocess.run([sys.executable, *arguments]).returncode
        seconds = time.perf_counter() - started
        if exit_code:
            sys.exit(f'python {" ".join(arguments)} ended with exit code {exit_code}')
        turns.report(items, seconds, file_mb=sum(map(os.path.getsize, files)) / 1e6)


def main():
    results = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what libraries print goes to the log, as errors do
    work = json.loads(sys.stdin.readline())
    if work['cores'] and hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, work['cores'])
    module, function = work['function'].split('.')
    function = getattr(importlib.import_module(f'benchmarks.{module}'), function)
    function(Turns(sys.stdin, results), **work['settings'])


if __name__ == '__main__':
    main()
