"""What a training stage minimises: model, losses and batch joined."""
