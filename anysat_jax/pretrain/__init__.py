"""Scale-adaptive JEPA pretraining: masks, teacher, losses, the step."""
