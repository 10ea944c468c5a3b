"""The structure: who may import whom."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Hold the tree below `root` against the contracts of pyproject.toml."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, '.'); {program}", "--no-cache"],
        cwd=root,
        env=os.environ | {"COLUMNS": "200"},  # the names of the contracts are not to be folded
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_import_rules_hold() -> None:
    """Stages never import each other, layers point one way, the agent never imports the controller."""
    outcome = lint_imports(ROOT)
    assert outcome.returncode == 0, outcome.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("probe/spool/spool.py", "import probe.publish.publisher", "The agent's stages never import each other"),
        ("probe/links.py", "import probe.tasks.base", "The agent's layers point one way"),
        ("probe/agent.py", "import fleet_controller.config", "The agent never imports the controller"),
        ("fleet_controller/store/database.py", "import probe.spool.spool", "The controller takes the contract"),
        (
            "fleet_controller/ingest/client.py",
            "import fleet_controller.store.database",
            "The controller's stages never import",
        ),
    ],
)
def test_a_breach_of_the_import_rules_is_found(tmp_path: Path, module: str, line: str, contract: str) -> None:
    """A planted import that breaks a rule fails the check and is named."""
    for name in ("probe", "fleet_controller"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a") as source:
        source.write(f"\n{line}\n")
    outcome = lint_imports(tmp_path)
    broken = [text for text in outcome.stdout.splitlines() if "BROKEN" in text]
    assert outcome.returncode != 0
    assert any(contract[:40] in text for text in broken), outcome.stdout
