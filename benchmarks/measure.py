"""Runs contenders in turn, each round in a process of its own, and measures their time and memory.

    python -m benchmarks.measure MODULE.FUNCTION SETTINGS

is a contender's process: it calls a function of this package with settings, JSON, and prints what it returns.
"""
import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import time
from typing import NamedTuple

import psutil

from utils import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Contender(NamedTuple):
    """One way of doing a row's work: a process."""
    name: str  # as in the table
    arguments: list  # of `python`
    items: int = 1  # such as images
    cores: list | None = None  # numbers of those it may use; None for all
    environment: dict | None = None  # variables added to this process's own


class Round(NamedTuple):
    """What one round of a contender did: items, seconds, and the most memory that it held."""
    items: int
    seconds: float
    peak_bytes: int = 0


def call(name, function, cores=None, **settings):
    """The Contender that calls 'MODULE.FUNCTION' of this package, which returns items and seconds, and times itself."""
    return Contender(name, ['-m', 'benchmarks.measure', function, json.dumps(settings)], cores=cores)


def as_arguments(flags):
    """{'max_steps': 3} to ['--max_steps', '3']."""
    return [str(part) for name, value in flags.items() for part in (f'--{name}', value)]


def run_script(log_dir, script, *arguments, environment=None, **flags):
    """Runs one of the suite's programs with flags and other arguments; returns a Round."""
    return run(Contender(script, [script, *as_arguments(flags), *arguments], environment=environment), log_dir)


def rates(rounds):
    """Items per second of each Round, list of float."""
    return [each.items / each.seconds for each in rounds]


def peaks(rounds):
    """Peak memory of each Round in MB (10^6 bytes), list of float."""
    return [each.peak_bytes / 1e6 for each in rounds]


def time_calls(function, calls, items=1, warm_up=1):
    """Items and seconds of so many calls, after others that warm up."""
    for _ in range(warm_up):
        function()
    started = time.perf_counter()
    for _ in range(calls):
        function()
    return calls * items, time.perf_counter() - started


def sum_memory(pid):
    """Resident bytes of a process and all that it has started; 0 if one of them has just ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))
    return 0


def run(contender, log_dir):
    """Runs a Contender, with its output in LOG_DIR; returns a Round, or raises UserError with the last line of it."""
    log_path, peak = os.path.join(log_dir, re.sub(r'\W+', '_', contender.name) + '.log'), 0
    started = time.perf_counter()
    with open(log_path, 'w') as log, subprocess.Popen(
            [sys.executable, *contender.arguments], cwd=ROOT, stdout=log, stderr=log,
            env={**os.environ, **(contender.environment or {})}) as process:
        try:
            os.sched_setaffinity(process.pid, contender.cores or os.sched_getaffinity(0))
            while process.poll() is None:
                peak = max(peak, sum_memory(process.pid))
                time.sleep(0.02)
        finally:
            process.kill()
    seconds = time.perf_counter() - started
    with open(log_path, errors='replace') as log:
        last = (log.read().strip() or 'no message').splitlines()[-1]
    if process.returncode:
        raise UserError(f'{contender.name}: {last[:300]} (exit code {process.returncode}); see {log_path}')
    times_itself = contender.arguments[:2] == ['-m', 'benchmarks.measure']
    return Round(*json.loads(last), peak) if times_itself else Round(contender.items, seconds, peak)


def take_turns(contenders, num_rounds, log_dir):
    """Runs all contenders in turn, `num_rounds` times: A B A B ...; returns a dict of name to list of Round."""
    found = {contender.name: [] for contender in contenders}
    for number in range(1, num_rounds + 1):
        for contender in contenders:
            done = run(contender, log_dir)
            print(f'  round {number}/{num_rounds}, {contender.name}: {done.items} in {done.seconds:.2f} s', flush=True)
            found[contender.name].append(done)
    return found


def main(argv=None):
    name, settings = sys.argv[1:] if argv is None else argv
    module, function = name.split('.')
    result = getattr(importlib.import_module(f'benchmarks.{module}'), function)(**json.loads(settings))
    print('\n' + json.dumps(result), flush=True)


if __name__ == '__main__':
    main()
    os._exit(0)  # a normal exit would wait for TensorFlow's threads
