"""Train a model from one file (`recipe`): its batches (`data`) and the loop on Accelerate (`loop`)."""
