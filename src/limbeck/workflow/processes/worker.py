"""A worker process: runs one stage after another for its parent; see ``workers``."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

from limbeck.errors import LimbeckError
from limbeck.workflow.processes.workers import WorkerError
from limbeck.workflow.stage import Context, Stage


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # returns when the parent's end is closed
    os.kill(os.getpid(), signal.SIGKILL)  # at once: another process may take the folder over


def _work(connection: Connection) -> None:
    folder, paths = connection.recv()
    sys.path[:] = paths
    while True:
        try:
            asked = connection.recv()
        except EOFError:
            return
        if isinstance(asked, list):  # of modules, before there is a stage
            for module in asked:
                import_module(module)
            continue
        pickled, up, surroundings = asked
        stage: Stage = pickle.loads(pickled)
        try:
            result = stage.run(up, Context(Path(folder), stage.name, connection.send, **surroundings))
            connection.send({"event": "stage_result", "stage": stage.name, "result": result})
        except KeyboardInterrupt:  # what was in flight has ended
            connection.send({"event": "stage_stopped", "stage": stage.name})
        except Exception as error:
            connection.send({"event": "stage_error", "stage": stage.name, "error": _portable(error)})


def _portable(error: Exception) -> Exception:
    """The error, if it can be sent; what is a bug brings its traceback."""
    if isinstance(error, LimbeckError | OSError):
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return WorkerError(traceback.format_exc())
        return error
    return WorkerError(traceback.format_exc())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the parent decides
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the parent's way to interrupt a stage that drains
    threading.Thread(target=_end_with_parent, args=(int(sys.argv[2]),), daemon=True).start()
    try:
        _work(Connection(int(sys.argv[1])))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)
