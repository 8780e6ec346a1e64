# SPDX-License-Identifier: Apache-2.0
"""Cases of `test_bad_input` about networks to export and maps to count in."""

import json
import shutil

import numpy as np
from small_runs import make_run

from segjax.images.files import write_stack
from segjax.weights.files import write_params

EXPORT = 'export --workdir={run} --output='
PREDICT = 'predict --input={tree}/maps/t000.tif --output={new}.npy '
COUNT = 'instances --output={new}.tif --input={tree}/'

ONES = np.ones(2, np.float32)

# {run} is a run in the tree.
PLACES = {'run': '{tree}/run'}
CASES = {
  'export of no network': (
    'export --output={new}',
    ['--workdir=DIR', '--config', '--params'],
  ),
  'export of no run': (
    'export --workdir={tree}/maps --output={new}',
    ['{tree}/maps/config.json', 'train first'],
  ),
  'export to nowhere': (
    'export --workdir={run}',
    ['give --output=', 'for example: python -m segjax.export'],
  ),
  'export of an inadmissible tile': (
    EXPORT + '{new} --size_px=35',
    ['35 px is not admissible', 'nearest: 34 and 36'],
  ),
  'export of half a tile': (
    EXPORT + '{new} --size_px=34.5',
    ['--size_px', '34.5', 'int'],
  ),
  'export of no such checkpoint': (
    EXPORT + '{new} --checkpoint=7',
    ['no checkpoint 7', 'there are [2, 4]'],
  ),
  'export in no such format': (
    EXPORT + '{new} --format=onix',
    ['--format', 'onix', 'artifact', 'onnx'],
  ),
  'an ONNX file of another ending': (
    EXPORT + '{new}.pb --format=onnx',
    ['{new}.pb must end in .onnx'],
  ),
  'an ONNX file that exists': (
    EXPORT + '{tree}/old.onnx --format=onnx',
    ['{tree}/old.onnx exists', '--overwrite'],
  ),
  'an ONNX file in place of a folder': (
    EXPORT + '{tree}/folder.onnx --format=onnx --overwrite',
    ['{tree}/folder.onnx is a folder', 'name of a file'],
  ),
  'a hub folder in place of something else': (
    EXPORT + '{tree}/stopped --format=hub --overwrite',
    ['{tree}/stopped', 'something else than parameters'],
  ),
  'a hub folder that exists': (
    EXPORT + '{tree}/maps --format=hub',
    ['{tree}/maps exists', '--overwrite'],
  ),
  'a hub folder with a size of tiles': (
    EXPORT + '{new} --format=hub --size_px=34',
    ['--size_px is for --format=artifact or onnx', 'not hub'],
  ),
  'authors of an artifact': (
    EXPORT + '{new} --authors=Ada',
    ['--authors is for --format=hub or bioimageio'],
  ),
  'export over a hub folder': (
    'export --workdir={tree}/hub --output={tree}/hub --format=hub --overwrite',
    ['output {tree}/hub holds the input {tree}/hub/'],
  ),
  'another checkpoint than a hub folder has': (
    PREDICT + '--workdir={tree}/hub --checkpoint=best',
    ['{tree}/hub/params.safetensors', "'best'"],
  ),
  'a hub folder without a layer': (
    PREDICT + '--workdir={tree}/hub',
    ['bottleneck/conv0, bottleneck/conv1, down0/conv0', 'of the mo'],
  ),
  'export that exists': (
    EXPORT + '{tree}/maps',
    ['{tree}/maps exists', '--overwrite'],
  ),
  'export in place of something else': (
    EXPORT + '{tree}/maps --overwrite',
    ['{tree}/maps', 'something else than an artifact'],
  ),
  'export without its folder': (
    EXPORT + '{new}/net',
    ['{new}/net', 'no folder {new}'],
  ),
  'export of a run that lacks a setting': (
    'export --workdir={tree}/older --output={new}',
    ['{tree}/older/config.json has no prediction.max_tile_size_px', 'version'],
  ),
  'export of a run and a file': (
    EXPORT + '{new} --params={tree}/maps/net.npz',
    ['--workdir=DIR', '--config', '--params'],
  ),
  'evaluation of a run that lacks a setting': (
    'evaluate --workdir={tree}/older',
    ['{tree}/older/config.json has no prediction.max_tile_size_px', 'version'],
  ),
  'prediction of a run that lacks a setting': (
    PREDICT + '--workdir={tree}/older',
    ['{tree}/older/config.json has no prediction.max_tile_size_px', 'version'],
  ),
  'export over its parameters': (
    'export --config=configs/unet_isbi.py --params={tree}/net/params.npz '
    '--output={tree}/net --overwrite',
    ['output {tree}/net holds the input {tree}/net/params.npz'],
  ),
  'export over the run': (
    EXPORT + '{run} --overwrite',
    ['output {tree}/run holds the input {tree}/run/config.json'],
  ),
  'export into the checkpoints': (
    EXPORT + '{run}/checkpoints/net',
    ['checkpoints/net lies in the input {tree}/run/checkpoints'],
  ),
  'prediction over a file of the run': (
    PREDICT[: PREDICT.index('--output')]
    + '--workdir={run} --output={tree}/config.tif --overwrite',
    ['{tree}/config.tif is the input {tree}/run/config.json'],
  ),
  'no artifact': (
    PREDICT + '--artifact={tree}/maps',
    ['no artifact at {tree}/maps', 'artifact.json'],
  ),
  'an artifact and a run': (
    PREDICT + '--artifact={tree}/maps --workdir={run}',
    ['--artifact={tree}/maps is a whole network', 'no --workdir'],
  ),
  'an artifact and a checkpoint': (
    PREDICT + '--artifact={tree}/maps --checkpoint=best',
    ['--checkpoint=best names a checkpoint', '--artifact={tree}/maps'],
  ),
  'an artifact and a type to compute in': (
    PREDICT + '--artifact={tree}/maps --compute_dtype=bfloat16',
    ['--compute_dtype=bfloat16 cannot', '--artifact={tree}/maps'],
  ),
  'a type that nothing computes in': (
    PREDICT + '--workdir={run} --compute_dtype=float16',
    ['--compute_dtype', 'float16', 'bfloat16'],
  ),
  'no maps': (COUNT + 'none', ['{tree}/none', 'no such file']),
  'a folder without maps': (COUNT + 'empty', ['{tree}/empty', 'no image']),
  'a map of colours': (
    COUNT + 'colour.png',
    ['colour.png has 3 channel(s)', 'expected one'],
  ),
  'a map of more classes': (
    COUNT + 'classes.png',
    ['classes.png', 'from 0 to 2', 'labels in [0, 1]'],
  ),
  'a damaged map': (COUNT + 'cut.tif', ['cut.tif', 'truncated']),
  'a map of text': (COUNT + 'file.txt', ["'.txt'", '.tif']),
  'seeds that are no cells': (
    COUNT + 'maps/t000.tif --threshold=0.8 --seed_threshold=0.5',
    ['seed_threshold=0.5', '0.8'],
  ),
  'a threshold of words': (
    COUNT + 'maps/t000.tif --threshold=half',
    ['--threshold', "'half'", 'float'],
  ),
  'instances as a picture': (
    'instances --input={tree}/maps/t000.tif --output={new}.png',
    ['{new}.png', '.tif'],
  ),
  'instances that exist': (
    'instances --input={tree}/maps/t000.tif --output={tree}/cut.tif',
    ['{tree}/cut.tif exists', '--overwrite'],
  ),
  'instances in place of a folder': (
    'instances --input={tree}/maps/t000.tif --output={tree}/stopped.tif '
    '--overwrite',
    ['{tree}/stopped.tif is a folder', 'give another'],
  ),
  'instances over their map': (
    'instances --input={tree}/maps/t000.tif --output={tree}/maps/t000.tif '
    '--overwrite',
    ['output {tree}/maps/t000.tif is the input {tree}/maps/t000.tif'],
  ),
  'instances over a hard link to their map': (
    'instances --input={tree}/maps --output={tree}/linked --overwrite',
    ['{tree}/linked/mask000.tif is the input {tree}/maps/t000.tif'],
  ),
  'instances among their maps': (
    'instances --input={tree}/maps --output={tree}/maps --overwrite',
    ['output {tree}/maps is the folder of the input', 'give another'],
  ),
  'instances of another command': (
    'instances --input={tree}/maps --output={tree}/stopped',
    ['{tree}/stopped/mask000.tif exists', '--overwrite'],
  ),
  'instances without their folder': (
    'instances --input={tree}/maps/t000.tif --output={new}/a.tif',
    ['{new}/a.tif', 'no folder {new}'],
  ),
  'instances of a folder in a file': (
    'instances --input={tree}/maps --output={tree}/file.txt',
    ['{tree}/file.txt', 'cannot be made a folder'],
  ),
}


def write_tree(tree):
  """Makes a folder of wrong things, and of a run and a map that are right."""
  for name in ('empty', 'maps'):
    (tree / name).mkdir(parents=True)
  make_run(tree / 'run')
  shutil.copytree(tree / 'run', tree / 'older')
  file = tree / 'older' / 'config.json'
  settings = json.loads(file.read_text())
  settings.pop('seal', None)
  prediction = settings['prediction']
  prediction['max_tile_size'] = prediction.pop('max_tile_size_px')
  file.write_text(json.dumps(settings))
  (tree / 'file.txt').write_text('')
  write_stack(tree / 'maps' / 't000.tif', np.zeros((1, 9, 9), np.float32))
  (tree / 'old.onnx').write_text('')
  (tree / 'hub').mkdir()
  shutil.copy(tree / 'run' / 'config.json', tree / 'hub')
  write_params(tree / 'hub' / 'params.safetensors', {'head': {'bias': ONES}})
  (tree / 'folder.onnx').mkdir()
  (tree / 'stopped').mkdir()
  (tree / 'stopped.tif').mkdir()
  (tree / 'stopped' / 'mask000.tif').write_text('')
  (tree / 'stopped' / '.unfinished.0123456789abcdef').write_text('["mask000')
  (tree / 'linked').mkdir()
  (tree / 'linked' / 'mask000.tif').hardlink_to(tree / 'maps' / 't000.tif')
  (tree / 'config.tif').symlink_to(tree / 'run' / 'config.json')
  (tree / 'net').mkdir()
  write_params(tree / 'net' / 'params.npz', {'head': {'bias': np.zeros(2)}})
  write_stack(tree / 'colour.png', np.zeros((1, 9, 9, 3), np.uint8))
  label = np.zeros((1, 9, 9), np.uint8)
  label[0, 3, 4] = 2
  write_stack(tree / 'classes.png', label)
  write_stack(tree / 'cut.tif', np.zeros((5, 64, 64), np.uint8))
  data = (tree / 'cut.tif').read_bytes()
  (tree / 'cut.tif').write_bytes(data[:-100])
