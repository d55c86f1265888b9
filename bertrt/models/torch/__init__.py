"""Files of torch.save, read without unpickling."""
