"""Every benchmark, one after the other. `--only NAME` runs one."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main() -> int:
    """Run what is asked for; the exit code says whether every target was met."""
    names = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=names)
    wanted = parser.parse_args().only
    paths = os.pathsep.join([str(ROOT), str(HERE.parent / "support")])
    worst = 0
    for name in [wanted] if wanted else names:
        sys.stdout.write(f"--- {name}\n")
        sys.stdout.flush()
        command = [sys.executable, str(HERE / f"bench_{name}.py")]
        worst = max(worst, subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, check=False).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
