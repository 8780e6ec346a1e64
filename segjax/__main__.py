# SPDX-License-Identifier: Apache-2.0
"""Lists the commands: python -m segjax"""

from segjax.cli.command_line import main

if __name__ == '__main__':
  main()
