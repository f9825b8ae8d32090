"""What training, export and service agree on: geometry, masks, the model card and the bundle. No torch."""
