"""saga-fast: contrastive learning whose crops come from the network's own attention."""
