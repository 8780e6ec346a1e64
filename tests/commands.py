# SPDX-License-Identifier: Apache-2.0
"""Command lines as a person types them, on a net and data made tiny."""

import atexit
import concurrent.futures
import functools
import hashlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

import jax
import ml_collections
from quick_flags import QUICK_FLAGS

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = 'configs/unet_isbi.py'
FORK_SERVER = REPOSITORY / 'tests' / 'fork_server.py'
LAUNCHER = str(REPOSITORY / 'launch' / 'local_processes.sh')

# Variables of a command on one device, which a person has, while this suite has
# eight, that compiles as quickly as this suite: see conftest.
QUICKLY = {
  'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
  'XLA_FLAGS': QUICK_FLAGS,
}

# Held by the command that finds and keeps compiled programs: see conftest.
_KEEPING = threading.Lock()

# Variables that a process may get after its imports.
_LATE = {
  'HOME',
  'JAX_COMPILATION_CACHE_DIR',
  'JAX_COORDINATOR_ADDRESS',
  'JAX_ENABLE_COMPILATION_CACHE',
  'JAX_NUM_CPU_DEVICES',
  'JAX_NUM_PROCESSES',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS',
  'JAX_PLATFORMS',
  'JAX_PROCESS_ID',
  'XDG_CACHE_HOME',
}

# Of every argument of the config.
TINY_SETTINGS = {
  'model.depth': 1,
  'model.base_width': 4,
  'tile_size_px': 34,  # 18 pixels out.
  'batch_size': 1,
  'num_train_steps': 4,
  'log_every_steps': 1,
  'schedule.warmup_steps': 0,
  'evaluation.every_steps': 4,
  'checkpoints.every_steps': 2,
}
# One slice of five is held out.
TINY_DATA = {'num_slices': 5, 'size_px': 64}

# Flags: of the net for every argument, and of net and data for the demo.
TINY_NET = tuple(f'--config.{k}={v}' for k, v in TINY_SETTINGS.items())
TINY = (*TINY_NET, *(f'--config.data.{k}={v}' for k, v in TINY_DATA.items()))
DEMO = (f'--config={CONFIG}:demo', *TINY)


def read_card() -> dict:
  """Returns the names that the config file defines."""
  return runpy.run_path(str(REPOSITORY / CONFIG))


def tiny_config(argument: str = 'demo') -> ml_collections.ConfigDict:
  """Returns the config of an argument, made tiny and with the demo's data."""
  get_config = read_card()['get_config']
  config = get_config(argument)
  with config.unlocked():
    config.data = get_config('demo').data.to_dict() | TINY_DATA
  config.update_from_flattened_dict(TINY_SETTINGS)
  return config


def run(
  module: str,
  *args: str,
  cwd: str | os.PathLike | None = None,
  env: Mapping[str, str] | None = None,
  fork: bool = True,
) -> subprocess.CompletedProcess:
  """Runs `python -m segjax.MODULE ARGS`; `env` is added to the environment.

  With no `cwd`, and no `env` but of devices and processes, it is a fork of a
  process that has imported all, see `fork_server`, unless `fork` is False.
  """
  env = dict(env or {})
  environment = _environment(env)
  if fork and cwd is None and sys.platform == 'linux' and env.keys() <= _LATE:
    server, started_with = _fork_server()
    if environment == started_with | env:
      command = f'segjax.{module}', *args
      others = {'JAX_COORDINATOR_ADDRESS', 'JAX_ENABLE_COMPILATION_CACHE'}
      if env.keys() & others or not _KEEPING.acquire(blocking=False):
        return _run_forked(server, [env, *command])
      try:
        return _run_forked(server, [env | _programs(), *command])
      finally:
        _KEEPING.release()
  return subprocess.run(
    _command(module, args),
    capture_output=True,
    text=True,
    cwd=cwd or REPOSITORY,
    env=environment,
  )


def launch(count: int, *args: str, **env: str) -> subprocess.CompletedProcess:
  """Runs a command in `count` processes of eight devices in all."""
  return subprocess.run(
    [LAUNCHER, str(count), *args],
    capture_output=True,
    text=True,
    cwd=REPOSITORY,
    env=_environment({'JAX_NUM_CPU_DEVICES': str(8 // count)} | env),
  )


def run_processes(
  count: int, module: str, *args: str
) -> list[subprocess.CompletedProcess]:
  """Runs a command in processes of eight devices in all, without a launcher."""
  env = {
    'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{free_port()}',
    'JAX_NUM_PROCESSES': str(count),
    'JAX_NUM_CPU_DEVICES': str(8 // count),
    'JAX_PLATFORMS': 'cpu',
  }
  with concurrent.futures.ThreadPoolExecutor(count) as pool:
    return [
      *pool.map(
        lambda index: run(
          module, *args, env=env | {'JAX_PROCESS_ID': str(index)}
        ),
        range(count),
      )
    ]


def free_port() -> str:
  """Returns a port that no process listens on."""
  with socket.socket() as bound:
    bound.bind(('127.0.0.1', 0))
    return str(bound.getsockname()[1])


def start(module: str, *args: str, piped: bool = False) -> subprocess.Popen:
  """Starts what `run` runs, in the background; `piped` keeps what it prints."""
  stream = subprocess.PIPE if piped else subprocess.DEVNULL
  return subprocess.Popen(
    _command(module, args),
    stdout=stream,
    stderr=stream,
    text=True,
    cwd=REPOSITORY,
    env=_environment({}),
  )


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
  """Returns the time of change and the digest of each file in `folder`."""
  return {
    str(file.relative_to(folder)): (
      file.lstat().st_mtime_ns,
      hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else '',
    )
    for file in sorted(folder.rglob('*'))
  }


@functools.cache
def _fork_server():
  """Returns a socket to a server, and the environment that it started with."""
  ours, its = socket.socketpair(type=socket.SOCK_SEQPACKET)
  environment = _environment({})
  with its:
    server = subprocess.Popen(
      [sys.executable, str(FORK_SERVER), str(its.fileno())],
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      cwd=REPOSITORY,
      env=environment,
      pass_fds=[its.fileno()],
    )
  atexit.register(server.wait)
  atexit.register(ours.close)  # Runs first, and ends it.
  return ours, environment


def _run_forked(server, command):
  ours, its = socket.socketpair()
  with (
    ours,
    tempfile.TemporaryFile('w+') as out,
    tempfile.TemporaryFile('w+') as errors,
  ):
    with its:
      descriptors = [file.fileno() for file in (its, out, errors)]
      socket.send_fds(server, [json.dumps(command).encode()], descriptors)
    status = ours.recv(16)
    assert status, 'the fork server has ended'
    for file in (out, errors):
      file.seek(0)
    return subprocess.CompletedProcess(
      command[1:], int(status), out.read(), errors.read()
    )


def _programs():
  """Returns variables of a command that shares this process's programs."""
  options = jax.config.values
  names = (
    'jax_compilation_cache_dir',
    'jax_enable_compilation_cache',
    'jax_persistent_cache_min_compile_time_secs',
  )
  return {name.upper(): str(options[name]) for name in names}


def _command(module, args):
  return [sys.executable, '-m', f'segjax.{module}', *args]


def _environment(more):
  unwanted = ('SEGJAX_DATA_DIR', 'PYTEST_CURRENT_TEST')
  inherited = {k: v for k, v in os.environ.items() if k not in unwanted}
  return inherited | QUICKLY | dict(more)
