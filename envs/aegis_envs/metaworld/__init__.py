"""Meta-World's fifty tasks, drawn fast, with their scripted experts."""
