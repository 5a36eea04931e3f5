"""Entry point of a Ray job; takes the flags of `genopt optimize`.

ray job submit --working-dir . -- python jobs/optimize.py --config jobs/specs/smollm2.yaml
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from genopt.cli import main

raise SystemExit(main(["optimize", *sys.argv[1:]]))
