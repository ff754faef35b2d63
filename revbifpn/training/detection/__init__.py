"""Detection: what there is beside MMDetection."""
