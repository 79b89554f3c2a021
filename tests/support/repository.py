"""Where the repository lies, and the modules of app/ in it."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
APP = ROOT / "app"
MODULES = sorted(APP.rglob("*.py"))
