"""After pretraining: rows of dialogues and preferences, objectives over them, and the runs that train on them."""
