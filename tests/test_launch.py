# SPDX-License-Identifier: Apache-2.0
"""The launch scripts: what they send to gcloud and srun, which are fakes."""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import REPOSITORY

LAUNCH = REPOSITORY / 'launch'
SCRIPTS = sorted(LAUNCH.rglob('*.sh'))
SLICE = {
  'TPU_NAME': 'my-slice',
  'TPU_ZONE': 'us-central2-b',
  'TPU_TYPE': 'v4-32',
  'TPU_VERSION': 'tpu-ubuntu2204-base',
}
GCLOUD = ['compute', 'tpus', 'tpu-vm']
ZONE = '--zone=us-central2-b'

# Appends its name and arguments to a file, as JSON.
FAKE = f"""#!{sys.executable}
import json, os, sys
with open(os.environ['SENT'], 'a') as file:
  print(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]), file=file)
"""


@pytest.fixture
def call(tmp_path):
  """Runs a script; returns the process and what it sent to the fakes."""

  def call(script, *args, **env):
    folder, sent = tmp_path / 'bin', tmp_path / 'sent'
    folder.mkdir(exist_ok=True)
    for name in ('gcloud', 'srun'):
      (folder / name).write_text(FAKE)
      (folder / name).chmod(0o755)
    sent.write_text('')
    path = {'PATH': f'{folder}:{os.environ["PATH"]}', 'SENT': str(sent)}
    process = subprocess.run(
      [LAUNCH / script, *args],
      capture_output=True,
      text=True,
      env=os.environ | path | env,
      cwd=tmp_path,
    )
    return process, [json.loads(line) for line in sent.read_text().splitlines()]

  return call


def test_every_script_stops_at_the_first_error():
  assert len(SCRIPTS) == 9
  for script in SCRIPTS:
    if script.name != 'slice.sh':  # Which the others source.
      assert '\nset -euo pipefail\n' in script.read_text()
      assert os.access(script, os.X_OK)
    subprocess.run(['bash', '-n', script], check=True)


def test_create_sends_one_command_and_prints_it(call):
  process, sent = call('tpu/create.sh', '--spot', **SLICE)
  assert process.returncode == 0
  assert sent == [
    [
      'gcloud',
      *GCLOUD,
      'create',
      'my-slice',
      ZONE,
      '--accelerator-type=v4-32',
      '--version=tpu-ubuntu2204-base',
      '--spot',
    ]
  ]
  assert process.stderr == f'+ {" ".join(sent[0])}\n'


def test_setup_copies_the_commit_and_installs_it(call):
  process, (scp, ssh) = call('tpu/setup.sh', **SLICE)
  assert process.returncode == 0, process.stderr
  archive = scp.pop(5)
  assert scp == [
    'gcloud',
    *GCLOUD,
    'scp',
    'my-slice:segjax.tar.gz',
    ZONE,
    '--worker=all',
  ]
  assert archive.endswith('.tar.gz') and not Path(archive).exists()
  assert f'archive --format=tar.gz --output={archive} HEAD' in process.stderr
  assert ssh[:-1] == [
    'gcloud',
    *GCLOUD,
    'ssh',
    'my-slice',
    ZONE,
    '--worker=all',
  ]
  assert ssh[-1].removeprefix('--command=').splitlines() == [
    'set -e',
    'mkdir -p segjax',
    'rm -rf segjax/segjax segjax/configs',
    'tar -xzf segjax.tar.gz -C segjax',
    'python3 -m pip install --user --quiet uv',
    'python3 -m uv venv --quiet --allow-existing --python 3.12 segjax-env',
    'python3 -m uv pip install --quiet --python segjax-env/bin/python '
    '-e "segjax[tpu]"',
  ]


def test_setup_mounts_a_share(call):
  _, (_, ssh) = call('tpu/setup.sh', TPU_NFS='10.0.0.2:/runs', **SLICE)
  assert ssh[-1].splitlines()[-1] == (
    'mountpoint -q /mnt/segjax || sudo mount -t nfs 10.0.0.2:/runs /mnt/segjax'
  )


@pytest.mark.parametrize(
  ('script', 'args', 'expected'),
  [
    (
      'logs.sh',
      [],
      ['ssh', 'my-slice', ZONE, '--worker=0']
      + ['--command=tail -n 100 -F segjax.log'],
    ),
    (
      'logs.sh',
      ['3'],
      ['ssh', 'my-slice', ZONE, '--worker=3']
      + ['--command=tail -n 100 -F segjax.log'],
    ),
    (
      'fetch.sh',
      ['/mnt/segjax/runs/a', 'here'],
      ['scp', '--recurse', 'my-slice:/mnt/segjax/runs/a', 'here', ZONE]
      + ['--worker=0'],
    ),
    ('delete.sh', [], ['delete', 'my-slice', ZONE]),
  ],
)
def test_the_others_send_one_command(call, script, args, expected):
  process, sent = call(f'tpu/{script}', *args, **SLICE)
  assert process.returncode == 0, process.stderr
  assert sent == [['gcloud', *GCLOUD, *expected]]
  assert process.stderr.splitlines()[-1].startswith('+ gcloud compute tpus')


def test_a_run_outlives_its_connection_and_starts_once(call, tmp_path):
  """What a worker is sent is run here, in a home of its own."""
  arguments = ['--config=configs/a b.py', "--workdir=it's"]
  process, (ssh,) = call('tpu/run.sh', *arguments, **SLICE)
  assert process.returncode == 0, process.stderr
  assert ssh[:-1] == [
    'gcloud',
    *GCLOUD,
    'ssh',
    'my-slice',
    ZONE,
    '--worker=all',
  ]
  home = tmp_path / 'home'
  (home / 'segjax').mkdir(parents=True)
  python = home / 'segjax-env/bin/python'
  python.parent.mkdir(parents=True)
  # Says how it was called, and runs until there is a file `stop`.
  python.write_text(
    '#!/usr/bin/env bash\n'
    'printf "%s|" "$PWD" "$@"; echo\n'
    'while [[ ! -e ../stop ]]; do sleep 0.05; done\n'
  )
  python.chmod(0o755)

  line = '|'.join([str(home / 'segjax'), '-m', 'segjax.main', *arguments, '\n'])

  def connect():
    command = ssh[-1].removeprefix('--command=')
    return subprocess.run(
      ['bash', '-c', command], cwd=home, capture_output=True, text=True
    )

  try:
    first = connect()
    assert first.stdout.endswith(': started\n')
    # A look at the lock takes it, so not before the run has.
    wait_until(lambda: (home / 'segjax.log').read_text() == line)
    again = connect()
    assert again.stdout.endswith(': runs already\n')
  finally:
    (home / 'stop').touch()
  wait_until(lambda: not is_locked(home / 'segjax.lock'))
  assert connect().stdout.endswith(': started\n')
  wait_until(lambda: (home / 'segjax.log').read_text() == 2 * line)


def is_locked(file):
  with open(file, 'a') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
  return False


def wait_until(condition):
  deadline = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


@pytest.mark.parametrize('missing', ['TPU_NAME', 'TPU_ZONE', 'TPU_TYPE'])
def test_a_slice_that_is_not_named_is_refused(call, missing):
  process, sent = call('tpu/create.sh', **SLICE | {missing: ''})
  assert process.returncode != 0
  assert f'{missing}: is not set' in process.stderr
  assert not sent


@pytest.mark.parametrize('script', ['tpu/run.sh', 'tpu/fetch.sh', 'slurm.sh'])
def test_missing_arguments_are_refused(call, script):
  process, sent = call(script, **SLICE)
  assert process.returncode == 2
  assert 'usage: ' in process.stderr
  assert not sent


def test_slurm_starts_a_process_for_each_gpu(call):
  process, sent = call('slurm.sh', '--config=a', '--workdir=b')
  assert process.returncode == 0
  command = '--kill-on-bad-exit=1 python -m segjax.main --config=a --workdir=b'
  assert sent == [['srun', *command.split()]]
  assert process.stderr == f'+ srun {command}\n'
  options = {
    line.removeprefix('#SBATCH --').split('=')[0]: line.split('=')[-1]
    for line in (LAUNCH / 'slurm.sh').read_text().splitlines()
    if line.startswith('#SBATCH')
  }
  assert options['gpus-per-node'] == options['ntasks-per-node']
