"""Processes that tests wait for begin with the session, at the lowest priority, and run while other tests do."""

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest


class Begun:
    """Commands, a tuple of words each, as many at once as there are cores."""

    def __init__(self, commands):
        self.pool, self.running = ThreadPoolExecutor(os.cpu_count()), set()
        self.results = {command: self.pool.submit(self.run, command) for command in commands}

    def run(self, command):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "process_group": 0}
        with subprocess.Popen(["env", *command], cwd=os.path.dirname(__file__), **options) as process:
            self.running.add(process)
            os.setpriority(os.PRIO_PROCESS, process.pid, 19)
            output, errors = process.communicate()
            self.running.remove(process)
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def stop(self):
        self.pool.shutdown(wait=False, cancel_futures=True)
        for process in list(self.running):
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it began


begun = pytest.StashKey[Begun]()


def pytest_collection_finish(session):
    if not session.config.option.collectonly:
        params = [item.callspec.params for item in session.items if hasattr(item, "callspec")]
        session.stash[begun] = Begun(dict.fromkeys(named["process"] for named in params if "process" in named))


def pytest_sessionfinish(session):
    if begun in session.stash:
        session.stash[begun].stop()


@pytest.fixture
def process(request):
    """The result of the command that the test is parametrized with."""
    return request.session.stash[begun].results[request.param].result()
