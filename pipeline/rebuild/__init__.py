"""The first and the last step of a rebuild: plan and merge."""
