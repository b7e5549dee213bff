"""Runs of train.py that are processes of their own, to be killed and stopped, without waiting for TensorFlow each time.

As a program, this file is a server that has imported train.py already, and runs it in forks of itself, with the small
network of the other tests (conftest.SMALL_BLOCKS), without a results page.
"""
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import tensorflow.compat.v1 as tf

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PATIENCE = 600  # seconds until a test fails because nothing happens: a busy machine may be 20 times as slow

# ------------------------------------------------------------------------------------------- the server


def serve():
    """For each line on stdin, JSON of fork_run's arguments: writes the process's number, then its exit code."""
    import conftest

    import train
    import utils
    import vgg
    vgg.BLOCKS, train.write_page = conftest.SMALL_BLOCKS, conftest.no_page
    # Nothing is built before a fork: threads that TensorFlow starts here would be missing there, and runs would hang.
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            fork_run(train, utils.run_program, **json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def fork_run(train, run_program, argv, output, notes, spoil):
    """Runs train.py in this process, which ends with it. What it prints goes to the file `output`."""
    end_with_parent()
    os.setsid()  # a group of its own, which a test can send signals
    for number, path in enumerate((os.devnull, output, output)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    sys.argv[0] = 'train.py'
    train.run_step = noting(train.run_step, notes)
    if spoil:
        train.run_step = spoiling(train.run_step, *spoil)
    run_program(lambda: train.main(argv))


def noting(run_step, path):
    """A run_step that adds [step, ids of its batch] to a file, as a line of JSON."""
    def noting_step(run, step):
        result = run_step(run, step)
        with open(path, 'a') as file:
            file.write(json.dumps([step, [each.decode() for each in run.saver.recent[-1][1]]]) + '\n')
        return result
    return noting_step


def spoiling(run_step, at_step, name, value):
    """A run_step whose update fills a variable with a value, which the loss of that step cannot show."""
    def spoiling_step(run, step):
        result = run_step(run, step)
        if step == at_step:
            [variable] = [each for each in tf.global_variables() if each.op.name == name]
            variable.load(np.full(variable.shape.as_list(), value), run.session)
        return result
    return spoiling_step


def end_with_parent():
    """Has this process killed when the one that started it is: Linux's PR_SET_PDEATHSIG, which is 1."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@contextlib.contextmanager
def start_server():
    environment = {**os.environ, 'PYTHONPATH': ROOT, 'TF_CPP_MIN_LOG_LEVEL': '0'}  # a program may have set another
    with subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env=environment, preexec_fn=end_with_parent) as process:
        process.life = None  # the latest Life
        yield process
        process.stdin.close()


# ------------------------------------------------------------------------------------------- a run in it


class Life:
    """A run of train.py in the server, one at a time.

    Args:
        server: of start_server. folder: pathlib.Path, the run's; what it prints lies beside it.
        argv: flags. spoil: arguments of `spoiling` after the first, or None.
    """

    def __init__(self, server, folder, argv, spoil=None):
        self.server, self.folder, self.output, self.notes = server, folder, f'{folder}.out', f'{folder}.notes'
        self.steps_before = len(self.steps())
        order = {'argv': argv, 'output': self.output, 'notes': self.notes, 'spoil': spoil}
        server.stdin.write(json.dumps(order) + '\n')
        server.stdin.flush()
        self.process = int(server.stdout.readline())
        self.code, server.life = None, self
        self.waiting = threading.Thread(target=self.note_end)
        self.waiting.start()

    def note_end(self):
        self.code = int(self.server.stdout.readline())

    def wait(self):
        """The exit code; minus the signal's number for one that was killed."""
        self.waiting.join()
        return self.code

    def send(self, number, to_all=False):
        """Sends a signal to the process, or to all processes of the run."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if to_all else os.kill)(self.process, number)

    def end(self):
        """Kills all processes of the run, if it has not ended."""
        if self.code is None:
            self.send(signal.SIGKILL, to_all=True)
            self.wait()

    def steps(self):
        """[step, ids] of all steps noted so far, in all lives."""
        if not os.path.exists(self.notes):
            return []
        with open(self.notes) as file:
            return [json.loads(line) for line in file.read().splitlines()]

    def new_steps(self):
        return len(self.steps()) - self.steps_before

    def is_writing(self):
        """Whether a checkpoint is being written."""
        train_dir = os.path.join(self.folder, 'train')
        return os.path.isdir(train_dir) and any('.tempstate' in name for name in os.listdir(train_dir))

    def until(self, condition):
        """Waits until a condition holds. Returns whether it did before the run ended."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.code is not None:
                return False
            assert time.monotonic() < deadline, 'nothing has happened'
            time.sleep(0.001)
        return True

    def printed(self):
        """What all lives have printed."""
        if not os.path.exists(self.output):
            return ''
        with open(self.output) as file:
            return file.read()


if __name__ == '__main__':
    serve()
