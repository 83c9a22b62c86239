"""How long `tandem --help` takes, as a user waits for it."""

import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from benchmark import Metric, write

NUM_RUNS = 10


def main() -> None:
    tandem = Path(sys.executable).parent / "tandem"
    seconds = []
    for _ in range(NUM_RUNS + 1):
        start = time.perf_counter()
        subprocess.run([tandem, "--help"], stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - start)
    write("help", "python tests/bench/bench_help.py", {"runs": NUM_RUNS}, [Metric("help", "s", seconds[1:])])


if __name__ == "__main__":
    main()
