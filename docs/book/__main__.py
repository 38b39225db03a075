"""Write the sources of the site: ``python -m docs.book build/book``. ``make docs`` builds it."""

import sys
from pathlib import Path

from .tree import write_tree

if __name__ == "__main__":
    write_tree(Path(sys.argv[1]).resolve())
