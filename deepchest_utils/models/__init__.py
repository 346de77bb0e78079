"""Networks: trunks, what tasks share beside a trunk, losses and the augmentation of a batch."""
