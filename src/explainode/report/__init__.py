"""What people look at: colors, panels, curves, verdicts, tables and the self-contained report."""
