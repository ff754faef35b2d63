"""Training with MMEngine's Runner: configs, hooks, classification, detection."""
