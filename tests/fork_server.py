# SPDX-License-Identifier: Apache-2.0
"""A process that has imported segjax and forks a child for each command.

Importing takes most of the time of a command that soon ends. Run as a script,
with the descriptor of a socket. Each message is JSON [ENV, MODULE, *ARGS] with
the descriptors of a socket, of stdout and of stderr; the answer is the exit
status. ENV are variables of the environment for this child alone.

The children are what `python -m segjax.MODULE ARGS` is, since the server starts
no thread and no device, parses no flag and imports no command: a child imports
its own. It ends as any Python process does, with its threads and exit handlers,
except that a command that is through does not free all that was imported, for
which the pages that it shares with the server would be copied.
"""

import atexit
import gc
import importlib
import importlib.util
import json
import os
import pkgutil
import runpy
import signal
import socket
import sys
import threading
import warnings


def preload(package):
  """Imports a package's modules, except its commands, and what they import."""
  path = importlib.import_module(package).__path__
  for module in pkgutil.walk_packages(path, f'{package}.'):
    source = importlib.util.find_spec(module.name).loader.get_source(
      module.name
    )
    if "__name__ == '__main__'" not in source:
      importlib.import_module(module.name)


def fork():
  with warnings.catch_warnings():
    # From Python 3.12 on, of threads: those of OpenBLAS, which bears a fork.
    warnings.simplefilter('ignore', DeprecationWarning)
    return os.fork()


def serve(requests):
  """Returns the command of a forked child; the server itself returns None."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # It ends with its client.
  waiting = set()
  while True:
    message, descriptors, *_ = socket.recv_fds(requests, 2**18, 3)
    waiting -= {pid for pid in waiting if os.waitpid(pid, os.WNOHANG)[0]}
    if not message:
      return None
    if pid := fork():
      waiting.add(pid)
      for descriptor in descriptors:
        os.close(descriptor)
      continue
    # Here is one that waits for the command and answers.
    requests.close()
    answer, *streams = descriptors
    pid = fork()
    if not pid:
      signal.signal(signal.SIGINT, signal.default_int_handler)
      os.close(answer)
      for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
        os.close(stream)
      return json.loads(message)
    _, status = os.waitpid(pid, 0)
    os.write(answer, str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def leave():
  """Ends a process whose command is through; of all exit handlers the last."""
  if status is not None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == '__main__':
  status = None
  atexit.register(leave)
  sys.path[0] = os.getcwd()  # As -m does.
  # Before what a library logs to is settled, as in a command.
  importlib.import_module('segjax.cli.terminal').make_streams_robust()
  preload('segjax')
  assert threading.active_count() == 1, threading.enumerate()
  gc.freeze()  # Or collecting would copy the pages that are shared.
  command = serve(socket.socket(fileno=int(sys.argv[1])))
  if command:
    env, name, *sys.argv[1:] = command
    os.environ.update(env)
    for variable, kind in (
      ('JAX_COMPILATION_CACHE_DIR', str),
      ('JAX_ENABLE_COMPILATION_CACHE', lambda value: value.lower() == 'true'),
      ('JAX_NUM_CPU_DEVICES', int),
      ('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', float),
      ('JAX_PLATFORMS', str),
    ):
      if variable in env:  # jax has read its variables already.
        import jax

        jax.config.update(variable.lower(), kind(env[variable]))
    sys.modules.pop(name, None)  # A command may import another one.
    try:
      runpy.run_module(name, run_name='__main__', alter_sys=True)
    except SystemExit as end:
      if not isinstance(end.code, int | None):
        raise
      status = end.code or 0
