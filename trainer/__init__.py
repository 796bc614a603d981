"""Training: phantoms, cohorts, recipes, evaluation."""
