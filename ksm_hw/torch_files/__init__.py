"""Files that `torch.save` wrote, read without resolving or calling anything that they name."""
