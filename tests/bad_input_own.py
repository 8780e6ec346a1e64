# SPDX-License-Identifier: Apache-2.0
"""Cases of `test_bad_input` about images and labels of one's own."""

import numpy as np
import tifffile
from PIL import Image
from trees import write_lines, write_picture

PLAN = 'plan --output={new}.py --images={tree}/'
TRAIN = (
  'main --config=unet_folder.py:cpu --workdir={new} --config.data.w0=0 '
  '--config.tile_size_px=188 --config.data.dir={tree}/'
)

PLACES = {}
CASES = {
  'plan of nothing': ('plan --output={new}.py', ['--images=', 'for example']),
  'plan of no folder': (PLAN + 'none', ['{tree}/none: no such folder']),
  'plan of images alone': (
    PLAN + 'good/images',
    ['neither folders images and labels', '_mask', '--labels=FOLDER'],
  ),
  'plan to a file that is no card': (
    'plan --images={tree}/good --output={new}.txt',
    ['{new}.txt', 'a card is a Python file, such as mine.py'],
  ),
  'plan over a card': (
    'plan --images={tree}/good --output={tree}/card.py',
    ['{tree}/card.py exists', '--overwrite'],
  ),
  'plan of a U-Net by the pixels of weights': (
    PLAN + 'good --pixels=0..255',
    ['pixels=0..255', 'unet starts from random ones'],
  ),
  'plan of JPEG labels': (
    PLAN + 'jpeg',
    ['jpeg/labels/0.jpg: JPEG changes values', 'threshold'],
  ),
  'plan of JPEG bytes in a PNG name': (
    PLAN + 'jpeg_bytes',
    ['jpeg_bytes/labels/0.png', 'JPEG'],
  ),
  'plan of one value': (PLAN + 'zeros', ['all labels hold the value 0 alone']),
  'plan of gray rims': (
    PLAN + 'rims',
    ['labels hold', 'neither classes', 'gray rims need a threshold'],
  ),
  'plan of many colours': (PLAN + 'colours', ['colours; expected one a class']),
  'plan of a label of another size': (
    PLAN + 'sizes',
    ['sizes/labels/0.png', '20 x 23 px for an image of 20 x 24'],
  ),
  'plan of several sets': (
    PLAN + 'sets',
    [
      'train is a set of its own, with images and',
      '--images={tree}/sets/train',
    ],
  ),
  'plan of folders in the folders': (
    PLAN + 'nested',
    ["{tree}/nested/images: its files lie in folders; give a pattern, '"],
  ),
  'plan of a file': (
    PLAN + 'good/images/0.png --labels={tree}/good/labels',
    ['good/images/0.png: a file; expected its folder, or a pattern'],
  ),
  'plan of few gray rims': (
    PLAN + 'few_rims',
    ['labels hold 0, 64, 191, 255, of which 64, 191 fill no block', 'thresh'],
  ),
  'plan of rims in colour': (
    PLAN + 'colour_rims',
    ['of which (100, 50, 0) fill no block of 2 x 2 px'],
  ),
  'plan of images that show nothing': (
    PLAN + 'constant',
    ['all pixels of the 5 images are 7'],
  ),
  'plan of gray labels beside labels in RGB': (
    PLAN + 'label_kinds',
    ['1 labels of 3 channel(s), such as {tree}/label_kinds/labels/0.png'],
  ),
  'plan of a link to nothing': (
    PLAN + 'link',
    ['link/images/0.png: a link to a file that is not there'],
  ),
  'plan of names that have a number in common': (
    PLAN + 'numbered',
    ['not in both: ', "; --match='(\\d+)[^\\d/]*$' would pair all by the last"],
  ),
  'plan of half-labelled pairs': (
    PLAN + 'half',
    ['1 of the names in images and labels are not in both: 5'],
  ),
  'plan of gray beside colour': (
    PLAN + 'mixed',
    ['images of uint8 and 3 channel(s)', 'expected one kind'],
  ),
  'plan of 8 bits beside 16': (
    PLAN + 'depths',
    ['images of uint16 and 1 channel(s)', 'expected one kind'],
  ),
  'plan of a white zero': (
    PLAN + 'white',
    ['white/labels/0.tif', 'MINISWHITE'],
  ),
  'plan of damage': (PLAN + 'cut', ['cut/images/0.png', 'truncated']),
  'plan by a match that is none': (
    PLAN + "good '--match=('",
    ["'(' is no regular expression"],
  ),
  'plan by a match without a group': (
    PLAN + "good '--match=a'",
    ["'a' has no group", 'in parentheses'],
  ),
  'plan by a match that finds nothing': (
    PLAN + "good '--match=(x+)'",
    ["'(x+)' is not found in images/0.png"],
  ),
  'plan by a list that names others': (
    PLAN + 'good --train_list=wrong.txt --heldout_list=wrong.txt',
    ['wrong.txt lists 77, which is no image'],
  ),
  'plan by one list': (
    PLAN + 'good --train_list=wrong.txt',
    ["heldout_list=''", 'expected two files'],
  ),
  'plan of FCN without weights': (
    PLAN + 'rgb --network=fcn8s',
    ['starts from an image classifier', '--init=FILE', 'random'],
  ),
  'plan of FCN from no file': (
    PLAN + 'rgb --network=fcn8s --init={tree}/none.npz',
    ['{tree}/none.npz'],
  ),
  'plan of no minutes': (
    PLAN + 'good --minutes=0',
    ['--minutes=0; expected more than 0'],
  ),
  'plan of objects in colour': (
    PLAN + 'rgb --label_kind=things',
    ['--label_kind', 'things'],
  ),
  'masks of 0 and 255 by hand': (
    TRAIN + 'good',
    ["no pixel is of class 'object'", '(value 255)', 'label_values="(0, 255)"'],
  ),
  'palettes that give an index two colours': (
    TRAIN + 'palettes',
    [
      '/palettes/labels/',
      'the colour of index 1 is',
      '(0, 200, 0)',
      '(200, 0, 0)',
      'expected one palette, or labels in RGB',
    ],
  ),
  'labels that are all ignored': (
    TRAIN + 'ignored',
    ['all pixels are ignored'],
  ),
  'one wrong value in the last label': (
    TRAIN + 'wrong',
    ['wrong/labels/3.png: label 7', 'values in this label are'],
  ),
  'objects in two kinds of label': (
    TRAIN + 'good --config.data.label_kind=things',
    ["label_kind='things'", 'classes', 'instances'],
  ),
  'border weights below zero': (
    TRAIN + 'good --config.data.w0=-1',
    ['w0=-1'],
  ),
  'floats without limits': (
    TRAIN
    + 'floats --config.preprocessing.per_image=False '
    + "'--config.preprocessing.limits=()'",
    ['values from 0.0 to 900.0', 'measured'],
  ),
  'images of three channels for one': (
    TRAIN + 'rgb',
    ['model.in_channels=1 does not fit the data; use 3'],
  ),
}


def write_tree(tree):
  """Writes sets of five pairs, each with a mistake of its own."""
  mask = np.zeros((20, 24), np.uint8)
  mask[4:12, 5:18] = 1
  image = np.random.default_rng(0).integers(0, 255, mask.shape, np.uint8)
  labels = {
    **dict.fromkeys(
      ('good', 'sizes', 'half', 'mixed', 'depths', 'white', 'cut'), 255 * mask
    ),
    **dict.fromkeys(('jpeg', 'jpeg_bytes'), 255 * mask),
    **dict.fromkeys(('rgb', 'wrong', 'floats', 'palettes'), mask),
    'zeros': 0 * mask,
    **dict.fromkeys(('constant', 'label_kinds', 'link'), 255 * mask),
    'few_rims': 255 * mask,
    'colour_rims': np.dstack([mask * 200, mask * 100, mask * 0]),
    **dict.fromkeys(('sets/train', 'sets/val'), mask),
    'numbered': mask,
    'ignored': 255 + 0 * mask,
    'rims': image,
    'colours': np.random.default_rng(1).integers(0, 255, (20, 24, 3)),
  }
  for name, label in labels.items():
    for i in range(5):
      write_picture(tree / name / 'images' / f'{i}.png', image)
      write_picture(tree / name / 'labels' / f'{i}.png', label)
  for i in range(5):
    write_picture(tree / 'rgb' / 'images' / f'{i}.png', np.dstack(3 * [image]))
    for name in ('jpeg', 'jpeg_bytes'):
      ending = 'jpg' if name == 'jpeg' else 'png'
      (tree / name / 'labels' / f'{i}.png').unlink()
      with open(tree / name / 'labels' / f'{i}.{ending}', 'wb') as file:
        Image.fromarray(255 * mask).save(file, 'JPEG')
    (tree / 'floats' / 'images' / f'{i}.png').unlink()
    floats = np.linspace(0, 900, image.size, dtype=np.float32)
    tifffile.imwrite(
      tree / 'floats' / 'images' / f'{i}.tif', floats.reshape(image.shape)
    )
  write_picture(tree / 'sizes' / 'labels' / '0.png', 255 * mask[:, 1:])
  rims = np.array(255 * mask)
  rims[4:12, 4], rims[4:12, 18] = 64, 191
  colours = np.array(labels['colour_rims'])
  colours[4:12, 4] = (100, 50, 0)
  for i in range(5):
    write_picture(tree / 'few_rims' / 'labels' / f'{i}.png', rims)
    write_picture(tree / 'colour_rims' / 'labels' / f'{i}.png', colours)
    write_picture(tree / 'constant' / 'images' / f'{i}.png', 0 * mask + 7)
    for kind in ('images', 'labels'):
      write_picture(tree / 'nested' / kind / 'a' / f'{i}.png', mask)
      file = tree / 'numbered' / kind / f'{i}.png'
      file.rename(file.with_name(f'{kind}-00{i}.png'))
  write_picture(
    tree / 'label_kinds' / 'labels' / '0.png', np.dstack(3 * [255 * mask])
  )
  (tree / 'link' / 'images' / '0.png').unlink()
  (tree / 'link' / 'images' / '0.png').symlink_to(tree / 'none.png')
  write_picture(tree / 'half' / 'images' / '5.png', image)
  write_picture(tree / 'mixed' / 'images' / '0.png', np.dstack(3 * [image]))
  (tree / 'depths' / 'images' / '0.png').unlink()
  tifffile.imwrite(tree / 'depths' / 'images' / '0.tif', np.uint16(image))
  (tree / 'white' / 'labels' / '0.png').unlink()
  tifffile.imwrite(
    tree / 'white' / 'labels' / '0.tif', 255 * mask, photometric='miniswhite'
  )
  file = tree / 'cut' / 'images' / '0.png'
  file.write_bytes(file.read_bytes()[:200])
  label = np.array(mask)
  label[3, 4] = 7
  write_picture(tree / 'wrong' / 'labels' / '3.png', label)
  for i in range(5):
    palette = [0, 0, 0, 200 * (i > 2), 200 * (i <= 2), 0]
    write_picture(tree / 'palettes' / 'labels' / f'{i}.png', mask, palette)
  write_lines(tree / 'good' / 'wrong.txt', '77')
  (tree / 'card.py').write_text('')
