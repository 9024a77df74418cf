"""What each verb does, without its words: from a composed configuration to a run directory."""
