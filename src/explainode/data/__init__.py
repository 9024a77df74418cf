"""Images and what is known about them: data modules that all yield one batch record."""
