"""Sessions on this machine: interpreters in bubblewrap sandboxes, talked to through two pipes each."""
