"""What the training loop needs: recipes, devices and machines, checkpoints, the run folder, and what is logged."""
