"""What people look at: run directories, colors, panels, curves, verdicts, tables and the self-contained report."""
