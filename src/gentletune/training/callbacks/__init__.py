"""What goes on beside a training and leaves its loss alone: metrics, looks, early stopping, speed, lost updates."""
