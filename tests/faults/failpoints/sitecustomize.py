"""Python imports this module at its start in every process that has this folder on its path."""

import failpoint_actions

failpoint_actions.install()
