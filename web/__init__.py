"""The HTTP API: the command line's questions over the same queues; nothing is computed here."""

from imgrec import use_own_packages

use_own_packages()  # as for `cli` and `workers`
