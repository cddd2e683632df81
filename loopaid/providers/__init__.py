"""Where programs run. A provider opens sessions; what a session must do stands in `base`."""
