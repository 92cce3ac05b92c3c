"""A solver's corrections fitted to a network: python scripts/calibrate.py --preset digits --steps 8

The command is erk/study/calibrate_command.py; docs/howto/without-knobs.md tells how to use it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from erk.study.calibrate_command import main

if __name__ == "__main__":
    main()
