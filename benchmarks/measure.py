"""Contenders in processes of their own, their rounds in turn, and the statistics of these.

A contender is a generator function of one of the modules here. Its process sets itself up and then runs one round,
timed by itself, whenever it is asked for the next; meanwhile the others wait. The first round of each, with the set-up
before it, is the warm-up. This module and those that only start contenders import no TensorFlow: time and memory that
it takes are the contenders' own.
"""
import collections
import contextlib
import importlib
import itertools
import math
import multiprocessing
import os
import re
import resource
import statistics
import subprocess
import sys
import time
import traceback

from utils import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

Contender = collections.namedtuple('Contender', 'name module function settings cores', defaults=(None,))
Contender.__doc__ = """One way of doing a row's work.

name: str, as in the table.
module, function: str, the generator function benchmarks.MODULE.FUNCTION that yields a Round whenever asked.
settings: dict, its arguments.
cores: int, how many cores its process may use; None for all.
"""
Round = collections.namedtuple('Round', 'items seconds peak_bytes extra', defaults=(None, None))
Round.__doc__ = """What one timed round did.

items: int, images, say. seconds: float.
peak_bytes: int, the most memory that the process, from its start, or one of its children held.
extra: whatever else a row needs; None for nothing.
"""
Statistics = collections.namedtuple('Statistics', 'median lowest highest')

# ------------------------------------------------------------------------------------------- statistics


def summarise(values):
    """Median, lowest and highest of a list of numbers, as Statistics."""
    return Statistics(statistics.median(values), min(values), max(values))


def ratios(ours, theirs):
    """Ours divided by theirs, round by round: what slowed the machine down in a round has slowed both.

    Args:
        ours, theirs: lists of as many floats.

    Returns:
        list of float.
    """
    if len(ours) != len(theirs):
        raise ValueError(f'{len(ours)} rounds against {len(theirs)}')
    return [own / other for own, other in zip(ours, theirs)]


def rates(rounds):
    """Items per second of each Round, list of float."""
    return [each.items / each.seconds for each in rounds]


def peaks(rounds):
    """Peak memory of each Round in MB (10^6 bytes), list of float."""
    return [each.peak_bytes / 1e6 for each in rounds]


def warm_up_then(steps, warm_up=2):
    """Steps of each round where a step takes seconds: a short round that warms up, then the others, endlessly."""
    return itertools.chain([min(warm_up, steps)], itertools.repeat(steps))


# ------------------------------------------------------------------------------------------- the machine


def count_cores():
    """How many cores this process may use, int."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def use_cores(number):
    """Keeps this process and its children to so many of its cores, where the system can."""
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:number])


def peak_memory():
    """The most memory, in bytes, that this process or one of its children held."""
    return max(to_bytes(resource.getrusage(who).ru_maxrss)
               for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def to_bytes(ru_maxrss):
    """getrusage counts kilobytes, on macOS bytes."""
    return ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


# ------------------------------------------------------------------------------------------- contenders


class Worker:
    """The process of one Contender; it starts with the first round that is asked for.

    Args:
        contender: Contender.
        log_path: str, file that takes what the process prints.
    """

    def __init__(self, contender, log_path):
        context = multiprocessing.get_context('spawn')
        self.log_path = log_path
        self.pipe, other_end = context.Pipe()
        self.process = context.Process(target=serve, args=(other_end, contender, log_path))
        self.other_end = other_end

    def run_round(self):
        """One Round.

        Raises:
            UserError: the contender failed, or its process was killed.
        """
        if self.process.pid is None:
            self.process.start()
            self.other_end.close()  # so that the process's end is seen here
        try:
            self.pipe.send('round')
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise UserError(f'the process was killed, for lack of memory perhaps; see {self.log_path}') from None
        if isinstance(answer, str):
            raise UserError(f'{answer}; see {self.log_path}')
        return answer

    def close(self):
        """Ends the process."""
        self.pipe.close()
        if self.process.pid is not None:
            self.process.join(timeout=5)
            self.process.kill()
            self.process.join()


def serve(pipe, contender, log_path):
    """What a Worker's process runs: a round for each word that comes in, until the other end is closed."""
    redirect_output(log_path)
    if contender.cores:
        use_cores(contender.cores)
    try:
        function = getattr(importlib.import_module(f'benchmarks.{contender.module}'), contender.function)
        rounds = function(**contender.settings)
        while pipe.recv():
            done = next(rounds)
            pipe.send(done._replace(peak_bytes=done.peak_bytes or peak_memory()))
    except (EOFError, KeyboardInterrupt):
        os._exit(0)  # TensorFlow would first wait for its tuner of input pipelines, which may sleep for a minute
    except Exception as error:  # whatever it is, the table's program has to hear of it
        traceback.print_exc()
        pipe.send(' '.join(f'{type(error).__name__}: {error}'.split())[:300])


def redirect_output(log_path):
    """Sends what this process and its children print to a file."""
    with open(log_path, 'ab') as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)


def take_turns(contenders, num_rounds, log_dir, say=print, deadline=math.inf, warm_up=True):
    """Warms all contenders up, one after the other, and then runs their rounds in turn: A B A B ...

    Args:
        contenders: list of Contender.
        num_rounds: int, of each, after the warm-up.
        log_dir: str, folder for what their processes print.
        say: function of str, told what goes on.
        deadline: float, of time.perf_counter: once there are two rounds, one that would end later is not begun.
        warm_up: bool; false for contenders whose rounds leave their own start out.

    Returns:
        dict of name to list of Round.

    Raises:
        UserError: a contender failed; it is named.
    """
    found = {contender.name: [] for contender in contenders}
    with contextlib.ExitStack() as stack:
        workers = {}
        for contender in contenders:
            log_path = os.path.join(log_dir, re.sub(r'\W+', '_', contender.name) + '.log')
            workers[contender.name] = stack.enter_context(contextlib.closing(Worker(contender, log_path)))
        for number in range(0 if warm_up else 1, num_rounds + 1):
            started = time.perf_counter()
            for name, worker in workers.items():
                done = run_round(name, worker)
                say(f'  {f"round {number}/{num_rounds}" if number else "warm-up"}, {name}: '
                    f'{done.items} in {done.seconds:.2f} s')
                if number:
                    found[name].append(done)
            ended = time.perf_counter()
            if 2 <= number < num_rounds and 2 * ended - started > deadline:
                say(f'  {number} rounds are enough: the time of this row is over')
                break
    return found


def run_round(name, worker):
    """One Round of a Worker; a UserError begins with its name."""
    try:
        return worker.run_round()
    except UserError as error:
        raise UserError(f'{name}: {error}') from None


def run_apart(module, function, log_path, **settings):
    """Runs a contender's first round in a process of its own; returns the Round."""
    with contextlib.closing(Worker(Contender(function, module, function, settings), log_path)) as worker:
        return worker.run_round()


# ------------------------------------------------------------------------------------------- whole programs

# A process's peak memory counts that of the process which started it as long as the two were one, so a program is
# started by the smallest Python there is. Its output goes where errors go.
LAUNCHER = """
import os, sys, time
started = time.perf_counter()
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(child, 0)
print(time.perf_counter() - started, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""


def run_process(arguments):
    """Runs `python ARGUMENTS` in the project's folder from its start to its end.

    Args:
        arguments: list of str.

    Returns:
        seconds: float. peak_bytes: int, of the process or, if that was more, of one of its children.

    Raises:
        UserError: it failed.
    """
    done = subprocess.run([sys.executable, '-I', '-S', '-c', LAUNCHER, sys.executable, *arguments], cwd=ROOT,
                          stdout=subprocess.PIPE, text=True, check=True)
    seconds, ru_maxrss, exit_code = done.stdout.split()
    if exit_code != '0':
        raise UserError(f'python {" ".join(arguments)} ended with exit code {exit_code}')
    return float(seconds), to_bytes(int(ru_maxrss))


def whole_process(arguments, items, files=()):
    """Contender: a program from its start to its end, once a round.

    Args:
        arguments: list of str, after `python`.
        items: int, what it gets done.
        files: list of str, what it writes; `extra` is their size in bytes.
    """
    while True:
        seconds, peak_bytes = run_process(arguments)
        yield Round(items, seconds, peak_bytes, sum(map(os.path.getsize, files)))
