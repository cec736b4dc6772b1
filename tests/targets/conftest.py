import pathlib
import sys

# ``kernel_samples`` also serves the tests one folder up.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
