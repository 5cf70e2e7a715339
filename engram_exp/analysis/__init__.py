"""What campaigns say: comparisons, advice, reports. Nothing here imports PyTorch."""
