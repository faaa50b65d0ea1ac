"""The command line: parse, enqueue, show."""

from imgrec import use_own_packages

use_own_packages()  # `python -m cli.main` searches the working folder, which is no code of ours
