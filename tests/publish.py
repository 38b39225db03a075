"""``python -m tests.publish``: both archives of dist/ in new environments, as users install them.

From each archive the package is installed beside the pinned torch, Triton and NumPy, which come from the index of
packages, and ``smoke.py`` runs outside of the repository. Then a part of the tests runs in the unpacked sdist, in an
environment that borrows the packages of this one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
UNPUBLISHED = (".",)  # what files and folders for the repository alone begin with: CI, hooks, what git ignores
ADDED = "PKG-INFO", "setup.cfg", "customops.egg-info/"  # what the build adds to an sdist
OWN_TESTS = "tests/test_structure.py", "tests/test_layout.py", "tests/test_gradients.py", "tests/test_docs.py"


def tracked(root: Path = ROOT) -> list[str]:
    """Return the paths of all files of the project, as git knows them, and of new ones that it does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    lines = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.splitlines()
    return [line for line in lines if (root / line).exists()]


def wanted_in_sdist(files: list[str]) -> set[str]:
    """Return what of ``files`` the source archive has: all but what is for the repository alone."""
    return {name for name in files if not name.startswith(UNPUBLISHED)}


def wanted_in_wheel(files: list[str]) -> set[str]:
    """Return where the wheel has those of ``files`` that are of the package."""
    folders = {"triton_kernels": "customops/triton_kernels", "customops": "customops"}
    parts = [name.partition("/") for name in files]
    return {f"{folders[top]}/{rest}" for top, _, rest in parts if top in folders}


def names_in_sdist(sdist: Path) -> set[str]:
    """Return the files of an sdist, without its folder, and without what the build added."""
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    return {name for name in names if not name.startswith(ADDED)}


def names_in_wheel(wheel: Path) -> set[str]:
    """Return the files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {*archive.namelist()}


def build(source: Path, folder: Path) -> tuple[Path, Path]:
    """Build sdist and wheel of ``source`` into ``folder``, by the setuptools that is installed here."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def pinned(*packages: str) -> list[str]:
    """Return the requirements of ``packages`` in constraints.txt."""
    lines = [line.partition(";")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return [line for line in lines if line.partition("==")[0] in packages]


def new_environment(folder: Path) -> Path:
    """Make an environment, in place of one that is there, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    return folder / "bin" / "python"


def install(python: Path, *arguments: str | Path) -> None:
    """Have pip install what ``arguments`` say."""
    subprocess.run([python, "-m", "pip", "install", "-q", *arguments], check=True)


def try_archive(archive: Path, folder: Path) -> None:
    """Install ``archive`` in a new environment in ``folder`` and run the program of a user there."""
    python = new_environment(folder)
    install(python, *pinned("torch", "triton", "numpy"))
    install(python, "--no-deps", archive)
    with TemporaryDirectory() as outside:
        shutil.copy(ROOT / "tests" / "smoke.py", outside)
        subprocess.run([python, "smoke.py"], cwd=outside, check=True)
    shutil.rmtree(folder)


def try_own_tests(sdist: Path, folder: Path) -> None:
    """Run a part of the tests in the unpacked sdist."""
    python = new_environment(folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.glob("customops-*")
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    there = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    Path(there, "borrowed.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    install(python, "--no-deps", "-e", source)
    command = [python, "-m", "pytest", "-q", "-n", "0", "--part", "0/8", *OWN_TESTS]
    subprocess.run(command, cwd=source, check=True)
    shutil.rmtree(folder)


def main() -> int:
    """Try what ``make dist`` has built."""
    (sdist,), (wheel,) = (ROOT / "dist").glob("*.tar.gz"), (ROOT / "dist").glob("*.whl")
    for archive in wheel, sdist:
        print(f"in a new environment, from {archive.name}:", flush=True)
        try_archive(archive, ROOT / "build" / "smoke")
    print(f"tests of the unpacked {sdist.name}:", flush=True)
    try_own_tests(sdist, ROOT / "build" / "smoke")
    return 0


if __name__ == "__main__":
    sys.exit(main())
