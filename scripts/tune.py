"""ERK-Guid's two knobs chosen without FID: python scripts/tune.py --preset digits --steps 8

The command is erk/study/tune_command.py; docs/beyond.md tells what it does.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from erk.study.tune_command import main

if __name__ == "__main__":
    main()
