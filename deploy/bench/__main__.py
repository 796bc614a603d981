"""`make bench [ONLY=encoder]`: every benchmark, or one; each prints a table, a row a system, the ratio last."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    known = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    wanted = sys.argv[1:] or known
    if unknown := sorted(set(wanted) - set(known)):
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    return max(subprocess.run([sys.executable, HERE / f"{name}.py"], check=False).returncode for name in wanted)


if __name__ == "__main__":
    sys.exit(main())
